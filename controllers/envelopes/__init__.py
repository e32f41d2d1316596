"""Operating envelopes for distributed energy resources, one method a file (seed 004)."""

from controllers.envelopes.allowable import AllowableRegion as AllowableRegion
from controllers.envelopes.certified import Certified as Certified
from controllers.envelopes.equal_boxes import EqualBoxes as EqualBoxes
from controllers.envelopes.equal_polygons import EqualPolygons as EqualPolygons
from controllers.envelopes.equal_ranges import EqualRanges as EqualRanges
from controllers.envelopes.greatest import GreatestRanges as GreatestRanges
from controllers.envelopes.max_min_ranges import MaxMinRanges as MaxMinRanges
from controllers.envelopes.proportional_ranges import ProportionalRanges as ProportionalRanges
from controllers.envelopes.rolling import Rolling as Rolling
from controllers.envelopes.row_shares import RowShares as RowShares
from controllers.envelopes.soft_ranges import SoftlyEqualRanges as SoftlyEqualRanges
from controllers.envelopes.static_limits import StaticLimits as StaticLimits
from controllers.envelopes.static_limits import Unlimited as Unlimited
