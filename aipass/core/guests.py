"""Functions of plugins' features: what one raises is reported, and the engine and all other features go on."""

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
    """Of the core: where reports go, and what is written."""

    layout: Layout
    ledger: Ledger


def guarded(function: Call, core: CoreAccess, otherwise: Callable[..., Any] = lambda *_: None) -> Call:
    """The same function; where it raises, that is reported, what it had written is taken back, and `otherwise` is called with its arguments.

    A ledger that refuses is no fault of the function's, and fails the step as always.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:  # noqa: ANN401 - whatever the function takes and returns
        step = arguments[0] if arguments and isinstance(arguments[0], Step) else None
        lists: list[Any] = (
            [] if step is None else [step.facts, step.before, step.starts, step.effects, step.notices]
        )
        lengths = [len(one) for one in lists]
        try:
            with core.ledger.part():
                return function(*arguments)
        except LedgerError:
            raise
        except Exception as exc:  # noqa: BLE001 - a third party's code; told, and the rest goes on
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
    """A plugin's run hook, each method guarded."""

    def __init__(self, hook: RunHook, core: CoreAccess) -> None:
        self._hook, self._core = hook, core

    def before_start(self, step: Step, run: Row) -> None:
        """As the plugin's."""
        guarded(self._hook.before_start, self._core)(step, run)

    def begins(self, run: int) -> None:
        """As the plugin's."""
        guarded(self._hook.begins, self._core)(run)

    def furnish(self, run: Row, folder: Path) -> Mapping[str, str]:
        """As the plugin's; nothing where it fails."""
        found: Mapping[str, str] = guarded(self._hook.furnish, self._core, lambda *_: NOTHING)(run, folder)
        return found

    def adopt(self) -> None:
        """As the plugin's."""
        guarded(self._hook.adopt, self._core)()

    def started(self, step: Step, run: Row) -> None:
        """As the plugin's."""
        guarded(self._hook.started, self._core)(step, run)

    def over(self, step: Step, run: Row, finished: float) -> None:
        """As the plugin's."""
        guarded(self._hook.over, self._core)(step, run, finished)

    def judge(self, step: Step, run: Row, outcome: Any) -> Any:  # noqa: ANN401 - an Outcome of drivers
        """As the plugin's; as it was where that fails."""
        return guarded(self._hook.judge, self._core, lambda *given: given[2])(step, run, outcome)

    def may_retry(self, run: Row) -> bool:
        """As the plugin's; yes where that fails."""
        return bool(guarded(self._hook.may_retry, self._core, lambda *_: True)(run))

    def ended(self, step: Step, end: RunEnd) -> None:
        """As the plugin's."""
        guarded(self._hook.ended, self._core)(step, end)

    def stays(self, step: Step, end: RunEnd) -> None:
        """As the plugin's."""
        guarded(self._hook.stays, self._core)(step, end)
