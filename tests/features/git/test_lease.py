"""The git lease: one at a time, in the order of asking, and nobody who died holds it; and git's own index.lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from patience import until

from aipass.errors import RefusedError
from aipass.features.git import indexlock
from aipass.features.git.lease import FOLDER, Lease

HOLD = """\
import sys, time
from pathlib import Path
from aipass.features.git.lease import Lease
with Lease(Path(sys.argv[1])).hold(sys.argv[2], "a test", 30):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder, name):
    words = [sys.executable, "-c", HOLD, str(folder), name]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def lease(tmp_path):
    return Lease(tmp_path)


def test_it_is_had_for_a_block_and_given_back(lease, tmp_path):
    with lease.hold("api", "a PR") as held:
        held.check()
        (ticket,) = lease.tickets()
        assert (ticket.holder, ticket.reason, ticket.pid) == ("api", "a PR", os.getpid())
        assert abs(ticket.since - time.time()) < 60
    assert lease.tickets() == []
    assert os.listdir(tmp_path / FOLDER) == ["00000000000000000001.done"]


def test_another_is_refused_with_who_has_it_and_since_when(lease):
    with (
        lease.hold("api", "a PR"),
        pytest.raises(RefusedError, match=r"held by api \(process \d+\), since 20.*: a PR"),
        lease.hold("web", "b", 0.05),
    ):
        pass
    with lease.hold("web", "b", 0.0):
        pass


def test_they_come_in_the_order_of_asking(lease):
    order, threads = [], []

    def take(number):
        with lease.hold(str(number), "x", 30):
            order.append(number)

    with lease.hold("first", "x"):
        for number in range(10):
            thread = threading.Thread(target=take, args=(number,))
            thread.start()
            threads.append(thread)
            until(lambda queue=number + 2: len(lease.tickets()) >= queue)
    for thread in threads:
        thread.join()
    assert order == list(range(10))


def test_who_is_killed_has_lost_it(lease, tmp_path):
    child = holder(tmp_path, "doomed")
    assert child.stdout.readline() == "held\n"
    assert [ticket.holder for ticket in lease.tickets()] == ["doomed"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    with lease.hold("next", "x", 5.0):
        assert [ticket.holder for ticket in lease.tickets()] == ["next"]
    child.stdin.close()
    child.stdout.close()


def test_an_agent_that_locks_every_file_there_keeps_nobody_waiting(lease, tmp_path):
    code = """\
import fcntl, os, sys
held = [os.open(os.path.join(sys.argv[1], name), os.O_RDONLY) for name in os.listdir(sys.argv[1])]
for one in held:
    fcntl.flock(one, fcntl.LOCK_EX)
    fcntl.lockf(one, fcntl.LOCK_SH)
print("locked", flush=True)
sys.stdin.read()
"""
    with lease.hold("first", "x"):
        words = [sys.executable, "-c", code, str(tmp_path / FOLDER)]
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "locked\n"
    with lease.hold("second", "x", 1.0):
        pass
    child.communicate()


def test_a_ticket_of_a_process_with_a_number_that_came_again_is_dead(lease, tmp_path):
    with lease.hold("x", "x"):
        (name,) = (name for name in os.listdir(tmp_path / FOLDER) if name.isdecimal())
        path = tmp_path / FOLDER / name
        ticket = json.loads(path.read_text())
        path.write_text(json.dumps({**ticket, "born": ticket["born"] + 1}))
        assert lease.tickets() == []
    (tmp_path / FOLDER / "00000000000000000009").write_text("nonsense")
    with lease.hold("y", "y", 1.0):
        assert [one.holder for one in lease.tickets()] == ["y"]


def test_a_lease_that_was_broken_is_noticed_before_anything_is_changed(lease):
    with lease.hold("api", "x") as held:
        assert lease.break_().holder == "api"
        with lease.hold("person", "y", 1.0):
            pass
        with pytest.raises(RefusedError, match="broken by a person"):
            held.check()


def test_many_processes_never_have_it_at_once(tmp_path):
    code = """\
import os, sys
from pathlib import Path
from aipass.features.git.lease import Lease
mark = Path(sys.argv[1], "mark")
for n in range(20):
    with Lease(Path(sys.argv[1])).hold("x", "y", 60):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        os.unlink(mark)
"""
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(6)]
    assert [child.wait() for child in children] == [0] * 6
    assert Lease(tmp_path).tickets() == []


# -- index.lock --------------------------------------------------------------------------------------------------------


def old(path):
    """As if it had stood there for long: its ctime cannot be set, so that the rule's age is taken away."""
    path.write_text("")
    return path


def test_a_lock_that_is_young_or_open_or_of_a_git_that_lives_is_held(tmp_path, monkeypatch):
    assert indexlock.look(tmp_path) is None
    path = old(tmp_path / "index.lock")
    assert "seconds old" in indexlock.look(tmp_path).why_held
    assert not indexlock.remove_stale(tmp_path)
    monkeypatch.setattr(indexlock, "MIN_AGE_S", 0.0)
    code = "import sys; f = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child.stdout.readline()
    assert indexlock.look(tmp_path).why_held.endswith("has it open")
    assert not indexlock.remove_stale(tmp_path)
    assert path.exists()
    child.communicate()


def test_a_lock_that_nobody_holds_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(indexlock, "MIN_AGE_S", 0.0)
    monkeypatch.setattr(indexlock, "LOCKERS", ("no-such-program",))
    old(tmp_path / "index.lock")
    assert indexlock.look(tmp_path).why_held is None
    assert indexlock.remove_stale(tmp_path)
    assert os.listdir(tmp_path) == []
    assert indexlock.remove_stale(tmp_path)


@contextmanager
def a_git(cwd):
    """A process that is called git and works in a folder, with no file open."""
    code = "import ctypes,sys; ctypes.CDLL(None).prctl(15, b'git', 0, 0, 0); print('on', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd)  # fmt: skip
    child.stdout.readline()
    yield child
    child.communicate()


def test_a_git_that_was_there_when_the_lock_was_made_may_hold_it(tmp_path, monkeypatch):
    monkeypatch.setattr(indexlock, "MIN_AGE_S", 0.0)
    own = tmp_path / "r/.git"
    own.mkdir(parents=True)
    for cwd, held in ((own.parent, True), (tmp_path, False)):
        with a_git(cwd):
            old(own / "index.lock")
            why = str(indexlock.look(own).why_held)
            assert ("(git) was already running when aipass first saw" in why) is held
            assert indexlock.remove_stale(own) is not held


@pytest.mark.parametrize("pause", [0, 1.5])
def test_a_git_with_an_open_editor_keeps_its_lock_however_late_it_is_looked_at(tmp_path, monkeypatch, pause):
    """The lock's file is closed then. The kernel makes the entry of a process in /proc when somebody first looks at it."""
    monkeypatch.setattr(indexlock, "MIN_AGE_S", 0.0)
    own = tmp_path / "r/.git"
    own.mkdir(parents=True)
    with a_git(own.parent) as editing:
        old(own / "index.lock")
        time.sleep(pause)
        assert str(editing.pid) in str(indexlock.look(own).why_held)
        assert not indexlock.remove_stale(own)


def test_a_git_that_began_after_the_lock_was_seen_does_not_hold_it(tmp_path, monkeypatch):
    """Agents that start one git after the other must not keep a stale lock alive."""
    monkeypatch.setattr(indexlock, "MIN_AGE_S", 0.0)
    own = tmp_path / "r/.git"
    own.mkdir(parents=True)
    old(own / "index.lock")
    assert indexlock.look(own).why_held is None
    time.sleep(0.05)
    with a_git(own.parent):
        assert indexlock.look(own).why_held is None
        assert indexlock.remove_stale(own)


def test_a_clock_that_is_set_says_nothing_of_who_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(indexlock, "MIN_AGE_S", 0.0)
    own = tmp_path / "r/.git"
    own.mkdir(parents=True)
    with a_git(own.parent):
        old(own / "index.lock")
        late = time.time() + 86_400
        monkeypatch.setattr(indexlock.time, "time", lambda: late)
        assert indexlock.look(own).why_held is not None


def test_it_is_taken_as_git_takes_it_and_known_after_a_crash(tmp_path):
    with indexlock.taken(tmp_path, "aipass 1 2"):
        assert (tmp_path / "index.lock").read_text() == "aipass 1 2"
        with (
            pytest.raises(RefusedError, match="another git command is running"),
            indexlock.taken(tmp_path, "other", 0.05),
        ):
            pass
        assert (tmp_path / "index.lock").exists()
    assert os.listdir(tmp_path) == []
    (tmp_path / "index.lock").write_text("aipass 1 2")
    indexlock.drop(tmp_path, "aipass 9 9")
    assert (tmp_path / "index.lock").exists()
    indexlock.drop(tmp_path, "aipass 1 2")
    assert os.listdir(tmp_path) == []


def test_of_programs_that_hide_their_files_only_a_git_may_hold_it(tmp_path, monkeypatch):
    """Keepers of keys, sandboxes of browsers and other engines of the same user hide theirs; the lock of nobody is removed all the same."""

    listdir = os.listdir

    def hidden(place):
        if str(place).endswith("/fd"):
            raise PermissionError
        return listdir(place)

    monkeypatch.setattr(indexlock.os, "listdir", hidden)
    monkeypatch.setattr(indexlock, "MIN_AGE_S", 0.0)
    other = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    for lockers, held in ((("no-such-program",), False), (("cat",), True)):
        monkeypatch.setattr(indexlock, "LOCKERS", lockers)
        old(tmp_path / "index.lock")
        assert ("cannot read its list" in str(indexlock.look(tmp_path).why_held)) is held
        assert indexlock.remove_stale(tmp_path) is not held
    other.communicate()
