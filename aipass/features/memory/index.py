"""The protocol of a semantic index: a plugin's search by meaning, in addition to the search by words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


@runtime_checkable
class SemanticIndex(Protocol):
    """An index of texts by their meaning.

    The engine calls `ids`, `learn` and `forget` in one thread. `aipass recall` calls `nearest` in another process, possibly
    at the same time. An exception is reported, and the search continues with words alone.
    """

    name: str

    def ids(self) -> Collection[int]:
        """Return the ids of all texts in the index."""
        ...

    def learn(self, texts: Sequence[tuple[int, str]]) -> None:
        """Add texts by id; a text with a known id replaces the old one. Idempotent."""
        ...

    def forget(self, number: int) -> None:
        """Delete a text permanently, also from the disk; an unknown id is no error."""
        ...

    def nearest(self, asked: str, limit: int) -> Sequence[tuple[int, float]]:
        """Return the closest texts, best first: id and closeness, from 1 (same meaning) to 0 (unrelated)."""
        ...


@dataclass(frozen=True, slots=True)
class Indexes:
    """The indexes of all installed plugins."""

    found: Sequence[SemanticIndex]
