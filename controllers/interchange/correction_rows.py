"""CorrectionRows: how much of the predicted interchange a network can carry, as rows of a cone program.

DPICC of seed 003, reconstructed from its text and nomenclature. Implements (A11)-(A15) in three copies of the
network, (A16) by the lossless twin, and (A17)-(A20).

| symbol       | here                     | meaning                                                 | unit |
|--------------|--------------------------|---------------------------------------------------------|------|
| P, Q         | `P_base`, ... `Q_dn`     | flows of each copy, into the impedances                 | MVA  |
| l, v         | `l_base`, ... `v_dn`     | squared currents [MVA^2] and voltages of each copy      | pu^2 |
| P^c          | `c`                      | corrected schedule of each microgrid                    | MW   |
| P-hat up, dn | `c + a`, `c - e`         | available interchange capability                        | MW   |
| q            | `q`                      | reactive power of each microgrid, one for all copies    | Mvar |
| d, c         | `dis`, `cha`             | discharging and charging of each battery                | MW   |
| Q_B, E       | `q_b`, `E`               | its reactive power; its energy at the interval's end    | MWh  |
| P_G          | `_imported`              | import of a copy; with a tilde that of its lossless twin | MW  |
| r_G          | `g_up`, `g_dn`           | spinning reserve of the slack bus                       | MW   |
| r_B          | `b_up`, `b_dn`           | the same of each battery                                | MW   |
| Q_most       | `q_most`                 | greatest |Q| that a rated branch can have               | Mvar |
| mu           | `mu_loss`                | what losses add to a change of exchange                 | 1    |

Where this is simpler than its statement, and why it is the same:

- The lossless twin is no further set of flows: its voltages and import are affine in the injections.
- Voltages rise with injections and fall with currents (`BranchFlow` refuses other networks), so the twin of
  `up` bounds the voltages of all three copies from above: that of `base`, and the upper limit of v in (A15),
  are implied.
- Limits of the current at a transformer's other side are referred to its impedance.

Where it differs, since the relaxation cheats otherwise:

- A limit of loading is no bound on l: under reverse flow the relaxation would keep it by burning power
  before the branch. The true P lies between that of the lossless twin and the relaxed one, and so does Q, so

      max(P_dn, 0)^2 + Q_most^2 <= l_max v_dn,  P~_up^2 + Q_most^2 <= l_max v_up,  Q_most >= Q_up, Q_dn, -Q~

  which no excess of current makes easier. Where one microgrid exports and the others do not, its branch has
  the flow of `up` at a lower voltage; that is left to the check.

With `isolation_secure` the copy `up` injects max(P-hat up, 0) and `dn` min(P-hat dn, 0), and the same of q,
since a microgrid that leaves takes its reactive power with it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.devices import SIDES, Battery
from controllers.interchange.branch_flow import BranchFlow
from controllers.interchange.conic_rows import ConicRows, Terms, plus, through
from controllers.interchange.question import Options
from controllers.network import Limits

Array = npt.NDArray[np.float64]

COPIES = ("base", "up", "dn")

SHORT = ("short_v", "short_l", "short_g", "short_r")
"""How far an elastic program exceeds voltages [pu^2], currents [MVA^2], the import and the reserve [MW]."""

CAPPED = float(np.cos(np.pi / SIDES))
"""Of a battery's rating, what every direction of its polygon allows."""


class CorrectionRows:
    """The rows of a network, for right-hand sides that a step fills; see the module's text.

    Args:
        flow: the network.
        limits: of voltages and loadings.
        buses: of the microgrids, N.
        batteries: the network operator's own, B.
        hours: length of an interval.
        intervals: H.
        elastic: whether every interval may exceed its limits, each kind of them by a variable of `SHORT`.

    Raises:
        KeyError: a bus that the network does not have.
    """

    def __init__(
        self,
        flow: BranchFlow,
        limits: Limits,
        buses: tuple[str, ...],
        batteries: tuple[Battery, ...],
        hours: float,
        intervals: int,
        options: Options,
        *,
        elastic: bool = False,
    ) -> None:
        self.elastic = elastic
        self.flow, self.limits, self.options = flow, limits, options
        self.batteries, self.hours, self.H, self.N = batteries, hours, intervals, len(buses)
        network = flow.network
        self.coned = np.flatnonzero(flow.z2 > 0)  # a switch has no losses, so its current is no variable
        self.rated = np.flatnonzero(np.isfinite(network.rating_mva))
        side = np.maximum(np.maximum(flow.t, 1 / flow.s), 1.0)
        rating = network.rating_mva[self.rated] * limits.loading_percent / 100
        self.ell_max = rating**2 / side[self.rated]
        self.losses = np.where(flow.r > 0, flow.r, 0.1 * flow.x)[self.coned]
        self.at_microgrids, self.at_batteries = flow.at(buses), flow.at([b.bus for b in batteries])
        self.microgrids_at_slack = sparse.csr_array((np.array(buses) == network.slack).astype(float)[None])
        self.batteries_at_slack = sparse.csr_array(
            np.array([float(b.bus == network.slack) for b in batteries]).reshape(1, -1)
        )
        self.mg_response = flow.responses(buses)
        self.bat_response = flow.responses([b.bus for b in batteries])
        self.rows = ConicRows(self._sizes(), intervals)
        for copy in COPIES:
            self._physics(copy)
        self._bounds()
        self._security()
        self._reserves()
        self._storage(hours)
        if elastic:
            for name in SHORT:
                self.rows.add(f"{name} least", "nonnegative", {name: -np.ones((1, 1))}, 0.0)

    def _sizes(self) -> dict[str, int]:
        n, m, N, B = self.flow.n, len(self.coned), self.N, len(self.batteries)
        sizes = {f"{x}_{copy}": m if x == "l" else n for copy in COPIES for x in ("P", "Q", "l", "v")}
        sizes |= dict.fromkeys(("c", "a", "e", "q", "plus", "minus"), N)
        if self.options.isolation_secure:
            sizes |= dict.fromkeys(("p_out", "q_out", "p_in", "q_in"), N)
        if self.options.share == "fair":
            sizes |= dict.fromkeys(("lost_up", "lost_dn"), N)
        sizes |= dict.fromkeys(("dis", "cha", "q_b", "E", "E_short", "b_up", "b_dn"), B)
        if len(self.rated):
            sizes |= dict.fromkeys(("q_most", "p_ahead"), len(self.rated))
        if self.elastic:
            sizes |= dict.fromkeys(SHORT, 1)
        return sizes | dict.fromkeys(("g_up", "g_dn"), 1)

    def _guard(self, name: str, terms: Terms, right: Array | float, short: str) -> None:
        """Rows of a limit, which an elastic program may exceed by `short`."""
        if self.elastic:
            rows = next(iter(terms.values())).shape[0]
            terms = {**terms, short: -np.ones((rows, 1))}
        self.rows.add(name, "nonnegative", terms, right)

    def _exchange(self, copy: str) -> tuple[Terms, Terms]:
        """P (N,) and Q (N,) that the microgrids inject in a copy."""
        one = sparse.eye_array(self.N, format="csr")
        if copy == "base":
            return {"c": one}, {"q": one}
        if self.options.isolation_secure:
            way = "out" if copy == "up" else "in"
            return {f"p_{way}": one}, {f"q_{way}": one}
        return ({"c": one, "a": one} if copy == "up" else {"c": one, "e": -one}), {"q": one}

    def _battery(self) -> tuple[Terms, Terms]:
        one = sparse.eye_array(len(self.batteries), format="csr")
        return {"dis": one, "cha": -one}, {"q_b": one}

    def _physics(self, copy: str) -> None:
        flow, rows = self.flow, self.rows
        n, at = flow.n, self.coned
        P, Q, ell, v = (f"{x}_{copy}" for x in ("P", "Q", "l", "v"))
        one = sparse.eye_array(n, format="csr")
        onto = sparse.csr_array((np.ones(len(at)), (at, np.arange(len(at)))), shape=(n, len(at)))
        (mg_p, mg_q), (bat_p, bat_q) = self._exchange(copy), self._battery()

        def times(values: Array) -> sparse.dia_array:
            return sparse.diags_array(values)

        p = plus((1.0, through(self.at_microgrids, mg_p)), (1.0, through(self.at_batteries, bat_p)))
        q = plus((1.0, through(self.at_microgrids, mg_q)), (1.0, through(self.at_batteries, bat_q)))
        balance = {P: one - flow.feeds, ell: -times(flow.r) @ onto, v: -times(flow.g)}
        rows.add(f"p {copy}", "zero", plus((1.0, balance), (1.0, p)), 0.0)  # (A11)
        balance = {Q: one - flow.feeds, ell: -times(flow.x) @ onto, v: times(flow.b)}
        rows.add(f"q {copy}", "zero", plus((1.0, balance), (1.0, q)), 0.0)  # (A12)
        drop = {
            v: one - times(flow.s * flow.t) @ flow.feeds.T,
            P: times(2 * flow.s * flow.r),
            Q: times(2 * flow.s * flow.x),
            ell: -times(flow.s * flow.z2) @ onto,
        }
        rows.add(f"v {copy}", "zero", drop, 0.0)  # (A13)
        # (l + v, 2P, 2Q, l - v) in the second-order cone, with v before the impedance
        k = len(at)
        place = [
            sparse.csr_array((np.ones(k), (4 * np.arange(k) + j, np.arange(k))), shape=(4 * k, k))
            for j in range(4)
        ]
        pick = onto.T
        before = pick @ times(flow.t) @ flow.feeds.T
        cone = {
            ell: -(place[0] + place[3]),
            v: (place[3] - place[0]) @ before,
            P: -2 * place[1] @ pick,
            Q: -2 * place[2] @ pick,
        }
        rows.add(f"cone {copy}", "second", cone, 0.0, cone=4)  # (A14)
        self._guard(f"low {copy}", {v: -one}, 0.0, "short_v")  # (A15)

    def _bounds(self) -> None:
        """(A17), and how far the schedule is moved."""
        rows, one = self.rows, sparse.eye_array(self.N, format="csr")
        rows.add("high", "nonnegative", {"c": one, "a": one}, 0.0)  # (A17)
        rows.add("least", "nonnegative", {"c": -one, "e": one}, 0.0)  # (A17)
        rows.add("adjust up", "nonnegative", {"a": -one}, 0.0)
        rows.add("adjust dn", "nonnegative", {"e": -one}, 0.0)
        rows.add("moved", "zero", {"c": one, "plus": -one, "minus": one}, 0.0)
        rows.add("moved up", "nonnegative", {"plus": -one}, 0.0)
        rows.add("moved dn", "nonnegative", {"minus": -one}, 0.0)
        rows.add("q high", "nonnegative", {"q": one}, 0.0)
        rows.add("q low", "nonnegative", {"q": -one}, 0.0)
        if self.options.isolation_secure:
            for name, terms in (("p", {"c": one, "a": one}), ("q", {"q": one})):
                rows.add(f"{name} out", "nonnegative", plus((1.0, terms), (-1.0, {f"{name}_out": one})), 0.0)
                rows.add(f"{name} out left", "nonnegative", {f"{name}_out": -one}, 0.0)
            for name, terms in (("p", {"c": one, "e": -one}), ("q", {"q": one})):
                rows.add(f"{name} in", "nonnegative", plus((-1.0, terms), (1.0, {f"{name}_in": one})), 0.0)
                rows.add(f"{name} in left", "nonnegative", {f"{name}_in": one}, 0.0)
        if self.options.share == "fair":
            rows.add("lost up", "zero", {"c": one, "a": one, "lost_up": one}, 0.0)
            rows.add("lost dn", "zero", {"c": -one, "e": one, "lost_dn": one}, 0.0)
            rows.square("lost_up")
            rows.square("lost_dn")

    def _twin(self, copy: str, of: str) -> Terms:
        """What injections add to the lossless `v` (n,), `P`, `Q` (n,) or `import_mw` (1,) of a copy."""
        parts = []
        pairs = ((self._exchange(copy), self.mg_response), (self._battery(), self.bat_response))
        for injections, response in pairs:
            parts += [
                (1.0, through(gain, injection))
                for gain, injection in zip(getattr(response, of), injections, strict=True)
            ]
        return plus(*parts, *(self._at_slack(copy) if of == "import_mw" else []))

    def _at_slack(self, copy: str) -> list[tuple[float, Terms]]:
        """What microgrids and batteries at the slack bus itself take off the import."""
        p, bat = self._exchange(copy)[0], self._battery()[0]
        return [(-1.0, through(self.microgrids_at_slack, p)), (-1.0, through(self.batteries_at_slack, bat))]

    def _imported(self, copy: str) -> Terms:
        """The import (1,) of a copy, constants left out."""
        roots = sparse.csr_array(self.flow.fed_by_slack.astype(float)[None])
        return plus((1.0, {f"P_{copy}": roots}), *self._at_slack(copy))

    def _loadings(self) -> None:
        """Loadings by the most that the true flows can be: backwards in `up`, forwards in `dn`."""
        flow, at = self.flow, self.rated
        k = len(at)
        rows = np.arange(k)
        one = sparse.eye_array(k, format="csr")
        chosen = sparse.csr_array((np.ones(k), (rows, at)), shape=(k, flow.n))
        place = [sparse.csr_array((np.ones(k), (4 * rows + j, rows)), shape=(4 * k, k)) for j in range(4)]
        before = chosen @ sparse.diags_array(flow.t) @ flow.feeds.T
        for copy in ("up", "dn"):
            relaxed = {f"Q_{copy}": chosen, "q_most": -one}
            self.rows.add(f"q most {copy}", "nonnegative", relaxed, 0.0)
            twin = plus((-1.0, through(chosen, self._twin(copy, "Q"))), (-1.0, {"q_most": one}))
            self.rows.add(f"q most twin {copy}", "nonnegative", twin, 0.0)
        self.rows.add("p ahead", "nonnegative", {"P_dn": chosen, "p_ahead": -one}, 0.0)
        self.rows.add("p ahead least", "nonnegative", {"p_ahead": -one}, 0.0)
        backwards = through(chosen, self._twin("up", "P"))
        for copy, power in (("up", backwards), ("dn", {"p_ahead": one})):
            cone = plus(
                (1.0, {f"v_{copy}": (place[3] - place[0]) @ before}),
                (-2.0, through(place[1], power)),
                (-2.0, {"q_most": place[2]}),
            )
            if self.elastic:
                cone["short_l"] = -(place[0] + place[3]) @ np.ones((k, 1))
            self.rows.add(f"loading {copy}", "second", cone, 0.0, cone=4)  # (A15) (A16)

    def _security(self) -> None:
        rows, options = self.rows, self.options
        one = sparse.csr_array(np.ones((1, 1)))
        self._guard("twin voltage", self._twin("up", "v"), 0.0, "short_v")  # (A16)
        if len(self.rated):
            self._loadings()
        if options.import_mw is not None:
            down = plus((-1.0, self._twin("base", "import_mw")), (1.0, {"g_dn": one}))
            self._guard("twin import base", down, 0.0, "short_g")  # (A16)
            up = plus((-1.0, self._twin("up", "import_mw")))
            self._guard("twin import up", up, 0.0, "short_g")  # (A16)
            most = plus((1.0, self._imported("base")), (1.0, {"g_up": one}))
            self._guard("import base", most, 0.0, "short_g")  # (A18)
            self._guard("import dn", self._imported("dn"), 0.0, "short_g")  # (A18)
        for k, name in enumerate(("g_up", "g_dn")):
            if options.reserve_mw is None:  # nothing asks for it
                rows.add(name, "zero", {name: one}, 0.0)
                continue
            rows.add(f"{name} least", "nonnegative", {name: -one}, 0.0)  # (A18)
            rows.add(f"{name} most", "nonnegative", {name: one}, options.reserve_mw[k])  # (A18)

    def _reserves(self) -> None:
        if self.options.reserve_mw is None:
            return
        N, B = self.N, len(self.batteries)
        one, all_mg, all_b = np.ones((1, 1)), np.ones((1, N)), np.ones((1, B))
        up: Terms = {"g_up": -one, "b_up": -all_b}
        down: Terms = {"g_dn": -one, "b_dn": -all_b}
        if self.options.reserve_margin == "rigorous":
            more = plus((1.0, self._imported("dn")), (-1.0, self._twin("base", "import_mw")))
            less = plus((1.0, self._imported("base")), (-1.0, self._twin("up", "import_mw")))
        else:
            raised = plus((1.0, self._exchange("up")[0]), (-1.0, self._exchange("base")[0]))
            lowered = plus((1.0, self._exchange("base")[0]), (-1.0, self._exchange("dn")[0]))
            more = plus((1 + self.options.mu_loss, through(all_mg, lowered)))
            less = plus((1 + self.options.mu_loss, through(all_mg, raised)))
        self._guard("reserve up", plus((1.0, more), (1.0, up)), 0.0, "short_r")  # (A20)
        self._guard("reserve down", plus((1.0, less), (1.0, down)), 0.0, "short_r")  # (A20)

    def _storage(self, hours: float) -> None:
        rows, B = self.rows, len(self.batteries)
        if not B:
            return
        one = sparse.eye_array(B, format="csr")
        each = self.batteries
        into, out = (np.array([b.efficiency[k] for b in each]) for k in (0, 1))
        p_max, e_max, e_min = (
            np.array([getattr(b, x) for b in each]) for x in ("p_mw", "e_mwh", "e_min_mwh")
        )
        lasting = hours if self.options.reserve_h is None else self.options.reserve_h
        change = {
            "E": one,
            "cha": -hours * sparse.diags_array(into),
            "dis": hours * sparse.diags_array(1 / out),
        }
        rows.add("energy", "zero", change, 0.0, before={"E": -one})  # (A19)
        for name in ("dis", "cha"):
            rows.add(f"{name} least", "nonnegative", {name: -one}, 0.0)  # (A19)
            rows.add(f"{name} most", "nonnegative", {name: one}, p_max)  # (A19)
        for name in ("b_up", "b_dn", "E_short"):
            rows.add(f"{name} least", "nonnegative", {name: -one}, 0.0)  # (A19)
        power: Terms = {"dis": one, "cha": -one}
        rows.add("b_up most", "nonnegative", plus((1.0, power), (1.0, {"b_up": one})), p_max)  # (A19)
        rows.add("b_dn most", "nonnegative", plus((-1.0, power), (1.0, {"b_dn": one})), p_max)  # (A19)
        for name in ("b_up", "b_dn"):  # none where the energy is already outside its bounds
            rows.add(f"{name} there", "nonnegative", {name: one}, 2 * p_max)
        give, take = lasting * sparse.diags_array(1 / out), lasting * sparse.diags_array(into)
        rows.add("E least", "nonnegative", {"E": -one, "b_up": give}, -e_min)  # (A19)
        rows.add("E most", "nonnegative", {"E": one, "b_dn": take}, e_max)  # (A19)
        rows.add("E last", "nonnegative", {"E": -one, "E_short": -one}, -e_min)
        place = [
            sparse.csr_array((np.ones(B), (3 * np.arange(B) + j, np.arange(B))), shape=(3 * B, B))
            for j in range(3)
        ]
        right = np.zeros((B, 3))
        right[:, 0] = [CAPPED * b.s_mva for b in each]
        for name, sign in (("b_up", 1.0), ("b_dn", -1.0)):
            cone = plus(
                (-1.0, through(place[1], power)), (-sign, {name: place[1]}), (-1.0, {"q_b": place[2]})
            )
            rows.add(f"{name} rating", "second", cone, right.ravel(), cone=3)  # (A19)
