"""Where PRs are shown and merged besides here: the protocol of a forge's driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aipass.features.git.pr_records import Pr
    from aipass.features.git.repo import Repo


@runtime_checkable
class Forge(Protocol):
    """One kind of forge. Each method is called in a thread of its own and may take its time; it raises AipassError, saying why."""

    name: str

    def open(self, repo: Repo, pr: Pr, remote: str) -> str | None:
        """Show the PR there, or what is new in it; returns its address. Called again after a crash."""
        ...

    def merge(self, repo: Repo, pr: Pr, remote: str, method: str) -> None:
        """Merge it there, by `merge`, `squash` or `ff`."""
        ...

    def close(self, repo: Repo, pr: Pr, remote: str, reason: str) -> None:
        """Close it there without merging."""
        ...


@dataclass(frozen=True, slots=True)
class Forges:
    """The forges' drivers that are installed, by name."""

    by_name: Mapping[str, Forge]
