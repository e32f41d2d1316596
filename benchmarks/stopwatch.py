"""Stopwatch: where the time of a run goes, by wrapping methods while it is measured."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from time import perf_counter
from typing import Any


class Stopwatch:
    """Adds up seconds by label.

    A part counts its own time only: what another part takes inside it, and what it waits for, is not
    counted. So parts never overlap and add up to no more than what lies around them. All must run in
    one thread.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """of a part or a phase, by label"""
        self.calls: Counter[str] = Counter()
        self._inside: list[float] = []  # what the parts within each open part have taken

    @contextmanager
    def part(self, owner: Any, method: str, label: str) -> Iterator[None]:
        """While the context lasts, count the running time of `owner.method`, awaitable or not."""
        original = getattr(owner, method)

        @wraps(original)
        def timed(*args: Any, **options: Any) -> Any:
            self.calls[label] += 1
            result = self._run(label, lambda: original(*args, **options))
            return _Timed(self, label, result) if inspect.isawaitable(result) else result

        with _replaced(owner, method, timed):
            yield

    @contextmanager
    def phase(self, owner: Any, method: str, label: str) -> Iterator[None]:
        """While the context lasts, count the time from the beginning of `owner.method` to its end."""
        original = getattr(owner, method)

        @wraps(original)
        def timed(*args: Any, **options: Any) -> Any:
            self.calls[label] += 1
            begun = perf_counter()
            result = original(*args, **options)
            if inspect.isawaitable(result):
                return self._until_done(label, begun, result)
            self.seconds[label] += perf_counter() - begun
            return result

        with _replaced(owner, method, timed):
            yield

    async def _until_done(self, label: str, begun: float, waiting: Awaitable[Any]) -> Any:
        try:
            return await waiting
        finally:
            self.seconds[label] += perf_counter() - begun

    def _run(self, label: str, go: Callable[[], Any]) -> Any:
        self._inside.append(0.0)
        begun = perf_counter()
        try:
            return go()
        finally:
            took = perf_counter() - begun
            self.seconds[label] += took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took


class _Timed:
    """An awaitable whose running time, not its waiting, is counted."""

    def __init__(self, watch: Stopwatch, label: str, waiting: Awaitable[Any]) -> None:
        self._watch, self._label, self._waiting = watch, label, waiting

    def __await__(self) -> Generator[Any, Any, Any]:
        inner: Any = self._waiting.__await__()
        go: Callable[[], Any] = partial(inner.send, None)
        while True:
            try:
                wanted = self._watch._run(self._label, go)
            except StopIteration as end:
                return end.value
            try:
                go = partial(inner.send, (yield wanted))
            except BaseException as error:
                go = partial(inner.throw, error)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
