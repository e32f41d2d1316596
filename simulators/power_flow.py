"""Two AC power flows of the same grid: pandapower, the reference, and power-grid-model, the fast one.

Both obey `controllers.network.PowerFlow`: injections (cases, buses) in, `Flows` out, one order of buses and
branches. The injections are all there is: what the net's own loads and generators say is ignored. Shunts and
the impedance part of wards stay, they belong to the grid. Regulators stand at their starts; `at` gives the
same grid with them elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandapower as pp
from pandapower.auxiliary import LoadflowNotConverged, pandapowerNet
from pandapower.pypower import idx_bus
from power_grid_model import ComponentType, DatasetType, LoadGenType, PowerGridModel, initialize_array
from scipy import sparse
from scipy.sparse.linalg import splu

from controllers.network import Flows
from controllers.regulators import CapacitorBank, Regulator, standing
from simulators.per_unit import PLACED, Array, PerUnit, per_unit
from simulators.regulated import Elsewhere, at_rest, moved, transformer

MAX_ITERATIONS = 20
"""of Newton's method, for both engines; a solvable case takes three to six"""

TOLERANCE_MVA = 1e-9
"""of the power balance at each bus; above the rounding noise of stiff grids, and small enough for 1e-9 pu"""

SOURCE_SK_VA = 1e20
"""Short-circuit power behind power-grid-model's slack bus, which cannot be ideal; keeps it to 1e-12 pu."""

START = [idx_bus.VM, idx_bus.VA]
"""Columns of pandapower's bus matrix that Newton's method starts from."""

NONE: Mapping[str, Regulator] = MappingProxyType({})


class PandapowerEngine:
    """The power flow of `pandapower.runpp`, on a copy of the net.

    After a first `runpp` without injections pandapower reuses its admittances (`recycle`) and leaves its
    result tables as they are: filling them takes longer than the solution. Flows follow from the voltages by
    `PerUnit.flows`. Each case starts from a fixed-point solution (`_Guess`), so that Newton's method has
    little left to do and the answer does not depend on the cases before. A case that fails so is tried once
    more by a plain `runpp`.

    Raises:
        NetworkRefused: see `per_unit`.
    """

    def __init__(self, net: pandapowerNet, regulators: Mapping[str, Regulator] = NONE) -> None:
        net = at_rest(net, regulators)
        self._rest = model = per_unit(net)
        self.buses = model.buses
        self.branches = _reported(model)
        self._shown = _shown(model)
        self._net_at_rest = work = copy.deepcopy(net)
        work.user_pf_options = {}
        for table in PLACED:
            if table == "ward":
                work.ward[["ps_mw", "qs_mvar"]] = 0.0
            elif table in work:
                work[table] = work[table].iloc[0:0]
        self._at = np.array([int(bus) for bus in self.buses])
        pp.create_sgens(work, self._at, p_mw=0.0, q_mvar=0.0)
        self._alone = len(model.v_base_kv) == 1
        self._regulators = regulators
        self._elsewhere: Elsewhere[PandapowerEngine] = Elsewhere()
        start = standing(regulators, {})
        self._move(start)
        self._elsewhere.at(start, lambda: self)

    def _move(self, positions: Mapping[str, int]) -> None:
        self._model = moved(self._rest, self._regulators, positions)
        self._net = _edited(self._net_at_rest, self._regulators, positions)
        self._guess: _Guess | None = None

    def at(self, positions: Mapping[str, int]) -> PandapowerEngine:
        """See `controllers.network.PowerFlow`."""
        stands = standing(self._regulators, positions)

        def make() -> PandapowerEngine:
            other = copy.copy(self)
            other._move(stands)
            return other

        return self._elsewhere.at(stands, make)

    def solve(self, p_mw: Array, q_mvar: Array) -> Flows:
        """Solve one case after the other; see `controllers.network.PowerFlow`."""
        p_mw, q_mvar = _checked(self.buses, p_mw, q_mvar)
        model = self._model
        flows = _missing(len(p_mw), len(self.buses), len(self.branches))
        v = np.full((len(p_mw), len(model.v_base_kv)), np.nan, dtype=np.complex128)
        for case, (p, q) in enumerate(zip(p_mw, q_mvar, strict=True)):
            if self._run(p, q):
                flows.converged[case] = True
                v[case] = self._voltages()
        _fill(flows, model, self._shown, v)
        return flows

    def _run(self, p_mw: Array, q_mvar: Array) -> bool:
        """Solve one case on the copy; whether it converged."""
        if self._alone:
            # Without a second node pandapower solves nothing, so there is nothing to reuse.
            self._inject(p_mw, q_mvar)
            return self._runpp()
        if self._guess is None:
            self._inject(np.zeros(len(self.buses)), np.zeros(len(self.buses)))
            if not self._runpp():
                return False
            self._guess = _Guess(self._net, self._at)
            self._net._options["only_v_results"] = True
        self._inject(p_mw, q_mvar)
        self._guess.write(self._net, p_mw + 1j * q_mvar)
        if self._runpp(recycle={"bus_pq": True, "gen": False, "trafo": False}):
            return True
        # What pandapower keeps for reuse holds the voltages that failed: begin afresh.
        self._guess = None
        return self._runpp()

    def _inject(self, p_mw: Array, q_mvar: Array) -> None:
        self._net.sgen["p_mw"] = p_mw
        self._net.sgen["q_mvar"] = q_mvar

    def _runpp(self, **options: Any) -> bool:
        try:
            # numpy reports the overflow of a case that diverges
            with np.errstate(all="ignore"):
                pp.runpp(
                    self._net,
                    numba=False,
                    max_iteration=MAX_ITERATIONS,
                    tolerance_mva=TOLERANCE_MVA,
                    calculate_voltage_angles=True,
                    trafo_loading="current",
                    **options,
                )
        except LoadflowNotConverged:
            return False
        return bool(self._net._ppc["success"])

    def _voltages(self) -> npt.NDArray[np.complex128]:
        """(nodes,) of the case solved last."""
        if self._alone:
            model = self._model
            return np.full(1, model.slack_v_pu * np.exp(1j * np.deg2rad(model.slack_degree)))
        return np.asarray(self._net._ppc["internal"]["V"])


class _Guess:
    """Voltages to start a case from: the fixed point of V = V_0 + Y^-1 conj(S / V) without the slack bus.

    V_0 are the voltages without injections, which the net holds as the result of its last `runpp`.
    """

    def __init__(self, net: pandapowerNet, buses: npt.NDArray[np.int64]) -> None:
        internal = net._ppc["internal"]
        start = internal["bus"][:, START]
        self._no_load = start[:, 0] * np.exp(1j * np.deg2rad(start[:, 1]))
        self._free = np.setdiff1d(np.arange(len(start)), internal["ref"])
        self._lu = splu(internal["Ybus"][self._free][:, self._free].tocsc())
        self._onto = _onto(net._pd2ppc_lookups["bus"][buses], len(start), 1 / net.sn_mva)

    def write(self, net: pandapowerNet, s_mva: npt.NDArray[np.complex128]) -> None:
        """Put the voltages for injections (buses,) where pandapower starts from."""
        v = self._no_load.copy()
        s, v_0 = np.asarray(s_mva @ self._onto)[self._free], v[self._free]
        at, change = v_0, 1.0
        with np.errstate(all="ignore"):
            for _ in range(40):
                last, at = at, v_0 + self._lu.solve((s / at).conj())
                change = float(abs(at - last).max(initial=0.0))
                if not 1e-12 < change < 1.0:
                    break
        if change < 0.1:
            v[self._free] = at
        bus = net._ppc["bus"]
        bus[: len(v), START[0]], bus[: len(v), START[1]] = abs(v), np.rad2deg(np.angle(v))


class PowerGridModelEngine:
    """Newton's method of power-grid-model on the per-unit equations that pandapower's conversion gives.

    All cases of a call are one batch. Flows follow from the voltages by `PerUnit.flows`.

    Raises:
        NetworkRefused: see `per_unit`.
    """

    def __init__(self, net: pandapowerNet, regulators: Mapping[str, Regulator] = NONE) -> None:
        self._rest = model = per_unit(at_rest(net, regulators))
        self.buses = model.buses
        self.branches = _reported(model)
        self._shown = _shown(model)
        self._onto = _onto(model.node, len(model.v_base_kv), 1e6)  # from MW and buses to W and nodes
        self._regulators = regulators
        self._elsewhere: Elsewhere[PowerGridModelEngine] = Elsewhere()
        start = standing(regulators, {})
        self._move(start)
        self._elsewhere.at(start, lambda: self)

    def _move(self, positions: Mapping[str, int]) -> None:
        self._model = moved(self._rest, self._regulators, positions)
        self._core = PowerGridModel(_input(self._model))

    def at(self, positions: Mapping[str, int]) -> PowerGridModelEngine:
        """See `controllers.network.PowerFlow`."""
        stands = standing(self._regulators, positions)

        def make() -> PowerGridModelEngine:
            other = copy.copy(self)
            other._move(stands)
            return other

        return self._elsewhere.at(stands, make)

    def solve(self, p_mw: Array, q_mvar: Array) -> Flows:
        """Solve all cases in one batch; see `controllers.network.PowerFlow`."""
        p_mw, q_mvar = _checked(self.buses, p_mw, q_mvar)
        model, cases = self._model, len(p_mw)
        flows = _missing(cases, len(self.buses), len(self.branches))
        if not cases:
            return flows
        update = {"p_specified": -p_mw @ self._onto, "q_specified": -q_mvar @ self._onto}
        out = self._core.calculate_power_flow(
            update_data={ComponentType.sym_load: update},
            output_component_types={ComponentType.node: {"u_pu", "u_angle"}},
            error_tolerance=1e-10,
            max_iterations=MAX_ITERATIONS,
            continue_on_batch_error=True,
            decode_error=False,
        )
        failed = self._core.batch_error
        flows.converged[:] = True
        if failed is not None:
            flows.converged[failed.failed_scenarios] = False
        node: Any = out[ComponentType.node]
        with np.errstate(invalid="ignore"):  # a case without solution holds anything
            v = node["u_pu"] * np.exp(1j * node["u_angle"])
        v[~flows.converged] = np.nan
        _fill(flows, model, self._shown, v)
        return flows


def _edited(
    net: pandapowerNet, regulators: Mapping[str, Regulator], positions: Mapping[str, int]
) -> pandapowerNet:
    """A net at rest with its regulators at `positions`; a copy unless there are none."""
    if not regulators:
        return net
    net = copy.deepcopy(net)
    for name, regulator in regulators.items():
        position = positions[name]
        if isinstance(regulator, CapacitorBank):
            pp.create_shunt(net, int(regulator.bus), q_mvar=-position * regulator.q_mvar)
        elif (index := transformer(regulator)) is not None:
            # The same as by the tap's own columns, whichever of them the net has.
            net.trafo.loc[index, "vn_hv_kv"] /= regulator.ratio(position)
        else:
            net.ext_grid["vm_pu"] *= regulator.ratio(position)
    return net


def _input(model: PerUnit) -> dict[ComponentType, Any]:
    """The equations as power-grid-model's components; identifiers count through all of them."""
    nodes, branches = len(model.v_base_kv), len(model.branches)
    v_base = model.v_base_kv * 1e3
    node = initialize_array(DatasetType.input, ComponentType.node, nodes)
    node["id"], node["u_rated"] = np.arange(nodes), v_base

    # Its generic branch has the ideal transformer at the first side and impedances referred to the second.
    z_base = v_base[model.to_node] ** 2 / (model.s_base_mva * 1e6)
    branch = initialize_array(DatasetType.input, ComponentType.generic_branch, branches)
    branch["id"] = nodes + np.arange(branches)
    branch["from_node"], branch["to_node"] = model.from_node, model.to_node
    branch["from_status"] = branch["to_status"] = 1
    branch["r1"], branch["x1"] = model.r * z_base, model.x * z_base
    branch["g1"], branch["b1"] = 2 * model.g_from / z_base, 2 * model.b_from / z_base
    branch["k"], branch["theta"] = model.tap, np.deg2rad(model.shift_degree)

    # What a transformer's second side has more of than its first is a shunt there.
    y = model.shunt_g + 1j * model.shunt_b
    np.add.at(y, model.to_node, model.g_to - model.g_from + 1j * (model.b_to - model.b_from))
    y *= model.s_base_mva * 1e6 / v_base**2
    at = np.flatnonzero(y)
    shunt = initialize_array(DatasetType.input, ComponentType.shunt, len(at))
    shunt["id"] = nodes + branches + np.arange(len(at))
    shunt["node"], shunt["status"] = at, 1
    shunt["g1"], shunt["b1"], shunt["g0"], shunt["b0"] = y[at].real, y[at].imag, 0.0, 0.0

    source = initialize_array(DatasetType.input, ComponentType.source, 1)
    source["id"] = nodes + branches + len(at)
    source["node"], source["status"], source["sk"] = model.slack_node, 1, SOURCE_SK_VA
    source["u_ref"], source["u_ref_angle"] = model.slack_v_pu, np.deg2rad(model.slack_degree)

    load = initialize_array(DatasetType.input, ComponentType.sym_load, nodes)
    load["id"] = nodes + branches + len(at) + 1 + np.arange(nodes)
    load["node"], load["status"], load["type"] = np.arange(nodes), 1, LoadGenType.const_power
    load["p_specified"] = load["q_specified"] = 0.0
    return {
        ComponentType.node: node,
        ComponentType.generic_branch: branch,
        ComponentType.shunt: shunt,
        ComponentType.source: source,
        ComponentType.sym_load: load,
    }


def _onto(node: npt.NDArray[np.int64], nodes: int, factor: float) -> sparse.csr_array:
    """(buses, nodes) what turns injections at buses into those at nodes, several buses to a node."""
    buses = np.arange(len(node))
    return sparse.csr_array((np.full(len(node), factor), (buses, node)), shape=(len(node), nodes))


def _shown(model: PerUnit) -> list[int]:
    """Positions of the branches that are reported."""
    return [i for i, name in enumerate(model.branches) if not name.startswith("switch:")]


def _reported(model: PerUnit) -> tuple[str, ...]:
    """Lines, then transformers; a switch with an impedance is no branch of the operator's."""
    return tuple(name for name in model.branches if not name.startswith("switch:"))


def _fill(flows: Flows, model: PerUnit, shown: list[int], v: npt.NDArray[np.complex128]) -> None:
    """Answers for node voltages (cases, nodes), NaN where a case has no solution."""
    power, loading = model.flows(v)
    flows.v_pu[:] = abs(v)[:, model.node]
    flows.p_mw[:] = power.real[:, shown]
    flows.q_mvar[:] = power.imag[:, shown]
    flows.loading_percent[:] = loading[:, shown]


def _missing(cases: int, buses: int, branches: int) -> Flows:
    """Answers without one case solved."""
    return Flows(
        np.zeros(cases, dtype=np.bool_),
        np.full((cases, buses), np.nan),
        *(np.full((cases, branches), np.nan) for _ in range(3)),
    )


def _checked(buses: tuple[str, ...], p_mw: Array, q_mvar: Array) -> tuple[Array, Array]:
    """Both as (cases, buses).

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    for name, values in (("p_mw", p_mw), ("q_mvar", q_mvar)):
        if np.ndim(values) != 2 or np.shape(values) != (len(p_mw), len(buses)):
            raise ValueError(
                f"power flow: {name} has shape {np.shape(values)}, but (cases, buses) is "
                f"({len(p_mw)}, {len(buses)})"
            )
        if not np.isfinite(values).all():
            case, bus = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(
                f"power flow: {name} of case {case} at bus {buses[bus]} is {values[case, bus]}; give every "
                "bus a finite injection"
            )
    return np.asarray(p_mw, dtype=float), np.asarray(q_mvar, dtype=float)
