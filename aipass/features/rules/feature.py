"""The times of `cron` rules become events."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aipass.event import Fact
from aipass.sources import cron

if TYPE_CHECKING:
    from aipass.clock import Instant
    from aipass.core.registry import Core
    from aipass.core.step import Step

# Wall clocks jump, and the clock that timers go by stands still while the machine sleeps: a cron time is looked at again this often.
LOOK_S = 60.0
CRON = "cron"


class RulesFeature:
    """The feature."""

    name = "rules"
    policy = ("rules",)

    def setup(self, core: Core) -> None:
        """Timers, and what sets them."""
        self._core, self._timers = core, core.timers
        self._due: dict[str, cron.Due] = {}
        core.add_timer(CRON, self._on_due)
        core.add_start(start=lambda step: self._set(step.now))
        core.add_reconfigure(after=self._set)

    def _set(self, now: Instant) -> None:
        """Set the times of the configuration's rules, and no others."""
        self._timers.drop_all(CRON)
        self._due.clear()
        for rule in self._core.config().on:
            if rule.cron is not None:
                self._wait(rule.name, cron.first(rule.cron, now.wall, now.mono, cron.local_zone()), now)

    def _wait(self, name: str, due: cron.Due, now: Instant) -> None:
        self._due[name] = due
        self._timers.set(f"{CRON}:{name}", now.mono + min(max(0.0, due.wall - now.wall), LOOK_S))

    def _on_due(self, step: Step, rest: str) -> None:
        if rest not in self._due:
            return
        due = cron.look(self._due[rest], step.now.wall, step.now.mono, cron.local_zone())
        # Only once this is committed: a commit that fails is tried again, at the same time of the rule.
        if step.now.wall >= due.wall - 0.001:
            step.facts.append(Fact("clock.cron", "clock", ref=rest, detail={"cron": due.expression}))
            # From the time that it was due at, if that is later: a timer may be early by a little.
            after = max(step.now.wall, due.wall)
            following = cron.next_after(due.expression, after, cron.local_zone())
            due = cron.Due(due.expression, following, step.now.wall, step.now.mono)
        step.before.append(partial(self._wait, rest, due, step.now))
