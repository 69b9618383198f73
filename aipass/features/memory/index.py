"""What a plugin has that finds by meaning what is remembered, besides the search by words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


@runtime_checkable
class SemanticIndex(Protocol):
    """An index of texts by what they mean.

    The engine lets it learn, in a thread of its own; `aipass recall` asks it, in a process of its own, while the engine may
    be writing. What it raises is told, and the words alone decide.
    """

    name: str

    def ids(self) -> Collection[int]:
        """All that it has."""
        ...

    def learn(self, texts: Sequence[tuple[int, str]]) -> None:
        """Take texts in, by id; one that it has already is replaced."""
        ...

    def forget(self, number: int) -> None:
        """Remove a text for good; one that it does not have is fine."""
        ...

    def nearest(self, asked: str, limit: int) -> Sequence[tuple[int, float]]:
        """The closest in meaning, best first: id and closeness, 1 for the same and 0 for nothing in common."""
        ...


@dataclass(frozen=True, slots=True)
class Indexes:
    """The indexes of plugins that are installed."""

    found: Sequence[SemanticIndex]
