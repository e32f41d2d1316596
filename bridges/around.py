"""BusAround: a bus around another one, to inherit from."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

from bridges.bus import Bus


class BusAround:
    """Hands on what a class does not do itself; `publish` and `received` are left to it.

    Args:
        inner: not entered yet; entered and left with this one.
    """

    def __init__(self, inner: Bus) -> None:
        self._inner = inner
        self.counts: Counter[str] = inner.counts

    @property
    def connected(self) -> bool:
        """See `Bus.connected`."""
        return self._inner.connected

    async def flush(self, timeout_s: float) -> bool:
        """See `Bus.flush`."""
        return await self._inner.flush(timeout_s)

    def subscribe(self, pattern: str) -> None:
        """See `Bus.subscribe`."""
        self._inner.subscribe(pattern)

    async def arrived(self, timeout_s: float) -> bool:
        """See `Bus.arrived`."""
        return await self._inner.arrived(timeout_s)

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)
