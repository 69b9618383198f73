"""What features may do with runs: a list of hooks in a visible order, that in which the features were added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aipass.core.step import NOTHING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aipass.core.step import Step
    from aipass.ledger import Row


@dataclass(frozen=True, slots=True)
class RunEnd:
    """A run that is over, and what became of its work.

    `run`: its row; `verdict`: what its driver says; `outcome`: the same after every hook's `judge`; `state`: of its dispatch now; `result`: a word
    for how the run ended; `reason`: why; `finished`: seconds since the epoch; `cause`: the event that led to the dispatch.
    """

    run: Row
    verdict: Any
    outcome: Any
    state: str
    result: str
    reason: str | None
    finished: float
    cause: int | None


class RunHook:
    """Derive from it and override what matters; the rest does nothing. All but `furnish`, `begins` and `adopt` is called inside the transaction."""

    def before_start(self, step: Step, run: Row) -> None:
        """A run is recorded and will be started after the commit."""

    def begins(self, run: int) -> None:
        """After the commit, before the process is there; and when a new engine finds that it lives."""

    def furnish(self, run: Row, folder: Path) -> Mapping[str, str]:
        """After the commit: put into the run's folder what it needs; returns what its environment gets besides."""
        del run, folder
        return NOTHING

    def adopt(self) -> None:
        """After the commit: a supervisor was asked what became of all runs; ask for what else it may have done."""

    def started(self, step: Step, run: Row) -> None:
        """Its process is there."""

    def over(self, step: Step, run: Row, finished: float) -> None:
        """Its whole process tree is gone, since `finished` (seconds since the epoch)."""

    def judge(self, step: Step, run: Row, outcome: Any) -> Any:  # noqa: ANN401 - an Outcome of drivers
        """What its end means, as the hook before sees it; returns the same, or another."""
        del step, run
        return outcome

    def may_retry(self, run: Row) -> bool:
        """Whether another attempt makes sense."""
        del run
        return True

    def ended(self, step: Step, end: RunEnd) -> None:
        """What became of it is recorded and will be told."""

    def stays(self, step: Step, end: RunEnd) -> None:
        """Its work is not finished: another attempt waits for its turn."""
