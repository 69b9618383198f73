"""A thread of one source: it sleeps until another thread requests work or the kernel reports a change."""

from __future__ import annotations

import os
import queue
import select
import threading
from typing import TYPE_CHECKING

import structlog

from aipass.sources import inotify
from aipass.workspace.crash_report import write_report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = structlog.get_logger("aipass")


class Worker:
    """Runs requested work in the order of the requests, and `look` after each wait.

    `look` gets the kernel's events, in the thread. `patience` returns after how many seconds to call `look` again without
    any event, or None. `crashes`: the folder for crash reports. `watches`: whether it wants the kernel's events at all.
    """

    def __init__(
        self,
        name: str,
        crashes: Path,
        look: Callable[[list[inotify.Raw]], None],
        patience: Callable[[], float | None] = lambda: None,
        *,
        watches: bool = True,
    ) -> None:
        self._name, self._crashes, self._look, self._patience = name, crashes, look, patience
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_in, self._wake_out = os.pipe()
        # A full pipe must not block the thread that wakes this one, nor an empty one this thread.
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._open, self._lock, self._ending, self._is_over = 0, threading.Lock(), False, False
        self._thread: threading.Thread | None = None
        self._watches = watches
        #: None where the kernel reports nothing: no inotify on this system, or none left for this user.
        self.inotify: inotify.Inotify | None = None

    def start(self) -> None:
        """Open inotify, where there is one, and start the thread. Without inotify only requests and `patience` wake it."""
        try:
            self.inotify = inotify.Inotify() if self._watches else None
        except (OSError, AttributeError):
            self.inotify = None
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the requested work, then end the thread and close its files; returns when it has ended."""
        self._ending = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        # Under the lock: `ask` in another thread must never write to a descriptor number that is another file's by then.
        with self._lock:
            self._is_over = True
            os.close(self._wake_in)
            os.close(self._wake_out)
        if self.inotify is not None:
            self.inotify.close()

    def ask(self, work: Callable[[], None]) -> None:
        """Queue `work` for the thread; does nothing after `stop`. Callable from any thread."""
        with self._lock:
            if self._is_over:
                return
            self._open += 1
            self._asked.put(work)
            self._wake()

    def is_settled(self) -> bool:
        """Return whether all requested work is done; work that runs now counts as open."""
        with self._lock:
            return self._open == 0

    def attempt(self, work: Callable[[], None]) -> None:
        """Run `work`; log an OSError, and write a crash report for any other error. Never raises, so the thread goes on."""
        try:
            work()
        except OSError as exc:
            logger.error("work of a source failed", what=self._name, error=str(exc))
        except Exception as exc:  # noqa: BLE001 - the thread's own boundary: a bug becomes a report
            report = write_report(self._crashes, exc, self._name)
            logger.error("a bug in aipass", report=str(report), error=str(exc))

    def _wake(self) -> None:
        try:
            os.write(self._wake_out, b"w")
        except OSError:
            pass  # the pipe is full, so the thread is awake already

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        if self.inotify is not None:
            poll.register(self.inotify.descriptor, select.POLLIN)
        while True:
            while not self._asked.empty():
                self.attempt(self._asked.get())
                # After the work, so that `is_settled` is true only when its results are there.
                with self._lock:
                    self._open -= 1
            if self._ending and self._asked.empty():
                return
            wait = self._patience()
            poll.poll(None if wait is None else wait * 1000)
            try:
                os.read(self._wake_in, 4096)
            except BlockingIOError:
                pass
            self.attempt(self._round)

    def _round(self) -> None:
        self._look([] if self.inotify is None else self.inotify.read())
