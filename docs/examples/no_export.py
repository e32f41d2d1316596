"""NoExport: no power flows back through the substation, whatever sun and wind do.

For a feeder whose reverse-power relay must not trip: the devices together may inject what the loads are
sure to consume, less a margin. Losses are not counted; they only add to what is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from controllers import Decision, Infeasible, Observation, Origin, Region, Site


@dataclass
class NoExport:
    """Shares out what the loads will surely consume in the coming step, in proportion to what each
    device is expected to inject. Keeps an import of `margin_mw`, if no load turns out lower than
    `sigmas` standard deviations below its forecast."""

    site: Site  # network, limits, devices and loads; given once, when the scenario is built
    margin_mw: float = 0.0
    sigmas: float = 2.0

    def step(self, observation: Observation) -> Decision:
        forecast, known = observation.forecast, {}
        if len(forecast.mean):
            # An injection is positive, so a load that consumes less has the greater injection.
            known = dict(zip(forecast.names, forecast.mean[0] + self.sigmas * forecast.std[0], strict=True))
        room = -sum(known.get(load.name, load.p_mw) for load in self.site.loads.values()) - self.margin_mw
        if room < 0:
            raise Infeasible(f"the loads may consume {-room:.3f} MW less than the margin; lower margin_mw")
        mean = forecast.at(0)
        expected = {
            name: max(mean.get(name, device.rating_mw), 0.0) for name, device in self.site.devices.items()
        }
        share = room / (sum(expected.values()) or 1.0)
        return Decision(
            time=observation.time,
            origin=Origin.OPTIMAL,
            regions={
                name: Region.box(p_mw=(-device.rating_mw, share * expected[name]), q_mvar=(0.0, 0.0))
                for name, device in self.site.devices.items()
            },
        )
