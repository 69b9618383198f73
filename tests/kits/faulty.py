"""`python faulty.py COUNT up …`: aipass that kills itself at the COUNT-th fault point.

A fault point is a boundary of a transaction (before and after its COMMIT) or of anything done in the world (before and
after it). Product code knows nothing of them.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from contextlib import contextmanager

from aipass.cli.main import main
from aipass.core.executor import Executor
from aipass.core.spool_files import SpoolFiles
from aipass.features.dispatch.launcher import Launcher
from aipass.features.dispatch.outbox import Outbox
from aipass.features.dispatch.supervisors import Supervisors
from aipass.ledger.sqlite import Ledger

left = int(sys.argv.pop(1))


def point() -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def guard(cls, name):
    method = getattr(cls, name)

    @functools.wraps(method)
    def guarded(*args, **kwargs):
        point()
        result = method(*args, **kwargs)
        point()
        return result

    setattr(cls, name, guarded)


transaction = Ledger.transaction


@contextmanager
def guarded_transaction(self):
    with transaction(self):
        yield
        point()
    point()


Ledger.transaction = guarded_transaction
for cls, names in (
    (Executor, ("_do",)),
    (Launcher, ("start", "verdict")),
    (Outbox, ("_write", "_put_answer")),
    (SpoolFiles, ("consume", "close")),
    (Supervisors, ("start_run", "adopt")),
):
    for name in names:
        guard(cls, name)
main()
