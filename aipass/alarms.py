"""Timers that become events: those that handlers asked for, and the times of `cron` rules."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

from aipass.carry import WAKE
from aipass.event import Fact
from aipass.sources import cron

if TYPE_CHECKING:
    from aipass.clock import Instant
    from aipass.config import Config
    from aipass.ledger import Ledger
    from aipass.sources.clock import Timers
    from aipass.step import Step

# Wall clocks jump, and the clock that timers go by stands still while the machine sleeps: a cron time is looked at again this often.
CRON_LOOK_S = 60.0
CRON = "cron:"
SOURCE = "clock"


class Alarms:
    """Sets timers in the engine's heap, and tells the events of those that came due."""

    def __init__(self, ledger: Ledger, timers: Timers) -> None:
        self._ledger, self._timers = ledger, timers
        self._crons: dict[str, cron.Due] = {}

    def load(self, now: Instant) -> None:
        """Set the timers that the ledger knows. A clock that was set back makes no wait longer than it was asked for."""
        for row in self._ledger.all("timers"):
            wait = min(max(0.0, row["asked"] + row["after"] - now.wall), row["after"])
            self._timers.set(WAKE + row["key"], now.mono + wait)

    def set_crons(self, config: Config, now: Instant) -> None:
        """Set the times of the configuration's rules, and no others."""
        for key in self._timers:
            if key.startswith(CRON):
                self._timers.drop(key)
        self._crons.clear()
        for rule in config.on:
            if rule.cron is not None:
                self._set_cron(rule.name, rule.cron, now)

    def due(self, step: Step, key: str) -> bool:
        """A timer came due; whether it was one of ours."""
        if key.startswith(WAKE):
            self._wake(step, key.removeprefix(WAKE))
        elif key.startswith(CRON):
            self._cron(step, key.removeprefix(CRON))
        else:
            return False
        return True

    def _wake(self, step: Step, key: str) -> None:
        row = self._ledger.one("timer", {"key": key})
        if row is None:
            return
        self._ledger.run("drop_timer", {"key": key})
        cause = self._ledger.one("event", {"id": row["event"]})
        detail = {**json.loads(row["detail"]), "count": row["count"]}
        by = None if cause is None else cause["run"]
        step.facts.append(Fact("clock.tick", SOURCE, ref=key, by=by, cause=row["event"], detail=detail))

    def _set_cron(self, name: str, expression: str, now: Instant) -> None:
        self._wait(name, cron.first(expression, now.wall, now.mono, cron.local_zone()), now)

    def _wait(self, name: str, due: cron.Due, now: Instant) -> None:
        self._crons[name] = due
        self._timers.set(CRON + name, now.mono + min(max(0.0, due.wall - now.wall), CRON_LOOK_S))

    def _cron(self, step: Step, name: str) -> None:
        if name not in self._crons:
            return
        due = cron.look(self._crons[name], step.now.wall, step.now.mono, cron.local_zone())
        # Only once this is committed: a commit that fails is tried again, at the same time of the rule.
        if step.now.wall >= due.wall - 0.001:
            step.facts.append(Fact("clock.cron", SOURCE, ref=name, detail={"cron": due.expression}))
            # From the time that it was due at, if that is later: a timer may be early by a little.
            after = max(step.now.wall, due.wall)
            following = cron.next_after(due.expression, after, cron.local_zone())
            due = cron.Due(due.expression, following, step.now.wall, step.now.mono)
        step.before.append(partial(self._wait, name, due, step.now))
