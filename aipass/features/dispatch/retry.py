"""When another attempt is made: exponential backoff with jitter, the same for the same attempt."""

from __future__ import annotations

import zlib

#: A model's server that is overloaded has been asked several times by the CLI itself.
BASE_S, OVERLOAD_BASE_S = 1.0, 20.0
FACTOR = 3.0
LONGEST_S = 300.0
#: Share by which a wait is spread, so that many that failed together do not come back together.
JITTER = 0.2

#: Ends of a run after which another attempt makes sense; an agent that reported failure is believed.
RETRIED = frozenset(("lost", "start-failed", "overload"))


def delay_s(dispatch: int, attempt: int, outcome: str = "lost") -> float:
    """Seconds to wait after the failed `attempt` (1, 2, …) of a dispatch, which ended with `outcome`."""
    base = OVERLOAD_BASE_S if outcome == "overload" else BASE_S
    wait = min(LONGEST_S, base * FACTOR ** min(attempt - 1, 20))
    share = zlib.crc32(f"{dispatch}:{attempt}".encode()) / 0xFFFFFFFF
    return wait * (1 + JITTER * (2 * share - 1))


def is_retried(outcome: str, tries: int, retries: int) -> bool:
    """Whether a run that ended with `outcome`, the try number `tries` since it was asked for, is followed by another."""
    return outcome in RETRIED and tries <= retries
