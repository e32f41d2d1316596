"""Any radial grid: random trees, loads, ratings, devices and limits, held to the adversary.

Certified envelopes keep every limit; a draw that has none gets its typed error, and in the co-simulation its
devices fall to their defaults.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandapower as pp
import pytest
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st
from pandapower.auxiliary import pandapowerNet

from controllers import Infeasible, Origin, Site
from controllers.envelopes.certified import Certified
from scenarios.run import Exit
from simulators.journal import read
from tests.adversary import Adversary, attack, background_of
from tests.envelope_cases import battery, seen, site_of
from tests.rolled_day import METHODS
from tests.running import do


def feeder(seed: int, buses: int, devices: int, stress: float) -> tuple[Site, pandapowerNet]:
    """A radial feeder drawn from a seed: bushy or long, with or without a transformer, charging or none.

    Args:
        buses: without the slack bus.
        stress: greatest drop of the linear voltage that the loads cause, over the room for it; above 1
            they break the limit.
    """
    rng = np.random.default_rng(seed)
    low_voltage, transformer = rng.random() < 0.4, rng.random() < 0.5
    kv, z_ohm = (0.4, (0.01, 0.05)) if low_voltage else (11.0, (0.1, 0.8))
    half = float(rng.uniform(0.03, 0.1))
    centre = float(rng.uniform(0.99, 1.03))
    v_pu = (centre - half, centre + half)
    net = pp.create_empty_network(sn_mva=float(rng.choice([1.0, 10.0])))
    pp.create_bus(net, 20.0 if transformer else kv)
    pp.create_buses(net, buses, kv)
    pp.create_ext_grid(net, 0, vm_pu=centre)
    reach = int(rng.integers(1, buses + 1))
    parents = [0, *(int(rng.integers(max(1, bus - reach), bus)) for bus in range(2, buses + 1))]
    first = 2 if transformer else 1
    ends = [(parents[bus - 1], bus) for bus in range(first, buses + 1)]
    # Which side of a line is named first says nothing.
    ends = [(b, a) if rng.random() < 0.3 else (a, b) for a, b in ends]
    r, x = rng.uniform(*z_ohm, (2, len(ends)))
    pp.create_lines_from_parameters(
        net, [a for a, _ in ends], [b for _, b in ends], length_km=1.0, r_ohm_per_km=r, x_ohm_per_km=x,
        c_nf_per_km=float(rng.choice([0.0, 200.0])), max_i_ka=99999.0,
    )  # fmt: skip
    if transformer:
        pp.create_transformer_from_parameters(
            net, 0, 1, 1.0, 20.0, kv, vkr_percent=1.0, vk_percent=5.0, pfe_kw=1.0, i0_percent=0.2,
            shift_degree=float(rng.choice([0.0, 150.0])),
        )  # fmt: skip
    # Loads: a pattern, made as large as the stress says.
    weight = rng.uniform(0.0, 1.0, buses) * (rng.random(buses) < 0.7)
    weight[int(rng.integers(buses))] = 1.0
    p = weight * kv**2 / 1e4
    q = p * rng.uniform(0.0, 0.6, buses)
    pp.create_loads(net, np.arange(1, buses + 1), p_mw=p, q_mvar=q)
    size = battery("any", "0", 1.0, 1.0)
    network = site_of("unscaled", net, {"any": size}, v_pu).network
    order = [int(bus) - 1 for bus in network.buses]
    drop = float((network.v2_base - network.v2(-p[order], -q[order])).max())
    factor = stress * (centre**2 - v_pu[0] ** 2) / max(drop, 1e-12)
    if transformer:
        factor = min(factor, 0.7 / np.hypot(p.sum(), q.sum()))
    net.load["p_mw"], net.load["q_mvar"] = p * factor, q * factor
    # Ratings of some lines, with room beyond the loads' own flow.
    flow = np.hypot(*network.flow(-p[order] * factor, -q[order] * factor))
    rating = flow * rng.uniform(1.2, 4.0, buses) + 0.2 * flow.max() + 1e-3 * kv**2 / 11.0**2
    for name, s_mva in zip(network.branches, rating, strict=True):
        if name.startswith("line") and rng.random() < 0.5:
            net.line.loc[int(name.removeprefix("line:")), "max_i_ka"] = s_mva / (np.sqrt(3) * kv)
    at = rng.integers(1, buses + 1, devices)
    if devices > 1 and rng.random() < 0.2:
        at[0] = 0
    most = max(float(np.hypot(p.sum(), q.sum()) * factor), 1e-3)
    park = {
        f"der{i}": battery(f"der{i}", str(bus), float(s), float(w))
        for i, (bus, s, w) in enumerate(
            zip(at, most * rng.uniform(0.05, 0.5, devices), rng.uniform(0.2, 3.0, devices), strict=True)
        )
    }
    return site_of(f"feeder {seed}", net, park, v_pu), net


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],  # to shrink an example takes minutes
)
@given(
    seed=st.integers(0, 2**32 - 1),
    buses=st.integers(4, 199),
    devices=st.integers(1, 8),
    stress=st.floats(0.05, 1.15),
    name=st.sampled_from(list(METHODS)),
    two_sided=st.booleans(),
)
@example(seed=1, buses=199, devices=8, stress=0.5, name="EPQ", two_sided=False)
@example(seed=17, buses=22, devices=3, stress=1.0, name="PQ-KL", two_sided=True)
@example(seed=2, buses=4, devices=1, stress=0.9, name="PQ-KL", two_sided=True)
def test_certified_envelopes_hold_on_any_radial_grid(
    seed: int, buses: int, devices: int, stress: float, name: str, two_sided: bool
) -> None:
    site, net = feeder(seed, buses, devices, stress)
    adversary = Adversary(net)
    controller = Certified(METHODS[name](site, price=False), two_sided=two_sided)
    decision, refused = None, ""
    try:
        decision = controller.step(seen(site))
    except Infeasible as error:
        refused = str(error)
    if decision is None:
        event("infeasible")
        # There is a reason: the loads alone break a limit, in AC or at least in the linear model.
        assert "before any device injects" in refused or "no device can influence" in refused
        if "in the AC power flow" in refused:
            alone = adversary.attack(background_of(site), [], site.limits.v_pu, site.limits.loading_percent)
            assert max(alone.under_v_pu, alone.over_v_pu) > 1e-6 or alone.over_loading_percent > 1e-3
        return
    event("certified")
    assert decision.origin is Origin.CERTIFIED
    assert not attack(site, adversary, decision, seed=seed).violated


def test_uncorrected_ones_do_not() -> None:
    """The same draws without certificate: most are broken somewhere."""
    broken = 0
    for seed in range(12):
        site, net = feeder(seed, 30, 4, 0.6)
        decision = METHODS["PQ-E"](site, price=False).step(seen(site))
        broken += attack(site, net, decision).violated
    assert broken >= 6


async def test_without_envelopes_the_devices_obey_their_defaults(tmp_path: Path) -> None:
    """An infeasible feeder in the co-simulation: nothing is certified, nobody injects."""
    site, net = feeder(7, 12, 3, 1.6)
    with pytest.raises(Infeasible):
        Certified(METHODS["PQ-E"](site)).step(seen(site))
    pp.to_json(net, str(tmp_path / "grid.json"))
    devices = [
        {"name": d.name, "kind": "battery", "bus": int(d.bus), "p_mw": d.rating_mw, "e_mwh": 4.0,
         "profile": "trade"}
        for d in site.devices.values()
    ]  # fmt: skip
    scenario = {
        "name": "infeasible",
        "start": "2026-06-21T00:00:00Z",
        "every": "5min",
        "steps": 3,
        "seed": 1,
        "clock": {"mode": "fast"},
        "grid": {"network": "grid.json", "limits": {"v_pu": list(site.limits.v_pu), "loading_percent": 100}},
        "profiles": {"trade": {"kind": "daily", "values": {"00:00": 0.5}}},
        "devices": devices,
        "controllers": [
            {"name": "dso", "uses": "controllers.envelopes.equal_boxes:EqualBoxes", "certified": True}
        ],
    }
    (tmp_path / "infeasible.yaml").write_text(json.dumps(scenario), encoding="utf-8")
    result = await do(tmp_path / "infeasible.yaml", tmp_path / "runs")
    assert result.exit is Exit.HELD
    moved = read(result.directory, "devices").to_pandas()
    moved = moved[moved.device.isin(list(site.devices))]
    assert len(moved) == 3 * len(devices)
    assert (moved.p_mw == 0.0).all()
    assert (moved.q_mvar == 0.0).all()
    assert not len(read(result.directory, "regions"))
    manifest = json.loads((result.directory / "manifest.json").read_text())
    assert manifest["counts"]["infeasible"] == 3
