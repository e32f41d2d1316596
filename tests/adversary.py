"""An attack on published envelopes that shares no code with whoever made or checked them.

From one `pandapower.runpp` it takes pandapower's own admittance matrices; thousands of cases are then a fixed
point of the bus equations, and the worst of them are run once more by `runpp` itself, whose word counts.

    V = V_0 + Z conj(S / V),   V_0 = -Z Y_LS V_S,   Z = Y_LL^-1        (L: all nodes but the slack S)

Corners of all devices are tried jointly: all where there are at most `ALL`, otherwise random ones and, from
the worst, coordinate ascent. What it shares with the rest is the published `Region` and its corners.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pandapower as pp
from pandapower.auxiliary import LoadflowNotConverged, pandapowerNet
from scipy.sparse.linalg import splu

from controllers import Decision, Region, Site

Array = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]
Ints = npt.NDArray[np.int64]

ALL = 4096
"""Joint corners up to which all are tried."""
RANDOM = 2000
"""Joint corners tried otherwise, beside those of one direction for all."""
CLIMBERS = 20
"""Worst cases of each kind from which the coordinate ascent starts."""
SWEEPS = 3
AT_ONCE = 2048
V_PU, LOADING_PERCENT = 1e-4, 0.1
"""What counts as a violation."""


@dataclass(frozen=True)
class Findings:
    """The worst that an attack found; positive means beyond a limit."""

    under_v_pu: float
    over_v_pu: float
    over_loading_percent: float
    cases: int
    violating: int
    """cases beyond the tolerances, of all tried"""

    @property
    def violated(self) -> bool:
        return self.under_v_pu > V_PU or self.over_v_pu > V_PU or self.over_loading_percent > LOADING_PERCENT

    def __or__(self, other: Findings) -> Findings:
        """The worst of both."""
        return Findings(
            max(self.under_v_pu, other.under_v_pu),
            max(self.over_v_pu, other.over_v_pu),
            max(self.over_loading_percent, other.over_loading_percent),
            self.cases + other.cases,
            self.violating + other.violating,
        )


class Adversary:
    """Attacks envelopes on one net; what `net` itself injects is ignored, but for shunts."""

    def __init__(self, net: pandapowerNet) -> None:
        self._net = work = copy.deepcopy(net)
        for table in ("load", "sgen", "storage", "motor"):
            work[table] = work[table].iloc[0:0]
        self.buses = [int(b) for b in work.bus.index[work.bus.in_service.astype(bool)]]
        pp.create_sgens(work, self.buses, p_mw=0.0, q_mvar=0.0)
        self._runpp()
        inside = work._ppc["internal"]
        Y, slack = inside["Ybus"].tocsc(), inside["ref"]
        self._free = np.setdiff1d(np.arange(Y.shape[0]), slack)
        self._lu = splu(Y[self._free][:, self._free].tocsc())
        self._v_slack = inside["V"][slack]
        self._slack = slack
        self._v0 = -self._lu.solve(Y[self._free][:, slack] @ self._v_slack)
        self._s_base = float(inside["baseMVA"])
        self._node = work._pd2ppc_lookups["bus"][self.buses]
        self._nodes = Y.shape[0]
        # Loadings: currents by pandapower's branch admittances over each element's rating at that side.
        kv = inside["bus"][:, 9].real
        where, _ = work._pd2ppc_lookups["branch"], None
        self._sides: list[tuple[Any, Array]] = []
        supplied = np.flatnonzero(inside["branch_is"])
        for side, Y_side, end in (("from", inside["Yf"], 0), ("to", inside["Yt"], 1)):
            per_ka = np.zeros(len(supplied))
            for table, (first, _) in where.items():
                if table not in ("line", "trafo"):
                    continue
                for position, row in enumerate(work[table].itertuples()):
                    k = np.searchsorted(supplied, first + position)
                    if k == len(supplied) or supplied[k] != first + position:
                        continue
                    if table == "line":
                        if row.max_i_ka >= 9999:
                            continue
                        rated = row.max_i_ka * row.df * row.parallel
                    else:
                        voltage = row.vn_hv_kv if side == "from" else row.vn_lv_kv
                        rated = row.sn_mva * row.df * row.parallel / (np.sqrt(3) * voltage)
                    bus = int(inside["branch"][k, end].real)
                    per_ka[k] = 100 * self._s_base / (np.sqrt(3) * kv[bus]) / rated
            rated_rows = np.flatnonzero(per_ka)
            self._sides.append((Y_side.tocsr()[rated_rows], per_ka[rated_rows]))
        self._rated = {
            "line": [i for i, r in work.line.iterrows() if r.in_service and r.max_i_ka < 9999],
            "trafo": [i for i, r in work.trafo.iterrows() if r.in_service],
        }

    def states(self, p_mw: Array, q_mvar: Array) -> Complex:
        """Complex voltages (nodes, cases) at pandapower's own nodes for injections (cases, buses); NaN where
        there is no solution."""
        s = np.zeros((self._nodes, len(p_mw)), dtype=np.complex128)
        np.add.at(s, self._node, ((p_mw + 1j * q_mvar) / self._s_base).T)
        s = s[self._free]
        v0 = np.repeat(self._v0[:, None], len(p_mw), axis=1)
        v, change = v0, np.inf
        with np.errstate(all="ignore"):
            for _ in range(300):
                last, v = v, v0 + self._lu.solve((s / v).conj())
                moved = abs(v - last).max(axis=0, initial=0.0)
                change = float(np.nanmax(moved, initial=0.0))
                if change < 1e-13:
                    break
        full = np.empty((self._nodes, len(p_mw)), dtype=np.complex128)
        full[self._free], full[self._slack] = v, self._v_slack[:, None]
        bad = ~(moved < 1e-9) | (abs(v) < 0.3).any(axis=0)
        full[:, bad] = np.nan
        return full

    def solve(self, p_mw: Array, q_mvar: Array) -> tuple[Array, Array]:
        """Voltages (cases, buses) and the greatest loading (cases,) [%] for injections (cases, buses); NaN
        without solution."""
        full = self.states(p_mw, q_mvar)
        loading = np.full(len(p_mw), -np.inf)
        for Y_side, percent in self._sides:
            if len(percent):
                loading = np.maximum(loading, (abs(Y_side @ full) * percent[:, None]).max(axis=0))
        loading[np.isnan(full).any(axis=0)] = np.nan
        return abs(full)[self._node].T, loading

    def runpp(self, p_mw: Array, q_mvar: Array) -> tuple[Array, float]:
        """The same for one case by pandapower alone: voltages (buses,) and the greatest loading [%]."""
        self._net.sgen["p_mw"], self._net.sgen["q_mvar"] = p_mw, q_mvar
        self._runpp()
        loading = [
            self._net[f"res_{table}"].loading_percent.loc[rows].max()
            for table, rows in self._rated.items()
            if rows
        ]
        return self._net.res_bus.vm_pu.loc[self.buses].to_numpy(), max(loading, default=-np.inf)

    def _runpp(self) -> None:
        pp.runpp(
            self._net, numba=False, tolerance_mva=1e-10, max_iteration=30, trafo_loading="current",
            calculate_voltage_angles=True,
        )  # fmt: skip

    def attack(
        self,
        background: Mapping[str, tuple[float, float]],
        corners: list[tuple[str, Array]],
        v_pu: tuple[float, float],
        loading_percent: float,
        *,
        seed: int = 0,
        confirm: bool = True,
    ) -> Findings:
        """Look for the worst joint use of envelopes.

        Args:
            background: P and Q [MW, Mvar] by bus, without the devices.
            corners: bus and corners (corners, 2) of each device's envelope.
            v_pu, loading_percent: limits.
            confirm: whether the worst cases are run by `runpp`, whose values then count.
        """
        slack = {self.buses[i] for i in np.flatnonzero(np.isin(self._node, self._slack))}
        position = {str(b): i for i, b in enumerate(self.buses)}
        p0, q0 = np.zeros((2, len(self.buses)))
        for bus, (p, q) in background.items():
            p0[position[bus]] += p
            q0[position[bus]] += q
        counted = np.array([b not in slack for b in self.buses])
        at = [position[bus] for bus, _ in corners]
        sizes = np.array([len(c) for _, c in corners])
        tried = 0
        violating = 0
        best: dict[int, tuple[float, Ints]] = {}

        def injections(choices: Ints) -> tuple[Array, Array]:
            p, q = np.tile(p0, (len(choices), 1)), np.tile(q0, (len(choices), 1))
            for i, (_, points) in enumerate(corners):
                p[:, at[i]] += points[choices[:, i], 0]
                q[:, at[i]] += points[choices[:, i], 1]
            return p, q

        def scores(choices: Ints) -> Array:
            """(cases, 3) how far under, over and overloaded; infinite without solution."""
            nonlocal tried, violating
            out = np.empty((len(choices), 3))
            for start in range(0, len(choices), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                v, loading = self.solve(*injections(choices[part]))
                v = v[:, counted]
                out[part] = np.column_stack(
                    [v_pu[0] - v.min(axis=1), v.max(axis=1) - v_pu[1], loading - loading_percent]
                )
            out[np.isnan(out)] = np.inf
            tried += len(choices)
            violating += int((out > [V_PU, V_PU, LOADING_PERCENT]).any(axis=1).sum())
            for kind in range(3):
                k = int(out[:, kind].argmax())
                if kind not in best or out[k, kind] > best[kind][0]:
                    best[kind] = float(out[k, kind]), choices[k].copy()
            return out

        if prod(sizes.tolist()) <= ALL:
            scores(np.array(list(product(*(range(n) for n in sizes)))))
        else:
            draw = np.random.default_rng(seed)
            random = np.stack([draw.integers(0, n, RANDOM) for n in sizes], axis=1)
            turns = np.linspace(0, 2 * np.pi, 32, endpoint=False)
            alike = np.array(
                [[int((c @ [np.cos(t), np.sin(t)]).argmax()) for _, c in corners] for t in turns]
            )
            first = np.concatenate([random, alike])
            found = scores(first)
            for kind in range(3):
                if np.isneginf(found[:, kind]).all():
                    continue  # no ratings
                now = first[np.argsort(-found[:, kind])[:CLIMBERS]]
                for _ in range(SWEEPS):
                    before = now.copy()
                    for i in draw.permutation(len(sizes)):
                        many = np.repeat(now, sizes[i], axis=0)
                        many[:, i] = np.tile(np.arange(sizes[i]), len(now))
                        score = scores(many)[:, kind].reshape(len(now), sizes[i])
                        now[:, i] = score.argmax(axis=1)
                    now = np.unique(now, axis=0)
                    if before.shape == now.shape and (before == now).all():
                        break
        worst = [best[kind][0] for kind in range(3)]
        if confirm:
            for kind in range(3):
                if not np.isfinite(worst[kind]):
                    continue
                p, q = injections(best[kind][1][None])
                try:
                    v, loading = self.runpp(p[0], q[0])
                except LoadflowNotConverged:
                    worst[kind] = np.inf
                    continue
                v = v[counted]
                sure = (v_pu[0] - v.min(), v.max() - v_pu[1], loading - loading_percent)[kind]
                assert abs(sure - worst[kind]) < (1e-8, 1e-8, 1e-4)[kind], (kind, sure, worst[kind])
                worst[kind] = float(sure)
        return Findings(worst[0], worst[1], worst[2], tried, violating)


def background_of(site: Site, p_mw: Mapping[str, float] | None = None) -> dict[str, tuple[float, float]]:
    """P and Q of a site's loads by bus; a load that `p_mw` does not name counts with its nominal power."""
    total: dict[str, tuple[float, float]] = {}
    for load in site.loads.values():
        p = (p_mw or {}).get(load.name, load.p_mw)
        q = load.q_mvar * p / load.p_mw if load.p_mw else load.q_mvar
        before = total.get(load.bus, (0.0, 0.0))
        total[load.bus] = before[0] + p, before[1] + q
    return total


def corners_of(site: Site, regions: Mapping[str, Region]) -> list[tuple[str, Array]]:
    """Bus and corners of every device's published region."""
    return [
        (site.devices[name].bus, region.over(("p_mw", "q_mvar")).vertices())
        for name, region in regions.items()
    ]


def attack(
    site: Site,
    net: pandapowerNet | Adversary,
    decision: Decision,
    p_mw: Mapping[str, float] | None = None,
    **options: Any,
) -> Findings:
    """Attack a decision on its site: loads at `p_mw`, everybody anywhere in the regions."""
    adversary = net if isinstance(net, Adversary) else Adversary(net)
    return adversary.attack(
        background_of(site, p_mw),
        corners_of(site, decision.regions),
        site.limits.v_pu,
        site.limits.loading_percent,
        **options,
    )


def together(found: Iterable[Findings]) -> Findings:
    """The worst of several."""
    total = Findings(-np.inf, -np.inf, -np.inf, 0, 0)
    for one in found:
        total = total | one
    return total
