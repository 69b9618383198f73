"""What an adversary tried, and what held afterwards: agents that get in the way, full disks, odd moments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from patience import PATIENCE
from repository import agent
from rounds import few
from supervisor_kit import supervised

from aipass.errors import LedgerError
from aipass.event import Fact
from aipass.ledger import Ledger
from aipass.supervisor import process

pytestmark = pytest.mark.slow


@pytest.fixture
def house(tmp_path):
    with supervised(tmp_path) as made:
        yield made


BARE = '[sandbox]\nfence = "off"\nwall = "off"\n'


def script(repository, text: str, more: str = "retries = 1", sandbox: str = "") -> None:
    repository.write("agent.py", text)
    repository.write("other.py", "import sys; print('other', sys.stdin.read())")
    repository.write("aipass.toml", agent("a", "agent.py", more) + agent("b", "other.py") + sandbox)
    repository.aipass("init")
    repository.aipass("up", "--detach")


def state(repository, number: int) -> str:
    return json.loads(repository.aipass("show", str(number), "--json").stdout)["state"]


@pytest.mark.parametrize(
    "trick",
    few(
        [
            "os.makedirs(run + '/.result.json.tmp/x')",
            "os.makedirs(run + '/.exit.tmp/x')",
            "os.remove(run + '/stdout.log'); os.mkfifo(run + '/stdout.log')",
            "os.remove(run + '/stdout.log'); os.symlink('/dev/zero', run + '/stdout.log')",
            "shutil.rmtree(run)",
            "os.makedirs(root + '/.aipass/spool/run-99999999999999999999')",
        ],
        3,
    ),
)
def test_an_agent_that_spoils_its_own_run_folder_stops_nobody(repository, trick):
    script(
        repository,
        f"import os, shutil\nroot = os.environ['AIPASS_ROOT']\nrun = root + '/.aipass/runs/' + os.environ['AIPASS_RUN']\n{trick}\n",
        sandbox=BARE,
    )
    repository.write("inbox/a/x.md", "go")
    repository.answer("a/x.1.md")
    assert repository.aipass("send", "b", "hi", "--wait").stdout == "other hi\n"
    repository.aipass("down")
    repository.aipass("up", "--until-idle", "--timeout", "150s")
    assert state(repository, 1) == "succeeded"


def test_a_spool_folder_replaced_by_a_link_harms_nobody(repository, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    for number in range(5):
        (victim / f".rc{number}").write_text("mine")
    script(
        repository,
        f"import os\nspool = os.environ['AIPASS_SPOOL']\nos.rmdir(spool)\nos.symlink({str(victim)!r}, spool)\n",
    )
    repository.write("inbox/a/x.md", "go")
    repository.answer("a/x.1.md")
    repository.wait_for(
        lambda: not list((repository.root / ".aipass/spool").glob("run-*")), "the end of the link"
    )
    assert len(list(victim.iterdir())) == 5


def test_a_cancel_before_the_run_has_begun_is_kept(repository):
    import fcntl

    script(repository, "open('ran', 'w')")
    lock = repository.root / ".aipass/locks/a.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        repository.aipass("send", "a", "go")
        time.sleep(0.3)
        repository.aipass("cancel", "1")
    repository.wait_for(lambda: state(repository, 1) == "cancelled")
    assert not (repository.root / "ran").exists()


def test_a_supervisor_that_is_ending_leaves_new_starts_to_the_next(house):
    house.python(
        1,
        "import signal, time\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)",
    )
    while "up" not in (house.output(1) if (house.layout.run(1) / "stdout.log").exists() else ""):
        time.sleep(0.01)
    os.kill(house.pid(), signal.SIGTERM)
    time.sleep(0.1)
    house.start(2, "true")
    assert "ending" in house.wait("busy", 2)["reason"]
    assert house.wait("ended", 1)["outcome"] == "lost"
    house.supervisors._process.wait(PATIENCE)


def test_an_agents_helper_is_not_taken_by_another_runs_end(house):
    code = "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: os.execve('/bin/sleep', ['sleep', '303'], {})\n  os._exit(0)\ntime.sleep(1)"
    house.python(1, code)
    time.sleep(0.3)
    house.start(2, "true")
    assert house.wait("ended", 2)["left"] == []
    ended = house.wait("ended", 1)
    assert any("sleep 303" in line for line in ended["left"])
    assert [pid for pid in process.table() if process.command_line(pid) == "sleep 303"] == []


def test_a_start_that_could_not_be_claimed_lets_go_of_its_agent(house):
    house.layout.run(1).mkdir()
    (house.layout.run(1) / "claim").mkdir()
    (house.layout.run(1) / "claim").rmdir()
    house.layout.run(1).rmdir()
    folder = str(house.layout.run(1))
    message = {
        "run": 1,
        "agent": "a1",
        "folder": folder,
        "root": str(house.layout.root),
        "argv": ["true"],
        "env": {},
    }
    message |= {"cwd": "/", "stdin": False, "timeout_s": 0, "stall_s": 0, "linger": False}
    house.supervisors.start_run(message)
    assert "No such file" in house.wait("busy", 1)["reason"]
    house.start(1, "true")
    assert house.wait("ended", 1)["exit"] == 0


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux" or shutil.which("mount") is None,
    reason="needs root to mount a small disk",
)
def test_a_full_disk_ends_no_run_and_repeats_none(tmp_path, repository):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        subprocess.run(["git", "init", "-q", disk], check=True)
        small = type(repository)(disk)
        script(
            small,
            "import sys, time\nopen('/'.join(sys.argv[0].split('/')[:-1] + ['a.count']) or 'a.count', 'a').write('x')\ntime.sleep(5)\nprint('done')",
        )
        small.aipass("send", "a", "go")
        small.wait_for(lambda: (disk / "a.count").exists())
        with pytest.raises(OSError), (disk / "filler").open("wb") as filler:
            while True:
                filler.write(b"x" * 4096)
                filler.flush()
        time.sleep(3)
        (disk / "filler").unlink()
        small.wait_for(lambda: state(small, 1) == "succeeded", "the run's end", 30)
        assert small.aipass("send", "b", "hi", "--wait").stdout == "other hi\n"
        assert len(json.loads(small.aipass("show", "1", "--json").stdout)["runs"]) == 1
        small.aipass("down", "--kill")
        small.wait_for(lambda: not small.pids())
    finally:
        (disk / "filler").unlink(missing_ok=True)
        subprocess.run(
            [sys.executable, "-m", "aipass", "down", "--kill"], cwd=disk, check=False, capture_output=True
        )
        subprocess.run(["umount", "-l", disk], check=True)


def test_what_waits_while_the_ledger_refuses_is_kept_in_order(aipass_bench, monkeypatch):
    bench = aipass_bench()
    working, refuse = Ledger.transaction, [True]

    def transaction(self):
        if refuse[0]:
            raise LedgerError("database or disk is full")
        return working(self)

    bench.engine._timers.set("wake:x", bench.clock.now().mono + 0.5)
    monkeypatch.setattr(Ledger, "transaction", transaction)
    for number in range(3):
        bench.engine.tell(
            [
                Fact(
                    "request.received",
                    "spool",
                    ref=f"r-000{number}",
                    detail={"verb": "send", "agent": "writer", "text": str(number)},
                )
            ]
        )
        bench.settle()
        bench.advance(0.3)
    refuse[0] = False
    bench.advance(3)
    assert [row["key"] for row in bench.dispatches()] == ["0", "1", "2"]


def test_a_reload_whose_commit_fails_is_done_whole_later(aipass_bench, monkeypatch):
    bench = aipass_bench()
    working, fail = Ledger.flush, [False]

    def flush(self):
        if fail[0]:
            raise sqlite3.OperationalError("disk is full")
        working(self)

    monkeypatch.setattr(Ledger, "flush", flush)
    bench.layout.config.write_text(
        bench.layout.config.read_text() + '[agents.new]\ndriver = "command"\ncommand = ["cat"]\n'
    )
    bench.engine.tell([Fact("request.received", "spool", ref="r-0001", detail={"verb": "reload"})])
    bench.engine.step()
    fail[0] = True
    bench.engine.step()
    assert "new" not in bench.engine.config.agents
    fail[0] = False
    bench.advance(3)
    assert "new" in bench.engine.config.agents
    assert (bench.layout.inbox / "new").is_dir()


def test_a_folder_moved_into_the_inbox_is_worked_on(repository):
    script(repository, "print('did')")
    repository.write("stage/y.md", "hey")
    repository.wait_for(lambda: "stage/y.md" in repository.aipass("events").stdout)
    (repository.root / "inbox/a").rmdir()
    (repository.root / "stage").rename(repository.root / "inbox/a")
    repository.answer("a/y.*.md")


def test_the_same_link_handed_in_twice_is_two_requests(repository):
    script(repository, "print('did')")
    repository.write("task.md", "again")
    for number in (1, 2):
        os.link(repository.root / "task.md", repository.root / "inbox/a/task.md")
        repository.answer(f"a/task.{number}.md")
        repository.wait_for(lambda: not (repository.root / "inbox/a/task.md").exists())


def test_an_inbox_that_is_a_link_is_refused(repository, tmp_path):
    repository.write("aipass.toml", agent("a", "agent.py"))
    (repository.root / "inbox").symlink_to(tmp_path)
    assert "is a symbolic link" in repository.aipass("up", check=2).stderr


def test_down_never_signals_a_process_that_did_not_say_who_it_is(repository):
    import fcntl

    repository.write("aipass.toml", agent("a", "agent.py"))
    repository.aipass("init")
    with (repository.root / ".aipass/engine.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "without its pid in it" in repository.aipass("down", check=1).stderr


def test_files_that_vanish_leave_no_notes(repository):
    script(repository, "print('did')")
    for number in range(50):
        path = repository.write(f"inbox/a/{number}", "")
        path.unlink()
    repository.aipass("send", "b", "hi", "--wait")
    assert list((repository.root / "inbox/a").iterdir()) == []
