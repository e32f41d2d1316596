"""Operating envelopes for distributed energy resources, one method a file (seed 004)."""

from controllers.envelopes.allowable import AllowableRegion as AllowableRegion
from controllers.envelopes.equal_ranges import EqualRanges as EqualRanges
