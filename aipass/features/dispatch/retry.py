"""The delay before another attempt: exponential backoff with jitter, deterministic for each attempt."""

from __future__ import annotations

import zlib

#: An overloaded server has a longer first wait: the CLI itself has already asked it several times.
BASE_S, OVERLOAD_BASE_S = 1.0, 20.0
FACTOR = 3.0
LONGEST_S = 300.0
#: The share by which a wait varies, so that dispatches that failed together do not start again together.
JITTER = 0.2

#: Outcomes of a run that are retried. `failed` is not one: the agent has worked and reported a failure.
RETRIED = frozenset(("lost", "start-failed", "overload"))


def delay_s(dispatch: int, attempt: int, outcome: str = "lost") -> float:
    """Seconds to wait after the failed `attempt` (1, 2, …) of a dispatch, which ended with `outcome`."""
    # A hash instead of a random number: a step that is repeated after a failed commit computes the same time.
    base = OVERLOAD_BASE_S if outcome == "overload" else BASE_S
    wait = min(LONGEST_S, base * FACTOR ** min(attempt - 1, 20))
    share = zlib.crc32(f"{dispatch}:{attempt}".encode()) / 0xFFFFFFFF
    return wait * (1 + JITTER * (2 * share - 1))


def is_retried(outcome: str, tries: int, retries: int) -> bool:
    """Whether a run that ended with `outcome` is followed by another attempt.

    `tries`: attempts since the last request or retry.
    """
    return outcome in RETRIED and tries <= retries
