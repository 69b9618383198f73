"""The pauses: agents, rules and handlers until a person resumes them, and drivers at a rate limit until the limit ends.

When a limit should have ended, one trial run starts first; the others follow if it did not meet the limit again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aipass.text.units import show_moment

if TYPE_CHECKING:
    from aipass.clock import Instant
    from aipass.core.timers import Timers
    from aipass.ledger import Ledger

LIMIT = "limit"
#: The wait for a limit without a known end: it doubles each time in a row (exponential backoff), up to the longest.
FIRST_WAIT_S, LONGEST_WAIT_S = 300.0, 3600.0
#: The end that a CLI names may have passed when its run ends, and the clocks of server and machine may differ.
LEAST_WAIT_S = 5.0
#: The longest pause, in case a CLI's end was misread: one trial run costs little. Weekly limits are the longest known ones.
LONGEST_LIMIT_S = 8 * 86400.0


@dataclass(frozen=True, slots=True)
class ActivePause:
    """The pause of one name. A limit has an end: `until` on the wall clock, and `due`, the same on the monotonic clock."""

    reason: str
    since: float
    until: float | None = None
    due: float = 0.0

    def holds(self, now: Instant) -> bool:
        """Whether the pause is in force: without an end, or before it on both clocks."""
        # The first clock that passes the end decides: the monotonic one stops while the machine sleeps, the wall clock
        # can be set.
        return self.until is None or (now.mono < self.due and now.wall < self.until)


class Pauses:
    """The pauses of the ledger, cached by kind (`agent`, `driver`, `rule`, `handler`) and name.

    Used inside the transaction.
    """

    def __init__(self, ledger: Ledger, timers: Timers) -> None:
        self._ledger, self._timers = ledger, timers
        self._all: dict[tuple[str, str], ActivePause] = {}
        #: Drivers whose limit should have ended, with the trial run (None: chosen in this step, not yet recorded).
        self._trials: dict[str, int | None] = {}

    def load(self, now: Instant) -> None:
        """Rebuild the cache, the timers and the trial runs from the ledger; idempotent."""
        self._all.clear()
        for row in self._ledger.all("pauses"):
            due = 0.0
            if row["until"] is not None:
                # A wall clock that was set back must not lengthen the pause.
                due = now.mono + max(0.0, min(row["until"] - now.wall, row["until"] - row["since"]))
                self._timers.set(f"{LIMIT}:{row['name']}", due)
            self._all[row["kind"], row["name"]] = ActivePause(row["reason"], row["since"], row["until"], due)
        self._trials.clear()
        for run in self._ledger.all("live_runs"):
            pause = self._all.get(("driver", run["driver"]))
            # During a limit nothing starts, so a live run that is younger than the pause is the trial run.
            if pause is not None and pause.until is not None and run["created"] >= pause.since:
                self._trials[run["driver"]] = run["id"]

    def add(self, kind: str, name: str, reason: str, now: Instant) -> bool:
        """Pause a name until a person resumes it; returns False if it was paused that way already.

        Replaces a driver's limit.
        """
        before = self._all.get((kind, name))
        if before is not None and before.until is None:
            return False
        self._put(kind, name, ActivePause(reason, now.wall))
        return True

    def limit(self, driver: str, reason: str, resets: float | None, now: Instant) -> tuple[float, bool]:
        """Pause a driver until its limit ends, at `resets` if that is known; returns the end, and whether a new limit began.

        Times are seconds since the epoch. A pause by a person is not changed. A limit in force is never shortened; one that is
        met again after its end doubles the last wait, up to an hour.
        """
        before = self._all.get(("driver", driver))
        resets = None if resets is None else min(resets, now.wall + LONGEST_LIMIT_S)
        self._trials.pop(driver, None)
        if before is not None and before.until is None:
            return max(resets or 0.0, now.wall + FIRST_WAIT_S), False
        # Several runs of the driver meet the same limit, each with its own message: the latest end counts.
        if before is not None and before.until is not None and before.holds(now):
            until = max(before.until, resets or 0.0)
            is_news = False
        else:
            last = before.until - before.since if before is not None and before.until is not None else 0.0
            again = min(2 * last, LONGEST_WAIT_S)
            least = max(again, LEAST_WAIT_S if resets is not None else FIRST_WAIT_S)
            until, is_news = max(resets or 0.0, now.wall + least), True
        self._put("driver", driver, ActivePause(reason, now.wall, until, now.mono + until - now.wall))
        return until, is_news

    def try_one(self, driver: str, now: Instant) -> None:
        """Note that a run of this driver was chosen.

        If a limit should have ended, it is the trial run and all others wait for it.
        """
        pause = self._all.get(("driver", driver))
        if pause is not None and not pause.holds(now):
            self._trials[driver] = None

    def begun(self, driver: str, run: int) -> None:
        """Note the id of the chosen trial run."""
        if driver in self._trials and self._trials[driver] is None:
            self._trials[driver] = run

    def ended(self, driver: str, run: int, now: Instant, *, proves: bool) -> bool:
        """Note the end of a run; returns whether it ended a limit.

        It does if it was the trial run and `proves` is True: the model has answered.
        """
        if self._trials.get(driver, 0) != run:
            return False
        del self._trials[driver]
        pause = self._all.get(("driver", driver))
        return proves and pause is not None and not pause.holds(now) and bool(self._drop("driver", driver))

    def resume(self, name: str) -> list[str]:
        """End all pauses of a name; returns their kinds."""
        return [kind for kind, one in list(self._all) if one == name and self._drop(kind, name)]

    def why(self, kind: str, name: str) -> str | None:
        """The reason of a pause; None if the name is not paused."""
        pause = self._all.get((kind, name))
        return None if pause is None else pause.reason

    def until(self, driver: str, now: Instant) -> float | None:
        """The end of the limit that a driver is at now, in seconds since the epoch; else None."""
        pause = self._all.get(("driver", driver))
        return pause.until if pause is not None and pause.holds(now) else None

    def obstacle(self, kind: str, name: str, now: Instant) -> str | None:
        """The reason, for people, why nothing may start under this name now; None if nothing prevents it."""
        pause = self._all.get((kind, name))
        if pause is None:
            return None
        if pause.until is None:
            return f"{kind} `{name}` is paused: {pause.reason}; `aipass resume {name}` ends that"
        if pause.holds(now):
            moment = show_moment(pause.until, now.wall)
            return f"{name} has reached a limit: {pause.reason}; it is tried again at {moment}, or immediately with `aipass resume {name}`"
        return (
            f"{name} had reached a limit; one trial run first tests whether the limit has ended"
            if name in self._trials
            else None
        )

    def _put(self, kind: str, name: str, pause: ActivePause) -> None:
        self._all[kind, name] = pause
        about = {
            "name": name,
            "kind": kind,
            "reason": pause.reason,
            "since": pause.since,
            "until": pause.until,
        }
        self._ledger.run("set_pause", about)
        if pause.until is not None:
            self._timers.set(f"{LIMIT}:{name}", pause.due)
        elif kind == "driver":
            self._timers.drop(f"{LIMIT}:{name}")

    def _drop(self, kind: str, name: str) -> int:
        self._all.pop((kind, name), None)
        if kind == "driver":
            self._timers.drop(f"{LIMIT}:{name}")
            self._trials.pop(name, None)
        return self._ledger.run("drop_pause", {"name": name, "kind": kind})
