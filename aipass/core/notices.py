"""The delivery of notices (notifications) by plugins, in a separate thread, so that a slow plugin does not block the engine."""

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

#: Notices that wait behind a plugin that hangs. Further ones are not delivered, but `aipass status` shows them.
MOST_WAITING = 1000
#: How long an engine that stops waits for the deliveries that are left.
STOP_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification that a person must see.

    `text`: complete sentences. `time`: seconds since the epoch. `about`: the subject as `kind name` (`question 7`,
    `rule review`, `agent api`, `plan 3`, `config aipass.toml`), or None; the notice is withdrawn when the subject is
    settled. `event`: the event that led to it. `root`: the absolute path of the repository. `agent` and `dispatch`: the
    agent and the work that it concerns, if any. `options`: the answers to choose from, for a question; empty: any text.
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
        """The kind of the subject: `question`, `rule`, `agent`, `plan`, `driver`, `handler` or `config`; `notice` if there is no subject."""
        return "notice" if self.about is None else self.about.partition(" ")[0]

    @property
    def question(self) -> int | None:
        """The id of the question, for `aipass answer`; None if the notice is not a question."""
        return (
            int(self.about.partition(" ")[2]) if self.about is not None and self.kind == "question" else None
        )


class Notices:
    """Passes notices to `deliver`: directly until `start` is called, then in a thread, in order."""

    def __init__(self, deliver: Callable[[Notice], None]) -> None:
        self._deliver = deliver
        self._waiting: queue.Queue[Notice | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._is_over = False

    def start(self) -> None:
        """Deliver in a thread from now on. Idempotent."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="notices", daemon=True)
            self._thread.start()

    def tell(self, notice: Notice) -> None:
        """Deliver a notice once. Returns immediately if the thread runs; drops the notice, with a log line, if it hangs."""
        if self._is_over:
            logger.warning("a notice is not delivered: the engine has ended", text=notice.text)
            return
        if self._thread is None:
            self._deliver(notice)
            return
        try:
            self._waiting.put_nowait(notice)
        except queue.Full:
            logger.error("a notice is not delivered: a plugin that delivers notices hangs", text=notice.text)

    def stop(self) -> None:
        """Deliver what waits, then end; gives up after STOP_WAIT_S."""
        self._is_over = True
        if self._thread is None:
            return
        # One time limit for both waits: the queue can be full, and the plugin can hang in a delivery.
        until = time.monotonic() + STOP_WAIT_S
        try:
            self._waiting.put(None, timeout=STOP_WAIT_S)
        except queue.Full:
            return  # the plugin hangs; a daemon thread ends with the process
        self._thread.join(max(0.0, until - time.monotonic()))
        self._thread = None

    def _run(self) -> None:
        while (notice := self._waiting.get()) is not None:
            self._deliver(notice)
