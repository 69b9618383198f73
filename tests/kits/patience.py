"""How long a test waits for what must happen: far longer than it ever takes, since only a failure waits so long.

What a test proves may not hang on the speed of a machine that others load as well: it waits for the event itself, and
no count of what happens within a time of the clock is ever asserted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

#: Seconds. A machine that was forty times slower than an idle one has been seen.
PATIENCE = 150


def until(condition: Callable[[], Found], what: object = "it", timeout: float = PATIENCE) -> Found:
    """The first true value of `condition()`; `what` is called last, if it can be, for the words of the failure."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError(f"{what() if callable(what) else what} did not happen within {timeout} s")
