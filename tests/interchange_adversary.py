"""An attack on what a run claimed of interchange capabilities, which shares no code with whoever made them.

The claim of a step: in the interval in which its decisions act, with everything else as it was forecast, the
network operator's batteries as they were told and the published reactive power, every exchange of the
microgrids inside their capabilities (AIC), each free of the others, keeps the limits. Beside them, devices
outside microgrids may be anywhere in their envelopes, where somebody published one.

All of it is read from the folder of the run: the manifest's scenario, and the tables `regions`, `forecasts`,
`setpoints`, `devices` and `steps`. All corners and random points are solved as a fixed point over matrices of
pandapower (`tests.adversary`), and the worst of each kind once more by `runpp`, whose word counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from math import inf, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pandapower.auxiliary import LoadflowNotConverged, pandapowerNet

from controllers import Region
from scenarios.grids import load_grid
from scenarios.schema import duration
from simulators.journal import read
from tests.adversary import LOADING_PERCENT, V_PU, Adversary

Array = npt.NDArray[np.float64]

SLACK_MW = 1e-3
"""Import beyond a limit that counts as a violation."""
POINTS = 200
ALL = 4096
"""Joint corners up to which all are tried; beyond, as many at random."""
SIGN = {"load": -1.0, "sgen": 1.0, "storage": -1.0}
CLOSE = (1e-8, 1e-8, 1e-4, 1e-6, 1e-6)
"""How far the two ways may differ, by kind."""
KINDS = ("under_v_pu", "over_v_pu", "over_loading_percent", "under_import_mw", "over_import_mw")


@dataclass(frozen=True, slots=True)
class Worst:
    """The worst that was found against one step's claim; positive means beyond a limit."""

    issued_at: datetime
    origin: str
    under_v_pu: float
    over_v_pu: float
    over_loading_percent: float
    under_import_mw: float
    over_import_mw: float
    cases: int
    width_mw: float
    """of all microgrids' intervals together"""

    @property
    def violated(self) -> bool:
        return (
            max(self.under_v_pu, self.over_v_pu) > V_PU
            or self.over_loading_percent > LOADING_PERCENT
            or max(self.under_import_mw, self.over_import_mw) > SLACK_MW
        )


@dataclass(frozen=True, eq=False)
class Claim:
    """One step's claim; everything by bus, injection positive [MW, Mvar]."""

    issued_at: datetime
    origin: str
    fixed: list[tuple[str, float, float]]
    """what is not free to choose"""
    free: list[tuple[str, Array]]
    """corners (k, 2) of the convex set in which each of the others may be, microgrids first"""
    leaving: int
    """how many of them may also be away"""
    width_mw: float


class Allowed(NamedTuple):
    """Limits of the network."""

    v_pu: tuple[float, float]
    loading_percent: float
    import_mw: tuple[float, float] = (-inf, inf)


class Record:
    """What a run's folder says.

    Args:
        kind: of the regions that the microgrids may use: `aic`, or `pic` to see what the correction is for.
            The reactive power is that of the AIC in both.
    """

    def __init__(self, run_dir: Path, kind: str = "aic") -> None:
        self.scenario: dict[str, Any] = json.loads((run_dir / "manifest.json").read_text())["scenario"]
        self.kind, self.every = kind, duration(self.scenario["every"])
        self.net = _net(self.scenario)
        self.microgrids = {one["name"]: str(one["bus"]) for one in self.scenario["microgrids"]}
        self.devices = {one["name"]: one for one in self.scenario["devices"]}
        self.inside = {name for one in self.scenario["microgrids"] for name in one["devices"]}
        self._read(run_dir)

    def _read(self, run_dir: Path) -> None:
        tables = {name: read(run_dir, name).to_pylist() for name in ("regions", "forecasts", "setpoints")}
        self.regions: dict[tuple[datetime, str, str], list[Region]] = {}
        corrects = set()
        for row in tables["regions"]:
            if row["kind"] == "aic":
                corrects.add(row["controller"])
            if row["valid_from"] <= row["issued_at"] + self.every < row["valid_until"]:
                region = Region(tuple(row["axes"]), np.array(row["A"]), np.array(row["b"]))
                self.regions.setdefault((row["issued_at"], row["kind"], row["target"]), []).append(region)
        self.forecast = {
            (row["issued_at"], row["name"]): row["mean_mw"]
            for row in tables["forecasts"]
            if row["time"] == row["issued_at"] + self.every
        }
        self.told = {(row["issued_at"], row["device"]): row for row in tables["setpoints"]}
        self.measured = {
            (row["time"], row["device"]): row["p_mw"] for row in read(run_dir, "devices").to_pylist()
        }
        (self.corrector,) = [one for one in self.scenario["controllers"] if one["name"] in corrects]
        self.origins = {
            row["time"]: row["origin"]
            for row in read(run_dir, "steps").to_pylist()
            if row["controller"] == self.corrector["name"]
        }

    @property
    def import_mw(self) -> tuple[float, float]:
        least, most = self.corrector["options"].get("slack_mw") or (-inf, inf)
        return float(least), float(most)

    @property
    def isolation_secure(self) -> bool:
        return bool(self.corrector["options"].get("isolation_secure"))

    def claims(self) -> Iterator[Claim]:
        """Of every step in which the correction decided."""
        for at in sorted({at for at, kind, _ in self.regions if kind == "aic"}):
            origin = self.origins[at]
            free, width = [], 0.0
            for name, bus in self.microgrids.items():
                low, high, q_mvar = self._interval(at, name)
                width += high - low
                free.append((bus, np.array([(low, q_mvar), (high, q_mvar)])))
            fixed = list(self._background(at))
            for name, device in self.devices.items():
                if name in self.inside:
                    continue
                found = self.regions.get((at, "envelope", name))
                if found is None:
                    fixed.append((str(device["bus"]), *self._injected(at, name)))
                else:
                    whole = found[0].over(("p_mw", "q_mvar"))
                    for other in found[1:]:
                        whole = whole & other
                    free.append((str(device["bus"]), whole.vertices()))
            leaving = len(self.microgrids) if self.isolation_secure else 0
            yield Claim(at, origin, fixed, free, leaving, width)

    def _interval(self, at: datetime, name: str) -> tuple[float, float, float]:
        """Least and greatest exchange of a microgrid, and its reactive power."""
        (available,) = self.regions[at, "aic", name]
        q_low, q_high = available.limits("q_mvar")
        assert q_low == q_high, f"{name} at {at}: the reactive power is no single value"
        (used,) = self.regions[at, self.kind, name]
        return *used.limits("p_mw"), q_low

    def _background(self, at: datetime) -> Iterator[tuple[str, float, float]]:
        """What the net itself has: as forecast, else as measured, at constant power factor."""
        for table, sign in SIGN.items():
            for row in self.net[table][self.net[table].in_service.astype(bool)].itertuples():
                name, nominal = f"{table}:{row.Index}", sign * row.scaling * row.p_mw
                p = self.forecast.get((at, name), self.measured.get((at, name)))
                assert p is not None, f"{name} at {at}: neither forecast nor measured"
                q = sign * row.scaling * row.q_mvar
                yield str(row.bus), p, q * p / nominal if nominal else q

    def _injected(self, at: datetime, name: str) -> tuple[float, float]:
        """What a device outside microgrids does: what it was told, else what is forecast of it."""
        told = self.told.get((at, name))
        if told is not None and told["p_mw"] is not None:
            return told["p_mw"], told["q_mvar"] or 0.0
        p = self.forecast.get((at, name), self.measured.get((at, name)))
        assert p is not None, f"{name} at {at}: neither told, nor forecast, nor measured"
        return p, 0.0


class Feeder(Adversary):
    """The plant of a run, for many cases at once and for one by `runpp`."""

    def imported(self, p_mw: Array, q_mvar: Array) -> Array:
        """(cases,) import from the external grid [MW]."""
        V = self.states(p_mw, q_mvar)
        into = (V[self._slack] * (self._Y[self._slack] @ V).conj()).real.sum(axis=0) * self._s_base
        return np.asarray(into - p_mw[:, np.isin(self._node, self._slack)].sum(axis=1))

    def __init__(self, net: pandapowerNet) -> None:
        super().__init__(net)
        self._Y = self._net._ppc["internal"]["Ybus"].tocsr()
        slack = np.isin(self._node, self._slack)
        self.counted = ~slack
        """buses whose voltage has limits"""
        self.at = {str(bus): i for i, bus in enumerate(self.buses)}

    def sure(self, p_mw: Array, q_mvar: Array) -> tuple[Array, float, float]:
        """Voltages (buses,), greatest loading [%] and import [MW] of one case by pandapower alone."""
        try:
            v, loading = self.runpp(p_mw, q_mvar)
        except LoadflowNotConverged:
            return np.full(len(self.buses), np.nan), np.nan, np.nan
        return v, loading, float(self._net.res_ext_grid.p_mw.sum())


def attacks(run_dir: Path, *, kind: str = "aic", points: int = POINTS) -> Iterator[Worst]:
    """The worst against each step's claim of a run; see `Record` for `kind`.

    With `isolation_secure` in the correction's options any microgrids may also be away.
    """
    record = Record(run_dir, kind)
    feeder = Feeder(record.net)
    grid = record.scenario["grid"]["limits"]
    limits = Allowed(tuple(grid["v_pu"]), grid["loading_percent"], record.import_mw)
    for claim in record.claims():
        yield attack(feeder, claim, limits, points)


def attack(feeder: Feeder, claim: Claim, allowed: Allowed, points: int = POINTS) -> Worst:
    """All corners of a claim, or 4096 of them, and random points between; the worst by `runpp`."""
    sets = [corners for _, corners in claim.free]
    shares = _shares(sets, claim.leaving, points, np.random.default_rng(1))
    cases = len(shares[0]) if shares else 1
    p, q = np.zeros((2, cases, len(feeder.buses)))
    for bus, p_mw, q_mvar in claim.fixed:
        p[:, feeder.at[bus]] += p_mw
        q[:, feeder.at[bus]] += q_mvar
    for (bus, corners), share in zip(claim.free, shares, strict=True):
        p[:, feeder.at[bus]] += share @ corners[:, 0]
        q[:, feeder.at[bus]] += share @ corners[:, 1]
    v, loading = feeder.solve(p, q)

    def beyond(v: Array, loading: Array, imported: Array) -> Array:
        inner = v[:, feeder.counted]
        return np.column_stack(
            [
                allowed.v_pu[0] - inner.min(axis=1),
                inner.max(axis=1) - allowed.v_pu[1],
                loading - allowed.loading_percent,
                allowed.import_mw[0] - imported,
                imported - allowed.import_mw[1],
            ]
        )

    found = beyond(v, loading, feeder.imported(p, q))
    found[np.isnan(found)] = np.inf
    worst, known = [], {}
    for kind, k in enumerate(found.argmax(axis=0).tolist()):
        if np.isneginf(found[k, kind]):  # no such limit
            worst.append(-inf)
            continue
        if k not in known:
            known[k] = beyond(*(np.array([x]) for x in feeder.sure(p[k], q[k])))[0]
        sure = float(known[k][kind])
        unsolved = np.isnan(sure) or np.isinf(found[k, kind])
        assert unsolved or abs(sure - found[k, kind]) < CLOSE[kind], (KINDS[kind], sure, found[k, kind])
        worst.append(inf if unsolved else sure)
    return Worst(claim.issued_at, claim.origin, *worst, cases=cases, width_mw=claim.width_mw)


def _shares(sets: list[Array], leaving: int, points: int, draw: np.random.Generator) -> list[Array]:
    """Of each set, how much of each corner (cases, k): one of it, then random mixtures; nothing: away."""
    sizes = [len(corners) for corners in sets]
    ways = [n + (i < leaving) for i, n in enumerate(sizes)]
    if prod(ways) <= ALL:
        choices = np.array(list(product(*map(range, ways))), dtype=np.int64).reshape(-1, len(sets))
    else:
        turns = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        alike = [[int((c @ [np.cos(t), np.sin(t)]).argmax()) for c in sets] for t in turns]
        choices = np.concatenate([alike, np.stack([draw.integers(0, n, ALL) for n in ways], axis=1)])
    shares = []
    for i, n in enumerate(sizes):
        between = draw.dirichlet(np.ones(n), points)
        if i < leaving:
            between[draw.random(points) < 0.25] = 0.0
        shares.append(np.concatenate([np.eye(n + 1)[choices[:, i], :n], between]))
    return shares


def _net(scenario: Mapping[str, Any]) -> pandapowerNet:
    """The net with the scenario's edits."""
    net = load_grid(scenario["grid"]["network"], Path())
    for edit in scenario["grid"]["edits"]:
        table = net[edit["table"]]
        table.loc[table.index if edit["index"] == "all" else edit["index"], edit["column"]] = edit["value"]
    return net


def violations(found: list[Worst]) -> int:
    """Steps whose claim does not hold."""
    return sum(one.violated for one in found)
