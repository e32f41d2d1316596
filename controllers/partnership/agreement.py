"""Agreement: the operator's part of the modified Benders decomposition, without input or output.

Source: seed 000, appendix B, with the corrections that its critique calls for (the mode `lift`):

1. Terms: the boxes of what each can exchange.
2. `offers`: at the prices from upstream, or those of the last agreement, each microgrid says what it would
   do, with whole bits. The operator's best answer to all offers is an upper bound, and its multipliers are
   prices of each microgrid's own, at which they are asked again. A cut theta_i >= F_i(lambda) + lambda.x_i
   comes with each offer; together with the derivative of the operator's convex cost C at the last offers x
   these prove a lower bound, and an equilibrium, offers that do not change any more, proves itself:

       C(x') + sum of theta_i >= C(x) - lambda.(x' - x) + sum of (F_i(lambda) + lambda.x'_i)
                               = C(x) + sum of cost_i

   Prices on a feeder depend little on what is exchanged, so the offers are nearly optimal from the first
   round on, and mostly an equilibrium in the second. There is none where a microgrid is indifferent at the
   optimum's prices, or where the convex envelopes of its costs, which is all that prices know, are not tight.
   This stage is none of the seed's; the option `offers` leaves it out.
3. `relaxed`: Benders' decomposition. Price seeds, then the master problem with all cuts, a lower bound; each
   microgrid says by cuts what it can keep of the master's point. Now and then stage 2 at the master's prices.
4. `pattern`: the bits of all microgrids held at their offers' patterns, or at others of their pool, and the
   same loop with cuts that are valid for these: the optimum for the patterns, an upper bound.
5. `lifted`: microgrids that cannot do with whole bits what the relaxation has them do make their bits the
   master's, nameless and in an order of their own. Cuts over (x, z) at fractional bits first, then rounds of
   the mixed-integer master and of the loop with its bits held. Finite, for there are finitely many patterns
   and multipliers, and exact.
6. Settlement: each microgrid confirms what it will exchange and what that costs. The operator's answer to
   what they have confirmed is the upper bound that is reported: nothing of it is estimated.

It ends as soon as (upper - lower) / |upper| <= epsilon, wherever that is. The leader's controller drives it:

    search = agree(...)
    questions = next(search)
    questions = search.send(answers)       # until StopIteration, whose value is the `Agreement`

What becomes of words on the way: see `talk`. A microgrid that stays away for `patience` turns is left out:
what it does is taken as given, the network's problem is solved around it, and the others go on from the cuts
that they have given, which are about themselves alone. If it has settled on something earlier in the
conversation its devices go by that, else it does what it does by itself (`alone`). They end with a point that
they all have confirmed and that keeps the network's limits as long as the absent one does what was assumed.

A turn that is not had: some turns are kept for the settlement, so the search ends in time with the best that
is known by then. Where the last turn comes without notice (`None` is sent), what was confirmed last stands,
and where nothing was, `Late` is raised: everybody is alone. So it is where a solver fails.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias, assert_never

from controllers.contract import Infeasible, Late, SolverFailed
from controllers.partnership import literal, stages
from controllers.partnership.distribution import Conditions
from controllers.partnership.master import Master
from controllers.partnership.options import Options
from controllers.partnership.outcome import Agreement, Exchange, Reason, relative_gap
from controllers.partnership.search import OutOfIterations, Search
from controllers.partnership.talk import Absent, Answers, OutOfTurns, Questions
from controllers.partnership.warm import Warm, kept

CROSSED = 1e-7
"""How far the lower bound may be above the upper one, relatively: what the solvers leave."""

Agreeing: TypeAlias = Generator[Questions, Answers | None, Agreement]


def agree(
    master: Master,
    conditions: Conditions,
    microgrids: Sequence[str],
    options: Options | None = None,
    *,
    alone: Mapping[str, Exchange] = MappingProxyType({}),
    number: int = 0,
    warm: Warm | None = None,
    elapsed: int = 1,
) -> Agreeing:
    """Look for the optimum of the whole by questions and answers.

    Args:
        microgrids: their names, in the order of `Feeder.microgrids`.
        alone: what each exchanges if it stays away and has settled on nothing.
        number: the greatest one that a question has had so far; answers to those are not mistaken for new.
        warm: of an earlier agreement, `elapsed` intervals before.

    Yields:
        Questions by microgrid; none of them depends on the order of answers. Sent are answers, or `None`:
        no turn is left.

    Returns:
        What all present microgrids have confirmed.

    Raises:
        Infeasible: no operation keeps the network's limits, whatever the microgrids do within their terms; or
            none was found, where these leave so little room that what a microgrid misses by rounding counts.
        SolverFailed: a solver ended without a usable answer before anything was confirmed, or since somebody
            has stayed away.
        Late: turns were over before anything was confirmed, or a microgrid stayed away of which nothing is
            known.
    """
    search = Search(master, conditions, microgrids, options or Options(), number, warm, elapsed)
    while True:
        try:
            reason = yield from _looked(search)
            yield from search.settle()
            break
        except Absent as gone:
            for name in gone.names:
                said = search.talk.settled.get(name)
                does = alone.get(name) if said is None else Exchange(said.p, said.q)
                if does is None:
                    raise Late(
                        f"{name} did not answer for {search.options.patience} turns, and what it does by "
                        "itself is not known; give `alone`"
                    ) from gone
                search.leave_out(name, does)
        except OutOfTurns:
            reason = Reason.TURNS
            break
        except SolverFailed:
            if search.standing is None:
                raise
            reason = Reason.SOLVER
            break
    done = search.standing
    if done is None:
        raise Late(f"nothing was confirmed within {search.talk.turns} turns; allow more of them")
    ledger = search.ledger
    lower, upper, epsilon = ledger.lower, done.candidate.upper, search.options.epsilon
    crossed = relative_gap(upper, lower) > max(epsilon, CROSSED)
    if reason is Reason.GAP and (crossed or relative_gap(lower, upper) > epsilon):
        reason = Reason.STALLED  # what was confirmed is not what was offered, or a solver was too far off
    if ledger.alone and reason is Reason.GAP:
        reason = Reason.ABSENT
    return Agreement(
        reason=reason,
        settled=done.said,
        settlements=done.asked,
        patterns={name: point.bits for name, point in done.candidate.points.items()},
        lifted=tuple(name for name, account in ledger.accounts.items() if account.lifted),
        alone=dict(ledger.alone),
        operation=done.candidate.operation,
        lower=ledger.lower,
        upper=done.candidate.upper,
        rounds=tuple(ledger.rounds),
        turns=search.talk.turns,
        number=search.talk.number,
        warm=Warm(
            search.price,
            {
                name: kept(ledger.accounts[name].without_bits, point, search.price)
                for name, point in done.candidate.points.items()
            },
            {name: (at.p_price, at.q_price) for name, at in done.candidate.prices.items()},
        ),
    )


def _looked(search: Search) -> Generator[Questions, Answers | None, Reason]:
    """Why the search ended; it has a candidate then."""
    try:
        match search.options.mode:
            case "lift":
                yield from stages.look(search)
            case "paper" | "augmented" as mode:
                yield from literal.look(search, mode)
            case _:
                assert_never(search.options.mode)
    except OutOfIterations:
        return Reason.ITERATIONS
    except OutOfTurns:
        return Reason.TURNS
    except (
        SolverFailed,
        Infeasible,
    ):  # what is known to be possible is not undone by a solver that denies it
        if search.ledger.best is None:
            raise
        return Reason.SOLVER
    return Reason.GAP if search.met else Reason.STALLED
