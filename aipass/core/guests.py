"""The guard around functions of plugins: an exception is reported, its writes are undone, and the engine continues."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from aipass.core.run_hook import RunHook
from aipass.core.step import NOTHING, Step
from aipass.errors import LedgerError
from aipass.workspace.crash_report import write_report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from aipass.core.run_hook import RunEnd
    from aipass.ledger import Ledger, Row
    from aipass.workspace.layout import Layout

logger = structlog.get_logger("aipass")

Call = Any


class CoreAccess(Protocol):
    """The part of `Core` that a guard needs: the folder for reports, and the ledger for the savepoint."""

    layout: Layout
    ledger: Ledger


def guarded(function: Call, core: CoreAccess, otherwise: Callable[..., Any] = lambda *_: None) -> Call:
    """A function that calls `function` and survives its exceptions.

    On an exception it writes a crash report, undoes what `function` wrote to the ledger and to the step, and returns the
    result of `otherwise` for the same arguments. A LedgerError propagates.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:  # noqa: ANN401 - the arguments and the result of `function`
        step = arguments[0] if arguments and isinstance(arguments[0], Step) else None
        lists: list[Any] = (
            [] if step is None else [step.facts, step.before, step.starts, step.effects, step.notices]
        )
        # A savepoint undoes the ledger; the lists of the step are shortened to these lengths.
        lengths = [len(one) for one in lists]
        try:
            with core.ledger.part():
                return function(*arguments)
        except LedgerError:
            raise  # a full disk is not the fault of the plugin: the whole step fails and is tried again
        except Exception as exc:  # noqa: BLE001 - third-party code; it is reported, and the engine continues
            for one, length in zip(lists, lengths, strict=True):
                while len(one) > length:
                    one.pop()
            report = write_report(
                core.layout.crashes, exc, f"a plugin's {getattr(function, '__qualname__', function)!s:.200}"
            )
            logger.error(
                "a plugin's feature failed", report=str(report), error=f"{type(exc).__name__}: {exc}"
            )
            return otherwise(*arguments)

    return call


class GuestHook(RunHook):
    """The run hook of a plugin with each method guarded. The docstrings say what a method does if the plugin's raises."""

    def __init__(self, hook: RunHook, core: CoreAccess) -> None:
        self._hook, self._core = hook, core

    def before_start(self, step: Step, run: Row) -> None:
        """Call the plugin's method; on an exception the run starts without it."""
        guarded(self._hook.before_start, self._core)(step, run)

    def begins(self, run: int) -> None:
        """Call the plugin's method; an exception is only reported."""
        guarded(self._hook.begins, self._core)(run)

    def furnish(self, run: Row, folder: Path) -> Mapping[str, str]:
        """The plugin's variables; none on an exception."""
        found: Mapping[str, str] = guarded(self._hook.furnish, self._core, lambda *_: NOTHING)(run, folder)
        return found

    def adopt(self) -> None:
        """Call the plugin's method; an exception is only reported."""
        guarded(self._hook.adopt, self._core)()

    def started(self, step: Step, run: Row) -> None:
        """Call the plugin's method; an exception is only reported."""
        guarded(self._hook.started, self._core)(step, run)

    def over(self, step: Step, run: Row, finished: float) -> None:
        """Call the plugin's method; an exception is only reported."""
        guarded(self._hook.over, self._core)(step, run, finished)

    def judge(self, step: Step, run: Row, outcome: Any) -> Any:  # noqa: ANN401 - an Outcome of drivers
        """The plugin's outcome; the given one on an exception."""
        return guarded(self._hook.judge, self._core, lambda *given: given[2])(step, run, outcome)

    def may_retry(self, run: Row) -> bool:
        """The plugin's answer; True on an exception."""
        return bool(guarded(self._hook.may_retry, self._core, lambda *_: True)(run))

    def ended(self, step: Step, end: RunEnd) -> None:
        """Call the plugin's method; an exception is only reported."""
        guarded(self._hook.ended, self._core)(step, end)

    def stays(self, step: Step, end: RunEnd) -> None:
        """Call the plugin's method; an exception is only reported."""
        guarded(self._hook.stays, self._core)(step, end)
