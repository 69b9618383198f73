"""A hold that one process has at a time; what an agent that may only read can do to it, and to SQLite's locks: nothing that lasts."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time

import pytest
from patience import PATIENCE
from repository import agent

from aipass.supervisor import hold, lockers
from aipass.workspace.layout import Layout

PYTHON = [sys.executable, "-c"]


def other(code: str, *words: str) -> subprocess.Popen:
    """Another process of ours; returns when it has said something."""
    made = subprocess.Popen([*PYTHON, code, *words], stdout=subprocess.PIPE, text=True)
    made.said = made.stdout.readline().strip()
    return made


TAKE = """
import sys, pathlib, time; from aipass.supervisor import hold
got = hold.take(pathlib.Path(sys.argv[1])); print(got is not None, flush=True); time.sleep(60)
"""


def end(*made: subprocess.Popen) -> None:
    for one in made:
        one.kill()
        one.wait()
        one.stdout.close()


def test_one_process_has_it_and_its_end_is_the_end_of_it(tmp_path):
    path = tmp_path.resolve() / "x.lock"
    first = other(TAKE, str(path))
    assert first.said == "True"
    assert hold.holder(path)["pid"] == first.pid
    assert hold.take(path) is None
    first.kill()
    first.wait()
    assert hold.holder(path) is None
    mine = hold.take(path, version="1")
    assert hold.holder(path)["version"] == "1"
    mine.release()
    mine.release()
    assert not path.exists()
    end(first)


def test_the_same_process_has_it_once(tmp_path):
    path = tmp_path.resolve() / "x.lock"
    mine = hold.take(path)
    assert hold.take(path) is None
    mine.release()
    again = hold.take(path)
    assert again is not None
    again.release()


@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH])
@pytest.mark.parametrize("when", ["while it is held", "after its holder was killed", "on the guard"])
@pytest.mark.slow
def test_a_lock_that_a_reader_takes_keeps_nobody_from_it(tmp_path, kind, when):
    path = tmp_path.resolve() / "x.lock"
    first = other(TAKE, str(path))
    waits = threading.Event()
    locked = path.with_name(hold.GUARD) if when == "on the guard" else path
    reader = os.open(locked, os.O_RDONLY)
    if when == "while it is held":
        thread = threading.Thread(target=lambda: (waits.set(), fcntl.flock(reader, kind)))
        thread.start()
        waits.wait()
    end(first)
    if when == "while it is held":
        thread.join()  # it has it now, as an agent would that waited for the engine's end
    else:
        fcntl.flock(reader, kind)
    assert hold.holder(path) is None
    mine = hold.take(path)
    assert mine is not None
    assert hold.holder(path)["pid"] == os.getpid()
    mine.release()
    os.close(reader)


def test_of_many_at_once_one_has_it(tmp_path):
    path = tmp_path.resolve() / "x.lock"
    begin = time.time() + 0.5
    code = f"import time; time.sleep(max(0, {begin} - time.time()))" + TAKE
    made = [subprocess.Popen([*PYTHON, code, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = [one.stdout.readline().strip() for one in made]
    assert sorted(said) == ["False"] * 7 + ["True"]
    end(*made)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}', '{"pid": 1, "born": 5, "boot": "", "space": 0}', "null"],
)
def test_rubbish_in_its_file_is_nobody(tmp_path, text):
    path = tmp_path.resolve() / "x.lock"
    path.write_text(text)
    assert hold.holder(path) is None
    mine = hold.take(path)
    assert mine is not None
    mine.release()


def test_one_of_another_container_has_it_as_long_as_its_lock(tmp_path):
    path = tmp_path.resolve() / "x.lock"
    path.write_text(json.dumps({"pid": os.getpid(), "born": 1, "boot": "another", "space": 1}))
    handle = os.open(path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert hold.holder(path)["space"] == 1
    assert hold.take(path) is None
    os.close(handle)
    assert hold.holder(path) is None


# -- SQLite's own locks --------------------------------------------------------------------------------------------------

LOCKER = """
import fcntl, os, struct, sys, time
handle = os.open(sys.argv[1], os.O_RDONLY); how = sys.argv[2]
if how == "posix": fcntl.fcntl(handle, fcntl.F_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 120, 1, 0))
if how == "open file": fcntl.fcntl(handle, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 120, 1, 0))
if how == "flock": fcntl.flock(handle, fcntl.LOCK_SH)
if how == "by a child":
    fcntl.flock(handle, fcntl.LOCK_SH)
    if os.fork(): os._exit(0)
print("locked", flush=True); time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="who has a lock is told by /proc")
@pytest.mark.parametrize("how", ["posix", "open file", "flock", "by a child"])
def test_whoever_of_a_run_locks_a_file_of_ours_is_found_and_ended_and_nobody_else(tmp_path, how):
    path = tmp_path / "file"
    path.write_text("x" * 200)
    mine = other(LOCKER, str(path), "flock")  # no run's: a person's own program
    env = {**os.environ, "AIPASS_RUN": "7"}
    theirs = subprocess.Popen([*PYTHON, LOCKER, str(path), how], stdout=subprocess.PIPE, text=True, env=env)
    assert theirs.stdout.readline().strip() == "locked"
    if how == "by a child":
        theirs.wait(PATIENCE)  # or it would be found first, and the child only by the next look
    (ended,) = lockers.end_of_runs(path)
    assert ended.run == "7"
    assert "fcntl" in ended.command
    theirs.wait(PATIENCE)
    assert mine.poll() is None
    assert lockers.end_of_runs(path, tmp_path / "nothing") == []
    end(mine, theirs)


LOCKS = """\
import fcntl, os, struct, sys, time
state = os.environ["AIPASS_ROOT"] + "/.aipass/"
held = []
for name in ["engine.lock", "locks/.guard", ".guard", "locks/b.lock", "ledger.db", "ledger.db-wal", "ledger.db-shm", *(n for n in os.listdir(state) if n.startswith("supervisor-"))]:
    try: handle = os.open(state + name, os.O_RDONLY)
    except OSError: continue
    held.append(handle)
    try: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError: pass
    for byte in (120, 121, 122, 123, 124, 1073741824, 1073741825, 1073741826):
        try: fcntl.fcntl(handle, fcntl.F_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, byte, 1, 0))
        except OSError: pass
print("locked", flush=True)
time.sleep(60)
"""


def test_an_agent_that_takes_every_lock_it_can_stops_neither_engine_nor_others_nor_down(repository):
    repository.write("a.py", LOCKS)
    repository.write("b.py", "print('b')")
    repository.write(
        "aipass.toml", agent("a", "a.py", "owns = []\nretries = 0") + agent("b", "b.py", 'owns = ["b/"]')
    )
    repository.aipass("up", "--detach")
    repository.aipass("send", "a", "go")
    log = repository.root / ".aipass/runs/1/stdout.log"
    repository.wait_for(lambda: log.exists() and "locked" in log.read_text(), "its locks")
    assert (
        repository.aipass("send", "b", "one", "--wait", "--timeout", "150s", timeout=PATIENCE)
        .stdout.strip()
        .endswith("b")
    )
    repository.aipass("down")
    repository.aipass("up", "--detach")
    repository.aipass("send", "b", "two", "--wait", "--timeout", "150s", timeout=PATIENCE)
    engine = hold.holder(Layout(repository.root).engine_lock)["pid"]
    os.kill(engine, signal.SIGKILL)
    repository.aipass("up", "--detach")
    repository.aipass("send", "b", "three", "--wait", "--timeout", "150s", timeout=PATIENCE)
    told = repository.aipass("status").stdout + repository.aipass("events", "--kind", "ledger.locked").stdout
    assert "held a lock on the ledger" in told or "ledger.locked" in told
    repository.aipass("down", "--kill")


def test_a_reader_of_the_ledger_that_is_no_run_is_left_alone(repository):
    repository.write("aipass.toml", agent("b", "b.py"))
    repository.write("b.py", "print('b')")
    repository.aipass("up", "--detach")
    ledger = sqlite3.connect(
        f"file:{repository.root}/.aipass/ledger.db?mode=ro", uri=True, isolation_level=None
    )
    ledger.execute("BEGIN")
    ledger.execute("SELECT count(*) FROM events").fetchone()
    for number in range(3):
        repository.aipass("send", "b", str(number), "--wait")
    assert ledger.execute("SELECT count(*) FROM dispatches").fetchone() == (0,)
    ledger.close()


def test_a_lock_record_is_what_the_kernel_says(tmp_path):
    """The layout of struct flock that these tests speak, on this machine."""
    path = tmp_path / "x"
    path.write_text("x")
    with path.open("rb+") as file:
        found = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 1, 0))
    assert struct.unpack("hhqqi4x", found)[0] == fcntl.F_UNLCK
