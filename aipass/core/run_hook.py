"""The run hook: the interface through which features take part in the start and end of runs."""

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
    """A run that has ended, with its result.

    `run`: its row. `verdict`: the outcome according to its driver. `outcome`: the same after every hook's `judge`.
    `state`: the state of its dispatch now. `result`: one word for how the run ended. `reason`: why. `finished`: seconds
    since the epoch. `cause`: the event that led to the dispatch.
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
    """Base class of run hooks. Override the methods that matter; the others do nothing.

    The hooks of all features are called in the order in which the features were added. All methods except `furnish`,
    `begins` and `adopt` are called inside the transaction, so they must have no effects outside the ledger and `step`.
    """

    def before_start(self, step: Step, run: Row) -> None:
        """Called when a run is recorded. Its process is started after the commit."""

    def begins(self, run: int) -> None:
        """Called after the commit and before the process exists; also when the engine finds a live run: at its start, and when the connection to a supervisor is back."""

    def furnish(self, run: Row, folder: Path) -> Mapping[str, str]:
        """Create the files that the run needs in its folder, after the commit; returns additional environment variables."""
        del run, folder
        return NOTHING

    def adopt(self) -> None:
        """Called after the commit, when the engine has asked a supervisor for all runs: ask for the feature's other work."""

    def started(self, step: Step, run: Row) -> None:
        """Called when the process of the run exists."""

    def over(self, step: Step, run: Row, finished: float) -> None:
        """Called when the whole process tree of the run is gone, since `finished` (seconds since the epoch)."""

    def judge(self, step: Step, run: Row, outcome: Any) -> Any:  # noqa: ANN401 - an Outcome of drivers
        """Return the outcome of the run: that of the driver or of the previous hook, or another one."""
        del step, run
        return outcome

    def may_retry(self, run: Row) -> bool:
        """Whether another attempt makes sense. The run is retried only if all hooks return True."""
        del run
        return True

    def ended(self, step: Step, end: RunEnd) -> None:
        """Called when the result is recorded, before its event is emitted."""

    def stays(self, step: Step, end: RunEnd) -> None:
        """Called when the dispatch is not finished and waits for another attempt."""
