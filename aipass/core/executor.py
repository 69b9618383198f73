"""The executor of actions: records them inside the step's transaction and performs their effects after the commit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass.core.requests import answer
from aipass.core.step import Again, Applied, Done, Effect, Pending
from aipass.errors import EXIT_FAILED, AipassError, LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.action import Action
    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.event import Event
    from aipass.ledger import Row

logger = structlog.get_logger("aipass")

#: Prefix of the timers of effects that are tried again.
AGAIN = "effect"
#: An effect that failed because the ledger could not be written (a full disk) is tried again after this time.
LEDGER_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Settled:
    """The result of an effect, which the executor queues for the next step. It is recorded there, inside a transaction."""

    name: str
    pending: Pending
    done: Done
    #: The effect raised, so that it has not answered the request that asked for it.
    raised: bool = False


class Executor:
    """Records every action with its event (write-ahead log).

    An action with an effect is pending until the effect has a result. After a crash the next engine performs the effects
    of pending actions again, so every effect must be idempotent.
    """

    def __init__(self, core: Core, back: Callable[[Settled], None]) -> None:
        self._core, self._ledger, self._back = core, core.ledger, back
        core.add_timer(AGAIN, self._due)
        core.add_idle_check(lambda: not any(key.startswith(f"{AGAIN}:") for key in core.timers))
        core.add_report(Settled, self._take)

    def execute(self, step: Step, event: Event, action: Action, handler: str) -> None:
        """Apply an action and record it with its event, inside the transaction; its effect is queued for after the commit."""
        # Restored afterwards, because an action can execute further actions of the same event.
        before, step.handler = step.handler, handler
        try:
            applied = self._apply(step, event, action)
        finally:
            step.handler = before
        effect = applied.effect
        state = "pending" if effect is not None else "failed" if applied.failed else "done"
        number = self._ledger.add_action(event.id, handler, action, state, applied.outcome, _text(effect))
        if applied.recorded is not None:
            applied.recorded(number)
        if effect is not None:
            pending = Pending(number, event.id, event.by, effect.arguments)
            calls = step.before if applied.before_starts else step.effects
            calls.append(partial(self._do, effect.name, pending))

    def redo(self, step: Step) -> None:
        """Queue the effects of all pending actions again, at the start of an engine."""
        for row in self._ledger.all("pending_actions"):
            self._line_up(step, row)

    def settle(self, step: Step, action: int, done: Done) -> None:
        """Record the result of an action's effect. A failure that no request waits for becomes a notice."""
        state = "failed" if done.failed else "done"
        self._ledger.run("settle_action", {"id": action, "state": state, "outcome": done.outcome})
        # A command that waits prints the failure itself.
        if done.failed and done.request is None:
            step.notify(self._ledger, done.outcome, about=done.about)

    def _apply(self, step: Step, event: Event, action: Action) -> Applied:
        apply = self._core.actions.get(type(action))
        if apply is None:
            return Applied(f"no feature of this engine has the action {type(action).__name__}", failed=True)
        return apply(step, event, action)

    def _do(self, name: str, pending: Pending) -> None:
        """Perform an effect, after the commit. The action is settled in a later step, or tried again by a timer."""
        # Other exceptions pass: the engine writes a crash report, the action stays pending, and an engine with the bug
        # fixed performs it.
        do, _ = self._core.effects[name]
        try:
            done = do(pending)
        except LedgerError:
            done = Again(LEDGER_AGAIN_S)
        except (AipassError, OSError) as exc:
            done = Done(str(exc), failed=True, request=pending.arguments.get("request"))
            self._back(Settled(name, pending, done, raised=True))
            return
        if isinstance(done, Again):
            due = self._core.clock.now().mono + done.after_s
            self._core.timers.set(f"{AGAIN}:{pending.action}", due)
        elif done is not None:
            self._back(Settled(name, pending, done))

    def _due(self, step: Step, rest: str) -> None:
        row = self._ledger.one("pending_action", {"id": int(rest)})
        if row is not None:
            self._line_up(step, row)

    def _line_up(self, step: Step, row: Row) -> None:
        found: dict[str, Any] = json.loads(row["effect"] or "{}")
        if found.get("name") not in self._core.effects:
            # The feature was left out (`--without`) or its plugin removed. The action waits for an engine that has it.
            logger.error(
                "no feature has the effect of a pending action", action=row["id"], effect=row["effect"]
            )
            return
        pending = Pending(row["id"], row["event"], row["run"], found["arguments"])
        step.effects.append(partial(self._do, found["name"], pending))

    def _take(self, step: Step, report: Settled) -> None:
        self.settle(step, report.pending.action, report.done)
        if report.raised:
            answer(self._ledger, report.done.request, EXIT_FAILED, report.done.outcome)
        _, settled = self._core.effects[report.name]
        if settled is not None:
            settled(step, report.pending, report.done)


def _text(effect: Effect | None) -> str | None:
    if effect is None:
        return None
    return json.dumps({"name": effect.name, "arguments": dict(effect.arguments)}, separators=(",", ":"))
