"""The benchmark of agreements counts what it says it counts."""

from __future__ import annotations

import pytest

from benchmarks.partnership import PARTS, central, measured
from tests.partnership_agreements import of_seed
from tests.partnership_feeders import small_case


@pytest.mark.parametrize("offers", [True, False])
def test_its_parts_add_up_and_its_ends_are_the_central_problems(offers: bool) -> None:
    problem = of_seed(small_case(2, 2), 150.0)
    seconds, value = central(problem)
    found = measured(problem, 1e-6, offers)
    assert seconds > 0
    assert found.agreement.upper == pytest.approx(value, rel=1.1e-6)
    assert set(found.parts) <= set(PARTS)
    assert sum(found.parts.values()) <= found.seconds
    assert found.rest >= 0
    assert ("master" in found.parts) == (not offers)
    assert found.parts["upper bound"] > 0
