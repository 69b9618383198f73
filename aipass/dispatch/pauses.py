"""What is paused: agents, rules and handlers until somebody resumes them, a driver at its limit until that ends by itself.

A limit that has ended lets one run try; the others follow when that has not met it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.units import show_moment

if TYPE_CHECKING:
    from aipass.clock import Instant
    from aipass.ledger import Ledger
    from aipass.sources.clock import Timers

LIMIT = "limit:"
#: How long a limit is waited for that does not say when it ends: each time in a row twice as long.
FIRST_WAIT_S, LONGEST_WAIT_S = 300.0, 3600.0
#: A moment that a CLI names may have passed by a little when its run has ended, and its clock may differ from ours.
LEAST_WAIT_S = 5.0


class Pauses:
    """The ledger's pauses, remembered."""

    def __init__(self, ledger: Ledger, timers: Timers) -> None:
        self._ledger, self._timers = ledger, timers
        self._reasons: dict[tuple[str, str], str] = {}
        #: When drivers at their limit are tried again: on the monotonic clock, and by the wall's.
        self._until: dict[str, tuple[float, float]] = {}

    def load(self, now: Instant) -> None:
        """Remember what the ledger knows."""
        rows = self._ledger.all("pauses")
        self._reasons = {(row["kind"], row["name"]): row["reason"] for row in rows}
        self._until.clear()
        for row in rows:
            if row["until"] is not None:
                # A clock that was set back must not make it longer.
                wait = min(row["until"] - now.wall, row["until"] - row["since"])
                self._wait(row["name"], now.mono + max(0.0, wait), row["until"])

    def add(self, kind: str, name: str, reason: str, now: Instant) -> bool:
        """Start nothing under this name; whether that is new."""
        if (kind, name) in self._reasons and name not in self._until:
            return False
        self._put(kind, name, reason, now, None)
        self._until.pop(name, None)
        return True

    def limit(self, driver: str, reason: str, resets: float | None, now: Instant) -> tuple[float, bool]:
        """Start nothing with this driver until its limit ends, at `resets` if that is known; returns when, and whether
        that is news.

        Both moments are seconds since the epoch. A pause that a person made stays as it is.
        """
        before = self._ledger.one("pause", {"kind": "driver", "name": driver})
        if before is not None and before["until"] is None:
            return max(resets or 0.0, now.wall + FIRST_WAIT_S), False
        is_news = not self.is_limited(driver, now)
        if before is not None and not is_news and resets is None:
            return float(before["until"]), False  # others that ran then say the same
        if resets is None:
            last = 0.0 if before is None else before["until"] - before["since"]
            resets = now.wall + min(max(FIRST_WAIT_S, 2 * last), LONGEST_WAIT_S)
        until = max(resets, now.wall + LEAST_WAIT_S)
        self._put("driver", driver, reason, now, until)
        self._wait(driver, now.mono + until - now.wall, until)
        return until, is_news

    def passed(self, driver: str, now: Instant) -> bool:
        """A run of this driver has ended without meeting a limit; whether one that had ended is over with that."""
        return driver in self._until and not self.is_limited(driver, now) and self.drop(driver)

    def drop(self, name: str) -> bool:
        """Start under this name again; whether it was paused."""
        self._reasons = {key: reason for key, reason in self._reasons.items() if key[1] != name}
        if self._until.pop(name, None) is not None:
            self._timers.drop(LIMIT + name)
        return self._ledger.run("drop_pause", {"name": name, "kind": None}) > 0

    def why(self, kind: str, name: str) -> str | None:
        """Why something is paused; None where it is not."""
        return self._reasons.get((kind, name))

    def until(self, driver: str) -> float | None:
        """When a driver at its limit is tried again, in seconds since the epoch."""
        return self._until[driver][1] if driver in self._until else None

    def is_limited(self, driver: str, now: Instant) -> bool:
        """Whether a driver is at its limit now."""
        # Whichever clock says first that it is over: the one stands still in a suspended machine, the other may be set.
        return (
            driver in self._until and now.mono < self._until[driver][0] and now.wall < self._until[driver][1]
        )

    def obstacle(self, kind: str, name: str, now: Instant, *, is_busy: bool) -> str | None:
        """Why nothing may be started under this name now; `is_busy`: a run of it lives."""
        reason = self._reasons.get((kind, name))
        if reason is None:
            return None
        if kind != "driver" or name not in self._until:
            return f"{kind} `{name}` is paused: {reason}; `aipass resume {name}` ends that"
        if self.is_limited(name, now):
            moment = show_moment(self._until[name][1], now.wall)
            return f"{name} has reached a limit: {reason}; it is tried again at {moment}, or at once with `aipass resume {name}`"
        return (
            f"{name} had reached a limit, and one run tries first whether that has ended" if is_busy else None
        )

    def _put(self, kind: str, name: str, reason: str, now: Instant, until: float | None) -> None:
        self._reasons[kind, name] = reason
        about = {"name": name, "kind": kind, "reason": reason, "since": now.wall, "until": until}
        self._ledger.run("set_pause", about)

    def _wait(self, driver: str, until: float, moment: float) -> None:
        self._until[driver] = until, moment
        self._timers.set(LIMIT + driver, until)
