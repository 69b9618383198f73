"""The dispatcher of events to handlers: reports a handler that raises, and disables one that fails repeatedly."""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING

from aipass.action import Action
from aipass.core.verbs import HANDLERS
from aipass.errors import PluginError
from aipass.event import Fact

if TYPE_CHECKING:
    from aipass.core.registry import Core
    from aipass.core.router import Handler, Router
    from aipass.core.step import Step
    from aipass.core.view import HandlerView
    from aipass.event import Event

DISABLE_AFTER_FAILURES = 5
#: Handlers run in the engine's thread and inside its transaction: everything waits for a slow one.
HANDLER_SLOW_S = 1.0


class Asking:
    """Calls handlers and records their actions. `router` is replaced after each change of the configuration."""

    def __init__(self, core: Core, view: HandlerView, router: Router) -> None:
        self._core, self._ledger, self._view = core, core.ledger, view
        self.router = router
        self._failures: dict[str, int] = {}

    def ask(self, step: Step, event: Event) -> None:
        """Call every handler that wants this event, in order, and record and apply its actions."""
        for handler in self.router.match(event):
            self._ask(step, handler, event)

    def _ask(self, step: Step, handler: Handler, event: Event) -> None:
        name = handler.name
        if self._core.switch.why(name) is not None:
            self._ledger.add_outcome(event.id, name, "Skipped", "{}", "failed", "the handler is disabled")
            return
        began = time.perf_counter()
        try:
            # A list before anything is applied: a generator that raises later must not have half of its effect.
            actions = list(handler.handle(event, self._view) or ())
            for action in actions:
                if not isinstance(action, Action):
                    raise PluginError(f"it returned {action!r}, which is not an action")
                action.payload()
        except Exception as exc:  # noqa: BLE001 - third-party code; it is reported, and the other handlers run
            self._on_failure(step, name, event, exc)
            return
        took = time.perf_counter() - began
        if took > HANDLER_SLOW_S:
            error = f"slow handler: {took:.1f} s, in which the engine did nothing else"
            detail = {"error": error, "kind": event.kind}
            step.facts.append(Fact("handler.failed", "engine", ref=name, cause=event.id, detail=detail))
        self._failures.pop(name, None)
        for action in actions:
            self._core.execute(step, event, action, name)

    def _on_failure(self, step: Step, name: str, event: Event, exc: Exception) -> None:
        error = f"{type(exc).__name__}: {exc}"
        where = traceback.extract_tb(exc.__traceback__)[-1] if exc.__traceback__ else None
        self._ledger.add_outcome(event.id, name, "Failed", "{}", "failed", error)
        if event.kind.startswith("handler."):
            return  # the report of a failure in a handler of failures would cause the next failure, without end
        count = self._failures[name] = self._failures.get(name, 0) + 1
        detail = {"error": error, "kind": event.kind, "in_a_row": count}
        detail["at"] = f"{where.filename}:{where.lineno}" if where else None
        step.facts.append(
            Fact("handler.failed", "engine", path=event.path, ref=name, cause=event.id, detail=detail)
        )
        # Without these no request is answered, not even the `resume` that would enable them.
        if name in HANDLERS:
            return
        if count >= DISABLE_AFTER_FAILURES and self._core.switch.disable(name, error, step.now):
            del self._failures[name]  # after `aipass resume` it has the full number of tries again
            detail = {"error": error, "after": count}
            step.facts.append(Fact("handler.disabled", "engine", ref=name, cause=event.id, detail=detail))
            text = f"handler `{name}` failed {count} times in a row and is disabled: {error}; `aipass resume '{name}'` enables it"
            step.notify(self._ledger, text, event.id, f"handler {name}")
