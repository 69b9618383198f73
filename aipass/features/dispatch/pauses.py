"""What is paused: agents, rules and handlers until somebody resumes them, a driver at its limit until that ends by itself.

A limit that has ended lets one run try; the others follow when that has not met it again.
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
#: How long a limit is waited for that does not say when it ends: each time in a row twice as long.
FIRST_WAIT_S, LONGEST_WAIT_S = 300.0, 3600.0
#: A moment that a CLI names may have passed by a little when its run has ended, and its clock may differ from ours.
LEAST_WAIT_S = 5.0
#: Whatever a CLI says: then one run tries, which costs little. Weekly limits are the longest that are known.
LONGEST_LIMIT_S = 8 * 86400.0


@dataclass(frozen=True, slots=True)
class ActivePause:
    """Nothing starts under a name. A limit has an `until`, by the wall's clock, and is `due` then on the monotonic one."""

    reason: str
    since: float
    until: float | None = None
    due: float = 0.0

    def holds(self, now: Instant) -> bool:
        """Whether it holds still. Whichever clock says first that a limit is over: the one stands still in a suspended
        machine, the other may be set.
        """
        return self.until is None or (now.mono < self.due and now.wall < self.until)


class Pauses:
    """The ledger's pauses, remembered by kind and name."""

    def __init__(self, ledger: Ledger, timers: Timers) -> None:
        self._ledger, self._timers = ledger, timers
        self._all: dict[tuple[str, str], ActivePause] = {}
        #: Drivers whose limit should have ended, and the run that tries whether it has (None: it is just being chosen).
        self._trials: dict[str, int | None] = {}

    def load(self, now: Instant) -> None:
        """Remember what the ledger knows."""
        self._all.clear()
        for row in self._ledger.all("pauses"):
            due = 0.0
            if row["until"] is not None:
                # A clock that was set back must not make it longer.
                due = now.mono + max(0.0, min(row["until"] - now.wall, row["until"] - row["since"]))
                self._timers.set(f"{LIMIT}:{row['name']}", due)
            self._all[row["kind"], row["name"]] = ActivePause(row["reason"], row["since"], row["until"], due)
        self._trials.clear()
        for run in self._ledger.all("live_runs"):
            pause = self._all.get(("driver", run["driver"]))
            if pause is not None and pause.until is not None and run["created"] >= pause.since:
                self._trials[run["driver"]] = run["id"]

    def add(self, kind: str, name: str, reason: str, now: Instant) -> bool:
        """Start nothing under this name until somebody resumes it; whether that is new."""
        before = self._all.get((kind, name))
        if before is not None and before.until is None:
            return False
        self._put(kind, name, ActivePause(reason, now.wall))
        return True

    def limit(self, driver: str, reason: str, resets: float | None, now: Instant) -> tuple[float, bool]:
        """Start nothing with this driver until its limit ends, at `resets` if that is known; returns when, and whether
        that is news.

        Both moments are seconds since the epoch. A pause that a person made stays as it is; a limit never becomes shorter,
        and one that is met again when it should have ended is waited for twice as long as before, up to an hour.
        """
        before = self._all.get(("driver", driver))
        resets = None if resets is None else min(resets, now.wall + LONGEST_LIMIT_S)
        self._trials.pop(driver, None)
        if before is not None and before.until is None:
            return max(resets or 0.0, now.wall + FIRST_WAIT_S), False
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
        """A run of this driver is chosen: where its limit should have ended, the others wait for what comes of it."""
        pause = self._all.get(("driver", driver))
        if pause is not None and not pause.holds(now):
            self._trials[driver] = None

    def begun(self, driver: str, run: int) -> None:
        """The run that was chosen has this id."""
        if driver in self._trials and self._trials[driver] is None:
            self._trials[driver] = run

    def ended(self, driver: str, run: int, now: Instant, *, proves: bool) -> bool:
        """A run has ended; whether it was the one that tried, and `proves` that the limit is over."""
        if self._trials.get(driver, 0) != run:
            return False
        del self._trials[driver]
        pause = self._all.get(("driver", driver))
        return proves and pause is not None and not pause.holds(now) and bool(self._drop("driver", driver))

    def resume(self, name: str) -> list[str]:
        """Start under this name again; returns the kinds that were paused under it."""
        return [kind for kind, one in list(self._all) if one == name and self._drop(kind, name)]

    def why(self, kind: str, name: str) -> str | None:
        """Why something is paused; None where it is not."""
        pause = self._all.get((kind, name))
        return None if pause is None else pause.reason

    def until(self, driver: str, now: Instant) -> float | None:
        """When a driver that is at its limit now is tried again, in seconds since the epoch; else None."""
        pause = self._all.get(("driver", driver))
        return pause.until if pause is not None and pause.holds(now) else None

    def obstacle(self, kind: str, name: str, now: Instant) -> str | None:
        """Why nothing may be started under this name now."""
        pause = self._all.get((kind, name))
        if pause is None:
            return None
        if pause.until is None:
            return f"{kind} `{name}` is paused: {pause.reason}; `aipass resume {name}` ends that"
        if pause.holds(now):
            moment = show_moment(pause.until, now.wall)
            return f"{name} has reached a limit: {pause.reason}; it is tried again at {moment}, or at once with `aipass resume {name}`"
        return (
            f"{name} had reached a limit, and one run tries first whether that has ended"
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
