"""Many runs that are stopped together: what looks cost does not grow with the square of their number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aipass.supervisor import process
from aipass.supervisor.run import Run
from aipass.supervisor.server import Supervisor
from aipass.supervisor.spawn import Spec
from aipass.supervisor.trees import AGE_S, AGES, Recent, Trees

MANY = 12


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("takes", [0.0, 0.001, 0.5, 30.0])
def test_however_long_a_look_takes_looking_is_a_small_part_of_the_time(takes):
    clock, looks = Clock(), []

    def look():
        looks.append(clock.now)
        clock.now += takes
        return len(looks)

    recent = Recent(look, clock)
    for _ in range(1000):
        assert recent.get() == len(looks)
        clock.now += 0.001
    assert sum([takes] * len(looks)) <= takes + clock.now / AGES


def test_a_look_is_soon_too_old():
    clock, looks = Clock(), []
    recent = Recent(lambda: looks.append(1), clock)
    recent.get()
    clock.now += 2 * AGE_S
    recent.get()
    assert len(looks) == 2


def test_a_look_that_is_forgotten_is_taken_anew():
    looks = []
    recent = Recent(lambda: looks.append(1) or looks, Clock())
    recent.get()
    recent.forget()
    recent.get()
    assert len(looks) == 2


def a_run(number, root, leader=None):
    spec = Spec(number, f"a{number}", Path(root), str(root), (), {}, str(root), False, 0, 0, False, (0, 0, 0))
    return Run(spec, None, leader=leader)


@pytest.fixture
def sleepers():
    made = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        for _ in range(MANY)
    ]
    yield made
    for one in made:
        one.kill()
        one.wait()


def test_runs_that_are_killed_together_are_frozen_together(sleepers, tmp_path):
    runs = [a_run(number, tmp_path, process.look(one.pid)) for number, one in enumerate(sleepers)]
    looks = []
    trees = Trees()
    trees._table = Recent(lambda: looks.append(1) or process.table())
    for run in runs:
        assert trees.signal(run, signal.SIGKILL, runs) == [run.leader.pid]
    assert [one.wait() for one in sleepers] == [-signal.SIGKILL] * MANY
    assert len(looks) < MANY, "each run took a look of its own"


def test_a_run_that_is_killed_again_is_frozen_again(sleepers, tmp_path):
    one, other = sleepers[:2]
    run = a_run(1, tmp_path, process.look(one.pid))
    trees = Trees()
    trees.signal(run, signal.SIGKILL, [run])
    run.orphans.add(other.pid)  # found since
    assert other.pid in trees.signal(run, signal.SIGKILL, [run])


def test_what_is_no_child_of_ours_is_never_signalled_for_having_been_a_runs(sleepers, tmp_path):
    """Its id may be a stranger's, or another run's, a moment later."""
    supervisor = Supervisor(tmp_path, "test")
    run = a_run(1, tmp_path)
    run.end(0)
    supervisor._runs[1] = run
    supervisor._trees.remains = lambda _: {sleepers[0].pid}
    supervisor._tell = lambda _: None
    supervisor._settle_anew(run)
    assert run.told_orphans
    assert not run.roots()
    assert Trees().signal(run, signal.SIGKILL, [run]) == []
    assert sleepers[0].poll() is None
    supervisor._selector.close()
    os.close(supervisor._wake_in)
    os.close(supervisor._wake_out)


def test_a_run_whose_fence_is_not_quiet_is_looked_at_by_one_timer(tmp_path):
    """However often others end meanwhile: a timer each of them would be as many as all ends of all runs."""
    supervisor = Supervisor(tmp_path, "test")
    run = a_run(1, tmp_path)
    run.quiet, run.status = False, 0
    supervisor._runs[1] = run
    for _ in range(100):
        supervisor._settle_anew(run)
    due = []
    while (when := supervisor._timers.next()) is not None and when <= time.monotonic() + 60:
        due.append(when)
        supervisor._timers._heap.pop(0)
    assert len(due) == 1
    os.close(supervisor._wake_in)
    os.close(supervisor._wake_out)
    supervisor._selector.close()
