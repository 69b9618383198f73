"""Notices on their way to people: plugins deliver them, in a thread of their own, so that a slow one keeps nothing waiting."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

logger = structlog.get_logger("aipass")

#: A notifier that hangs is not waited for; those that wait behind it beyond this many are only in the ledger.
MOST_WAITING = 1000
#: How long an engine that stops waits for those under way.
STOP_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person must see.

    `text`: whole sentences. `time`: seconds since the epoch. `about`: what it is about, `kind name` (`question 7`, `rule review`,
    `agent api`, `plan 3`, `config aipass.toml`), None where it is about no such thing; when that is over, the notice is withdrawn.
    `event`: the event that led to it. `root`: the repository's absolute path. `agent` and `dispatch`: whose it is, where it is
    somebody's. `options`: what may be answered to a question; empty: anything.
    """

    text: str
    time: float = 0.0
    about: str | None = None
    event: int | None = None
    root: str = ""
    agent: str | None = None
    dispatch: int | None = None
    options: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`question`, `rule`, `agent`, `plan`, `config`; `notice` for all else."""
        return "notice" if self.about is None else self.about.partition(" ")[0]

    @property
    def question(self) -> int | None:
        """The question that it asks, for `aipass answer`."""
        return (
            int(self.about.partition(" ")[2]) if self.about is not None and self.kind == "question" else None
        )


class Notices:
    """Hands notices to `deliver`: at once until `start`, then in a thread."""

    def __init__(self, deliver: Callable[[Notice], None]) -> None:
        self._deliver = deliver
        self._waiting: queue.Queue[Notice | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._is_over = False

    def start(self) -> None:
        """Deliver in a thread from here on."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="notices", daemon=True)
            self._thread.start()

    def tell(self, notice: Notice) -> None:
        """Have it delivered, once; returns at once where the thread runs."""
        if self._is_over:
            logger.warning("a notice is not delivered: the engine has ended", text=notice.text)
            return
        if self._thread is None:
            self._deliver(notice)
            return
        try:
            self._waiting.put_nowait(notice)
        except queue.Full:
            logger.error("a notice is not delivered: a notifier hangs", text=notice.text)

    def stop(self) -> None:
        """End, after what waits, or after a few seconds."""
        self._is_over = True
        if self._thread is None:
            return
        until = time.monotonic() + STOP_WAIT_S
        try:
            self._waiting.put(None, timeout=STOP_WAIT_S)
        except queue.Full:
            return  # it hangs; it ends with the process
        self._thread.join(max(0.0, until - time.monotonic()))
        self._thread = None

    def _run(self) -> None:
        while (notice := self._waiting.get()) is not None:
            self._deliver(notice)
