"""What the tests of active-power ranges share: sites, every corner, other units and orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from controllers import Limits, Site
from controllers.devices import Battery
from controllers.envelopes.method import EnvelopeMethod, Room
from tests.envelope_cases import random_tree, s1, s2, s3, seen
from tests.test_equal_ranges import random_site

Array = npt.NDArray[np.float64]

TABLE = {
    "P-E": ((10.85, 0.889), (1.19, 2.08), (5.13, 1.02)),
    "P-WE": ((12.03, 4.56), (2.84, 4.92), (9.02, 4.42)),
    "P-SE": ((12.03, 1.77), (1.95, 3.75), (6.76, 1.82)),
}
"""Export and import [MW] in S1, S2 and S3, as another implementation measured them, to three digits."""


@dataclass
class Found:
    """A method's answer at one site; (devices,) each."""

    method: EnvelopeMethod
    room: Room
    low: Array
    high: Array
    binding: tuple[str | None, ...]

    @property
    def gamma(self) -> Array:
        return self.room.gamma

    @property
    def A(self) -> Array:
        return self.method.rows.A

    def way(self, k: int) -> tuple[Array, Array]:
        """A direction's coefficients (rows, devices), not negative, and its ranges; 0 is export."""
        return (np.maximum(self.A, 0), self.high) if k == 0 else (np.maximum(-self.A, 0), -self.low)


def found(method: EnvelopeMethod, scale: float = 1.0, W: Array | None = None) -> Found:
    room = method.room(seen(method.site, scale))
    if W is not None:
        room = replace(room, W=W)
    shapes = method.share(room.W, room.gamma)
    return Found(method, room, *shapes.ranges_at_zero, shapes.binding)


@cache
def feeders() -> tuple[Site, ...]:
    """The three states of the 33-bus feeder."""
    return s1(), s2(), s3()


def trees(count: int) -> list[Site]:
    """Random radial feeders of 5 to 40 buses and 2 to 8 devices, one sign in every row."""
    return [_tree(seed) for seed in range(count)]


@cache
def _tree(seed: int) -> Site:
    rng = np.random.default_rng(1000 + seed)
    return random_tree(seed, int(rng.integers(5, 40)), int(rng.integers(2, 9)), float(rng.uniform(0, 0.95)))


def meshed(count: int) -> list[Site]:
    """Random sites with rows of both signs."""
    wide = Limits((0.8, 1.2), 100.0)
    return [replace(random_site(seed, charging=0.1), limits=wide) for seed in range(count)]


def in_kw(site: Site) -> Site:
    """The same site where every number that stands for MW, Mvar or MVA counts kW, kvar or kVA."""
    network = site.network
    k = 1000.0
    thousandfold = {
        name: replace(d, p_mw=k * d.p_mw, s_mva=k * d.s_mva, e_mwh=k * d.e_mwh, e_start_mwh=k * d.e_start_mwh)
        for name, d in site.devices.items()
        if isinstance(d, Battery)
    }
    assert len(thousandfold) == len(site.devices)
    return replace(
        site,
        network=replace(network, rating_mva=k * network.rating_mva, s_base_mva=k * network.s_base_mva),
        devices=thousandfold,
        loads={n: replace(x, p_mw=k * x.p_mw, q_mvar=k * x.q_mvar) for n, x in site.loads.items()},
    )


def reordered(site: Site, order: Sequence[int]) -> Site:
    names = list(site.devices)
    return replace(site, devices={names[i]: site.devices[names[i]] for i in order})


def check_table(cls: Any) -> None:
    for site, (export, imports) in zip(feeders(), TABLE[cls.acronym], strict=True):
        answer = found(cls(site))
        # three digits each, of which the last may have been cut instead of rounded
        assert answer.high.sum() == pytest.approx(export, rel=0.005)
        assert -answer.low.sum() == pytest.approx(imports, rel=0.005)


def check_safe(answer: Found) -> None:
    """Whatever the others do, everybody may use its range; the rows named are full and the device's own."""
    low, high, W = answer.low, answer.high, answer.room.W
    assert (low <= 0).all()
    assert not np.signbit(low[low == 0]).any()
    assert (high >= 0).all()
    assert len(low) <= 12
    corners = np.array(list(product(*zip(low, high, strict=True))))
    assert (corners @ answer.A.T <= W + 1e-9 * (1 + W)).all()
    names = np.array(answer.method.rows.names)
    (A_up, up), (A_down, down) = answer.way(0), answer.way(1)
    both = W - A_up @ up - A_down @ down
    for i, text in enumerate(answer.binding):
        if text is None:
            continue
        export, _, rest = text.partition(", import by ")
        imports, _, together = rest.partition(", together by ")
        if together:
            assert both[names == together].min() == pytest.approx(0, abs=1e-9)
            continue
        for k, name in enumerate((export.removeprefix("export by "), imports)):
            if name in ("its own rating", "evenness with the others"):
                continue
            U, x = answer.way(k)
            left = both if getattr(answer.method, "joint", False) else W - U @ x
            mine = (names == name) & (U[:, i] > 0)
            assert mine.any(), f"{name} does not limit device {i}"
            assert (left[mine] <= 2e-5 * W[mine] + 1e-9).any(), f"{name} is not full"
