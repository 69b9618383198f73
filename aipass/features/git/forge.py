"""The protocol of a forge driver: an adapter that publishes and merges PRs on a service such as GitHub or GitLab."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aipass.features.git.pr_records import Pr
    from aipass.features.git.repo import Repo


@runtime_checkable
class Forge(Protocol):
    """A driver for one kind of forge.

    The pull request worker calls every method in a thread outside the engine, so a method may block on the network. Each raises
    AipassError with the reason of a failure, and must be idempotent: after a crash the same call comes again.
    """

    name: str

    def open(self, repo: Repo, pr: Pr, remote: str) -> str | None:
        """Publish the PR, or update it where it is published already. Returns its URL, None where there is none."""
        ...

    def merge(self, repo: Repo, pr: Pr, remote: str, method: str) -> None:
        """Merge the PR on the forge. `method` is `merge`, `squash` or `ff`."""
        ...

    def close(self, repo: Repo, pr: Pr, remote: str, reason: str) -> None:
        """Close the PR on the forge without a merge, and give `reason` there."""
        ...


@dataclass(frozen=True, slots=True)
class Forges:
    """The installed forge drivers, by the name that `[pr] forge` uses."""

    by_name: Mapping[str, Forge]
