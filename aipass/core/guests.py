"""Functions of plugins' features: what one raises is reported, and the engine and all other features go on."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import structlog

from aipass.core.run_hook import RunHook
from aipass.core.step import NOTHING
from aipass.crash import write_report
from aipass.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from aipass.core.run_hook import RunEnd
    from aipass.core.step import Step
    from aipass.ledger import Row

logger = structlog.get_logger("aipass")

Call = Any


def guarded(function: Call, crashes: Path, otherwise: Callable[..., Any] = lambda *_: None) -> Call:
    """The same function; where it raises, that is reported in `crashes` and `otherwise` is called with its arguments.

    A ledger that refuses is no fault of the function's, and fails the step as always.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:  # noqa: ANN401 - whatever the function takes and returns
        try:
            return function(*arguments)
        except LedgerError:
            raise
        except Exception as exc:  # noqa: BLE001 - a third party's code; told, and the rest goes on
            report = write_report(
                crashes, exc, f"a plugin's {getattr(function, '__qualname__', function)!s:.200}"
            )
            logger.error(
                "a plugin's feature failed", report=str(report), error=f"{type(exc).__name__}: {exc}"
            )
            return otherwise(*arguments)

    return call


class GuestHook(RunHook):
    """A plugin's run hook, each method guarded."""

    def __init__(self, hook: RunHook, crashes: Path) -> None:
        self._hook, self._crashes = hook, crashes

    def before_start(self, step: Step, run: Row) -> None:
        """As the plugin's."""
        guarded(self._hook.before_start, self._crashes)(step, run)

    def begins(self, run: int) -> None:
        """As the plugin's."""
        guarded(self._hook.begins, self._crashes)(run)

    def furnish(self, run: Row, folder: Path) -> Mapping[str, str]:
        """As the plugin's; nothing where it fails."""
        found: Mapping[str, str] = guarded(self._hook.furnish, self._crashes, lambda *_: NOTHING)(run, folder)
        return found

    def adopt(self) -> None:
        """As the plugin's."""
        guarded(self._hook.adopt, self._crashes)()

    def started(self, step: Step, run: Row) -> None:
        """As the plugin's."""
        guarded(self._hook.started, self._crashes)(step, run)

    def over(self, step: Step, run: Row, finished: float) -> None:
        """As the plugin's."""
        guarded(self._hook.over, self._crashes)(step, run, finished)

    def judge(self, step: Step, run: Row, outcome: Any) -> Any:  # noqa: ANN401 - an Outcome of drivers
        """As the plugin's; as it was where that fails."""
        return guarded(self._hook.judge, self._crashes, lambda *given: given[2])(step, run, outcome)

    def may_retry(self, run: Row) -> bool:
        """As the plugin's; yes where that fails."""
        return bool(guarded(self._hook.may_retry, self._crashes, lambda *_: True)(run))

    def ended(self, step: Step, end: RunEnd) -> None:
        """As the plugin's."""
        guarded(self._hook.ended, self._crashes)(step, end)

    def stays(self, step: Step, end: RunEnd) -> None:
        """As the plugin's."""
        guarded(self._hook.stays, self._crashes)(step, end)
