"""The scheduler of `cron` rules: at each time of a rule it emits the event `clock.cron`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aipass.event import Fact
from aipass.sources import cron

if TYPE_CHECKING:
    from aipass.clock import Instant
    from aipass.core.registry import Core
    from aipass.core.step import Step

# The longest wait before a rule's time is compared with the wall clock again. Wall clocks jump (NTP, daylight saving
# time), and the monotonic clock of the timers stops while the machine sleeps.
LOOK_S = 60.0
CRON = "cron"


class RulesFeature:
    """Emits the events of schedules; the policy `rules` turns events into dispatches."""

    name = "rules"
    policy = ("rules",)

    def setup(self, core: Core) -> None:
        """Register the timer, and set the times at the start and after each reload."""
        self._core, self._timers = core, core.timers
        self._due: dict[str, cron.Due] = {}
        core.add_timer(CRON, self._on_due)
        core.add_start(start=lambda step: self._set(step.now))
        core.add_reconfigure(after=self._set)

    def _set(self, now: Instant) -> None:
        """Replace all times by those of the configuration's rules.

        The next times are computed from now, so missed ones do not fire.
        """
        self._timers.drop_all(CRON)
        self._due.clear()
        for rule in self._core.config().on:
            if rule.cron is not None:
                self._wait(rule.name, cron.first(rule.cron, now.wall, now.mono, cron.local_zone()), now)

    def _wait(self, name: str, due: cron.Due, now: Instant) -> None:
        self._due[name] = due
        self._timers.set(f"{CRON}:{name}", now.mono + min(max(0.0, due.wall - now.wall), LOOK_S))

    def _on_due(self, step: Step, rest: str) -> None:
        # A reload in the same step may have removed the rule.
        if rest not in self._due:
            return
        due = cron.look(self._due[rest], step.now.wall, step.now.mono, cron.local_zone())
        # One millisecond of tolerance, as timers and floats round.
        if step.now.wall >= due.wall - 0.001:
            step.facts.append(Fact("clock.cron", "clock", ref=rest, detail={"cron": due.expression}))
            # A timer may fire slightly early: counted from now, the next time would be the same one again.
            after = max(step.now.wall, due.wall)
            following = cron.next_after(due.expression, after, cron.local_zone())
            due = cron.Due(due.expression, following, step.now.wall, step.now.mono)
        # After the commit only: if the commit fails, the step is repeated and must find the same due time.
        step.before.append(partial(self._wait, rest, due, step.now))
