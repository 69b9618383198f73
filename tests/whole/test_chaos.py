"""kill -9 of engine, supervisor and both, by time and at fault points: nothing lost, nothing recorded as done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from paths import KITS
from patience import PATIENCE
from repository import agent
from rounds import rounds

from aipass.supervisor import process

FAULTY = str(KITS / "faulty.py")

AGENT = """\
import os, sys, time, random
text = sys.stdin.read()
time.sleep(random.random() * 0.05)
with open(os.path.join(os.environ["AIPASS_ROOT"], os.environ["AIPASS_AGENT"] + ".log"), "a") as log:
    log.write(os.environ["AIPASS_DISPATCH"] + "\\n")
print("answer to", text.strip())
"""
AGENTS = 6


class Victims:
    """The engine and the supervisor of a repository, started again whenever they are gone."""

    def __init__(self, repository):
        self._repository = repository
        self.engine = None
        self.kills = 0

    def start(self, *words):
        with open(self._repository.root / "engine.out", "ab") as log:
            self.engine = subprocess.Popen(
                [sys.executable, *(words or ("-m", "aipass")), "up"],
                cwd=self._repository.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def is_up(self):
        return self.engine is not None and self.engine.poll() is None

    def kill_engine(self):
        if self.is_up():
            self.engine.kill()
            self.kills += 1
        if self.engine is not None:
            self.engine.wait()

    def kill_supervisor(self):
        for path in (self._repository.root / ".aipass").glob("supervisor-*.lock"):
            try:
                pid = json.loads(path.read_text())["pid"]
                if str(path.parent) in process.command_line(pid):
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1
            except (OSError, ValueError, KeyError):
                pass


def everything_is_in_order(repository, expected: int):
    """Every file answered, each dispatch succeeded in exactly one recorded end, nothing left behind."""
    root = repository.root
    db = sqlite3.connect(f"file:{root}/.aipass/ledger.db?mode=ro", uri=True)
    states = dict(db.execute("SELECT state, count(*) FROM dispatches GROUP BY state"))
    assert states == {"succeeded": expected}, (
        states,
        db.execute("SELECT id, state, reason FROM dispatches WHERE state <> 'succeeded'").fetchall()[:5],
    )
    doubled = db.execute(
        "SELECT dispatch, count(*) FROM runs WHERE outcome = 'succeeded' GROUP BY dispatch HAVING count(*) > 1"
    ).fetchall()
    assert doubled == []
    assert db.execute("SELECT count(*) FROM runs WHERE state <> 'ended'").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM actions WHERE state = 'pending'").fetchone() == (0,)
    finished = db.execute(
        "SELECT ref, count(*) FROM events WHERE kind = 'dispatch.finished' GROUP BY ref HAVING count(*) > 1"
    ).fetchall()
    assert finished == []
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    answers = list(root.glob("outbox/*/*.md"))
    assert len(answers) == expected
    for answer in answers:
        assert answer.read_text() == f"answer to {answer.name.split('.')[0]}\n"
        assert json.loads(answer.with_suffix(".json").read_text())["state"] == "succeeded"
    assert list(root.glob("inbox/*/*")) == []
    assert [p for p in (root / ".aipass/spool").rglob("*") if p.is_file()] == []
    assert sorted(p.name for p in (root / ".aipass/spool").iterdir()) == ["git", "human"]
    leftovers = [p for p in root.rglob("*") if p.name.endswith(".tmp") or ".exit." in p.name]
    assert leftovers == []


def drop(repository, number):
    name = f"f{number}"
    folder = repository.root / f"inbox/a{number % AGENTS}"
    if number % 3 == 0:
        (folder / f".{name}.md").write_text(name)
        (folder / f".{name}.md").rename(folder / f"{name}.md")
    else:
        (folder / f"{name}.md").write_text(name)


def make(repository):
    repository.write("agent.py", AGENT)
    repository.write(
        "aipass.toml",
        "".join(agent(f"a{n}", "agent.py", "retries = 100") for n in range(AGENTS))
        + "[limits]\nruns_per_hour = 100000\n",
    )
    repository.aipass("init")


def finish(repository, expected, victims):
    if victims.is_up():
        victims.engine.terminate()
        victims.engine.wait(PATIENCE)
    done = repository.aipass("up", "--until-idle", "--timeout", "200s", timeout=2 * PATIENCE, check=None)
    assert done.returncode == 0, done.stderr + repository.aipass("status").stdout
    everything_is_in_order(repository, expected)
    repository.aipass("down", "--kill")
    repository.wait_for(lambda: not repository.pids(), "the end of all processes")
    assert not list((repository.root / ".aipass").glob("*.sock"))


#: A slow machine must not be given more to do than a fast one.
MOST_FILES = 400


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(1, rounds(2, 5)))
def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(repository, seed):
    """Kills of engine, supervisor, or both, while hundreds of files are dropped."""
    make(repository)
    chance = random.Random(seed)
    victims = Victims(repository)
    files, kills = 0, rounds(6, 60)
    while victims.kills < kills:
        if not victims.is_up():
            victims.start()
        end = time.monotonic() + chance.uniform(0.05, 0.9)
        while time.monotonic() < end and files < MOST_FILES:
            drop(repository, files)
            files += 1
            time.sleep(chance.uniform(0.01, 0.12))
        what = chance.choice(["engine", "supervisor", "both"])
        if what != "engine":
            victims.kill_supervisor()
        if what != "supervisor":
            victims.kill_engine()
    finish(repository, files, victims)
    assert files >= 3 * kills


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_at_fault_points_lose_nothing_and_repeat_nothing(repository):
    """The engine kills itself at random boundaries of transactions and of what it does in the world."""
    make(repository)
    chance = random.Random(7)
    victims = Victims(repository)
    files = 0
    while victims.kills < rounds(5, 60):
        for _ in range(3):
            drop(repository, files)
            files += 1
        victims.start(FAULTY, str(chance.randint(1, 60)))
        end = time.monotonic() + 20
        while victims.is_up() and time.monotonic() < end:
            if files < MOST_FILES:
                drop(repository, files)
                files += 1
            time.sleep(0.06)
        assert not victims.is_up(), "the fault point was never reached"
        assert victims.engine.returncode == -signal.SIGKILL, (repository.root / "engine.out").read_text()[
            -2000:
        ]
        victims.kills += 1
        if chance.random() < 0.2:
            victims.kill_supervisor()
    finish(repository, files, victims)
