"""What a command costs over a bare interpreter, and what a long history costs a restart."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

import pytest

from aipass.features.dispatch.driver import prewrite_hook
from aipass.ledger import Ledger
from benchmarks import kit

pytestmark = pytest.mark.bench

ROUNDS, RESTARTS, HISTORY = kit.size(15, 1), kit.size(5, 1), kit.size(10_000, 200)


def timed(command: list[str], cwd) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return time.perf_counter() - began


@pytest.fixture
def bytecode(tmp_path, monkeypatch):
    """Compiled once, as where it is installed, whatever the shell says of bytecode; in a folder of the test's."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "bytecode"))


def test_commands_over_a_bare_interpreter(root, row, tmp_path, stub, bytecode):
    repo = root(kit.agent("w", stub.command("w", stay=True)) + kit.MANY_RUNS)
    repo.up()
    repo.aipass("send", "w", "the one that runs; all others wait for it")
    script = kit.installed("aipass")
    program = [script] if script else [sys.executable, "-m", "aipass"]
    took: dict[str, list[float]] = {"bare": [], "send": [], "status": []}
    for number in range(ROUNDS + 1):
        commands = {
            "bare": [sys.executable, "-c", "pass"],
            "send": [*program, "send", "w", f"Do {number}"],
            "status": [*program, "status"],
        }
        for name, command in commands.items():
            took[name].append(timed(command, repo.layout.root))
    assert repo.ask("SELECT count(*) FROM dispatches") == ROUNDS + 2
    middle = {name: statistics.median(values[1:]) for name, values in took.items()}
    for name, goal in (("send", "<= 60 ms over bare"), ("status", "")):
        over = middle[name] - middle["bare"]
        row(
            f"aipass {name}, over python -c pass",
            f"{kit.ms(middle[name])} (+{kit.ms(over)})",
            kit.ms(middle["bare"]),
            middle[name] / middle["bare"],
            goal,
            met=over <= 0.060 if goal else None,
        )


def test_the_pre_write_hook_over_a_bare_interpreter(row, tmp_path, bytecode):
    """An agent's CLI starts it before each file that it writes by its own tool."""
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps({"tool_input": {"file_path": "/nowhere/x"}, "cwd": "/"}))
    env = {**os.environ, "AIPASS_DENIED": str(tmp_path / "denied.md")}
    took: dict[str, list[float]] = {"bare": [], "hook": []}
    for _ in range(ROUNDS + 1):
        for name, command in (("bare", f"{sys.executable} -I -S -c pass"), ("hook", prewrite_hook())):
            with asked.open() as file:
                began = time.perf_counter()
                subprocess.run(["sh", "-c", command], stdin=file, env=env, capture_output=True, check=True)
                took[name].append(time.perf_counter() - began)
    middle = {name: statistics.median(values[1:]) for name, values in took.items()}
    row(
        "the pre-write hook, over python -I -S -c pass",
        kit.ms(middle["hook"]),
        kit.ms(middle["bare"]),
        middle["hook"] / middle["bare"],
        "<= 30 ms",
        met=middle["hook"] <= 0.030,
    )


def fill(layout, *, files: bool) -> None:
    """10,000 finished dispatches of the last 30 days; with their folders and answers where `files`."""
    ledger = Ledger.open(layout.ledger)
    now, first = time.time(), ledger.last_event
    span = 30 * 86400 / HISTORY
    with ledger.transaction():
        db = ledger._db
        db.executemany(
            "INSERT INTO events (id, time, kind, source, path, ref, run, cause, detail) VALUES (?,?,?,?,?,?,?,?,?)",
            (
                (first + n * 4 + k, now - (HISTORY - n) * span, kind, "bench", None, str(n), None, None, "{}")
                for n in range(1, HISTORY + 1)
                for k, kind in enumerate(
                    ("request.received", "run.started", "run.finished", "dispatch.finished")
                )
            ),
        )
        db.executemany(
            "INSERT INTO actions (id, event, handler, type, payload, state, outcome) VALUES (?,?,?,?,?,?,?)",
            (
                (n, first + n * 4, "requests", "Dispatch", '{"agent":"w"}', "done", f"dispatch {n}")
                for n in range(1, HISTORY + 1)
            ),
        )
        db.executemany(
            "INSERT INTO dispatches (id, agent, key, state, priority, hops, attempts, tries, created, started,"
            " finished, cause, handler, answer, exit) VALUES (?,'w',?,'succeeded',0,0,1,1,?,?,?,?,'requests',?,0)",
            (
                (n, f"k{n}", t := now - (HISTORY - n) * span, t, t, first + n * 4, f"outbox/w/send.{n}.md")
                for n in range(1, HISTORY + 1)
            ),
        )
        db.executemany(
            "INSERT INTO senders (dispatch, sender, stem, text, event) VALUES (?, 'human', 'send', ?, ?)",
            ((n, f"Do {n}", first + n * 4) for n in range(1, HISTORY + 1)),
        )
        db.executemany(
            "INSERT INTO runs (id, dispatch, agent, state, pid, created, started, finished, exit, outcome)"
            " VALUES (?,?,'w','ended',1,?,?,?,0,'exited')",
            ((n, n, t := now - (HISTORY - n) * span, t, t) for n in range(1, HISTORY + 1)),
        )
        db.executemany(
            "INSERT INTO requests (id, event, exit, message, dispatch) VALUES (?,?,0,'',?)",
            ((f"r-{n:08d}", first + n * 4, n) for n in range(1, HISTORY + 1)),
        )
    ledger.close()
    if files:
        (layout.outbox / "w").mkdir(parents=True, exist_ok=True)
        for n in range(1, HISTORY + 1):
            folder = layout.run(n)
            folder.mkdir()
            (folder / "exit.json").write_text("{}")
            (layout.outbox / "w" / f"send.{n}.md").write_text("done\n")
            (layout.outbox / "w" / f"send.{n}.json").write_text("{}\n")


def test_restart_with_a_long_history(root, row, bytecode):
    toml = kit.agent("w", ["true"])
    repos = {"empty": root(toml), "ledger": root(toml), "files": root(toml)}
    for repo in repos.values():
        repo.aipass("up", "--until-idle")
    fill(repos["ledger"].layout, files=False)
    fill(repos["files"].layout, files=True)
    for repo in repos.values():  # answers that nobody knew of are news once
        repo.aipass("up", "--until-idle")
    took: dict[str, list[float]] = {name: [] for name in repos}
    for _ in range(RESTARTS):
        for name, repo in repos.items():
            command = [sys.executable, "-m", "aipass", "up", "--until-idle"]
            took[name].append(timed(command, repo.layout.root))
    empty = statistics.median(took["empty"])
    for name, what in (("ledger", ""), ("files", ", with run folders and answers")):
        assert repos[name].ask("SELECT count(*) FROM dispatches WHERE state = 'succeeded'") == HISTORY
        ours = statistics.median(took[name])
        row(
            f"up --until-idle, 10,000 finished dispatches{what}; peer: empty root",
            kit.ms(ours),
            kit.ms(empty),
            ours / empty,
        )
