"""Uncorrected: every microgrid may do all that it predicted, whatever the network can carry.

The base line that the correction is compared with, as `Unlimited` is for envelopes. It hears the same things
as `InterchangeCorrection` and answers in the same form, but looks at no network: the capability is the
prediction, the schedule the microgrid's own, reactive power as near to none as was offered, and batteries of
the network's operator are told nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from controllers.contract import Certificate, Decision, Infeasible, Interval, Kind, Observation, Origin
from controllers.forecast import Forecast
from controllers.interchange.heard import Ear, Spoken
from controllers.region import Region
from controllers.site import Site

BINDING = "prediction: nothing is corrected"


@dataclass
class Uncorrected:
    """Available interchange capabilities as they were predicted (AIC = PIC).

    Args:
        site: with microgrids.
        horizon: intervals that are looked ahead, H.

    Raises:
        ValueError: a site without microgrids, or no horizon.
        Infeasible: (step) nothing is known of any microgrid, or a prediction makes no sense.
    """

    sources: ClassVar[tuple[str, ...]] = (
        "No correction of interchange capability: what was predicted is available",
    )

    site: Site
    horizon: int = 4
    _ear: Ear = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.site.microgrids:
            raise ValueError(
                f"uncorrected: site {self.site.name!r} has no microgrids; name them in the scenario"
            )
        if self.horizon < 1:
            raise ValueError(f"uncorrected: horizon {self.horizon} must be at least 1")
        self._ear = Ear(self.site, {}, self.horizon)

    def step(self, observation: Observation) -> Decision:
        heard = {name: one for name, one in self._ear.listen(observation).items() if not one.unknown}
        if not heard:
            names = ", ".join(self.site.microgrids)
            raise Infeasible(f"microgrids {names}: no prediction and no measured exchange; send one of them")
        every, regions = self.site.every, []
        for t in range(self.horizon):
            known = {name: _box(one, t) for name, one in heard.items() if t < one.known}
            if not known:
                break
            regions.append(known)
        start = observation.time + every
        plan = np.column_stack([one.plan for one in heard.values()])
        return Decision(
            time=observation.time,
            origin=Origin.OPTIMAL,
            kind=Kind.AIC,
            regions=regions[0],
            certificates={name: Certificate(binding=one.why or BINDING) for name, one in heard.items()},
            later=tuple(
                Interval(start=start + t * every, end=start + (t + 1) * every, regions=regions[t])
                for t in range(1, len(regions))
            ),
            plan=Forecast(observation.time, every, tuple(heard), plan, np.zeros_like(plan)),
        )


def _box(one: Spoken, t: int) -> Region:
    q = float(np.clip(0.0, one.q[0][t], one.q[1][t]))
    return Region.box(p_mw=(float(one.low[t]), float(one.high[t])), q_mvar=(q, q))
