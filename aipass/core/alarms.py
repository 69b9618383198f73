"""The feature for timers that handlers set with `Wake`: stored in the ledger, reported as `clock.tick` when due."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aipass.action import Wake
from aipass.core.step import Applied
from aipass.event import Fact
from aipass.text.units import show_duration

if TYPE_CHECKING:
    from aipass.clock import Instant
    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.event import Event

WAKE = "wake"
SOURCE = "clock"


class Alarms:
    """Stores timers in the ledger and sets them in the engine's heap."""

    name = "alarms"

    def setup(self, core: Core) -> None:
        """Add the action `Wake`, its timers, the function that restores them after a restart, and the idle check."""
        self._ledger, self._timers = core.ledger, core.timers
        core.add_action(Wake, self._wake)
        core.add_timer(WAKE, self._due)
        core.add_memory(self._load)
        core.add_idle_check(lambda: not any(key.startswith(f"{WAKE}:") for key in self._timers))

    def _wake(self, step: Step, event: Event, action: Wake) -> Applied:
        timer = {
            "key": action.key,
            "asked": step.now.wall,
            "after": action.after_s,
            "event": event.id,
            "detail": json.dumps(action.detail),
        }
        self._ledger.run("set_timer", timer)
        self._timers.set(f"{WAKE}:{action.key}", step.now.mono + action.after_s)
        return Applied(f"a timer for {show_duration(action.after_s)}")

    def _due(self, step: Step, rest: str) -> None:
        row = self._ledger.one("timer", {"key": rest})
        # The heap is not part of the transaction: a step that failed can leave a timer that the ledger does not have.
        if row is None:
            return
        self._ledger.run("drop_timer", {"key": rest})
        cause = self._ledger.one("event", {"id": row["event"]})
        detail = {**json.loads(row["detail"]), "count": row["count"]}
        # The run behind the event, so that work which the tick starts belongs to the same chain of causes (hops).
        by = None if cause is None else cause["run"]
        step.facts.append(Fact("clock.tick", SOURCE, ref=rest, by=by, cause=row["event"], detail=detail))

    def _load(self, now: Instant) -> None:
        """Set the timers of the ledger, and only these."""
        self._timers.drop_all(WAKE)
        for row in self._ledger.all("timers"):
            # Wall time, because the monotonic clock starts at zero after a reboot. If a person set the clock back
            # since then, the timer must not wait longer than it was asked to.
            wait = min(max(0.0, row["asked"] + row["after"] - now.wall), row["after"])
            self._timers.set(f"{WAKE}:{row['key']}", now.mono + wait)
