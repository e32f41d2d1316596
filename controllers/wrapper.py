"""Wrapper: what a controller around another one says of itself is what the inner one says."""

from __future__ import annotations

from typing import Any

from controllers.contract import Controller, memory_of, recall_of
from controllers.roles import Sight, followers_of, sight_of


class Wrapper:
    """To inherit from; `step` is left to the class."""

    inner: Controller

    @property
    def sources(self) -> tuple[str, ...]:
        """Of the method."""
        return tuple(getattr(self.inner, "sources", ()))

    @property
    def goes_first(self) -> bool:
        """Whether it sets what the others of a step have to know."""
        return bool(getattr(self.inner, "goes_first", False))

    @property
    def intervals(self) -> int:
        """How many coming steps it looks at."""
        return int(getattr(self.inner, "intervals", 1))

    @property
    def followers(self) -> tuple[str, ...]:
        """Whom it leads."""
        return followers_of(self.inner)

    @property
    def follows(self) -> bool:
        """Whether it is to be led."""
        return getattr(self.inner, "follows", False) is True

    @property
    def sight(self) -> Sight | None:
        """What it is shown."""
        return sight_of(self.inner)

    def memory(self) -> object:
        """What `inner` remembers."""
        return memory_of(self.inner)

    def recall(self, memory: Any) -> None:
        """Have `inner` remember it."""
        recall_of(self.inner, memory)
