"""The command line end to end: a real repository, a real engine, real processes, every verb, every promised field."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from git_kit import git
from repository import agent

pytestmark = pytest.mark.slow
ECHO = "import sys; print('I was asked:', sys.stdin.read().strip())"
SLOW = "import sys, time, os; open('begun-' + os.environ['AIPASS_RUN'], 'w').close(); time.sleep(float(sys.stdin.read())); print('done')"


@pytest.fixture
def ready(repository):
    """A repository with an agent that answers at once and one that sleeps as long as it is told."""
    repository.write("echo.py", ECHO)
    repository.write("slow.py", SLOW)
    repository.write("aipass.toml", agent("writer", "echo.py") + agent("slow", "slow.py"))
    repository.aipass("init")
    return repository


@pytest.fixture
def up(ready):
    ready.aipass("up", "--detach")
    return ready


def read(repository, *words):
    return json.loads(repository.aipass(*words, "--json").stdout)


def test_init_writes_what_is_missing_and_overwrites_nothing(repository):
    repository.write(".git/info/exclude", "mine\n")
    assert "is written" in repository.aipass("init").stdout
    text = (repository.root / "aipass.toml").read_text()
    repository.write("aipass.toml", text + "# mine\n")
    assert "left unchanged" in repository.aipass("init").stdout
    assert (repository.root / "aipass.toml").read_text().endswith("# mine\n")
    exclude = (repository.root / ".git/info/exclude").read_text()
    assert exclude.startswith("mine\n")
    assert exclude.count("/inbox/") == 1
    assert (repository.root / ".aipass").stat().st_mode & 0o777 == 0o700
    repository.write("inbox/writer/x", "1")
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=repository.root, capture_output=True, text=True, check=True
    ).stdout
    assert status == "?? agent.py\n?? aipass.toml\n"
    subprocess.run(["git", "clean", "-fdxq"], cwd=repository.root, check=True)
    assert (repository.root / ".aipass/spool").is_dir()


@pytest.mark.parametrize(
    "words",
    [("init",), ("up", "--detach"), ("doctor",), ("status",), ("events",), ("plan", "list")],
    ids=" ".join,
)
def test_git_add_works_after_whatever_was_called_first_with_a_broken_configuration(repository, words):
    repository.write("aipass.toml", "[[agent]]\nname = 'x'\n")
    repository.aipass(*words, check=None)
    git(repository.root, "add", "-A")
    assert git(repository.root, "diff", "--cached", "--name-only").strip() == "aipass.toml"


def test_status_says_that_the_configuration_is_broken_and_all_else(ready):
    ready.write("aipass.toml", "[agents.writer\n")
    found = read(ready, "status")
    assert "aipass.toml:1" in found["attention"][0]
    assert found["engine"]["running"] is False


@pytest.mark.parametrize(
    "text", ["[agents.writer\n", "[agents.other]\ndriver = 3\n"], ids=["no TOML", "refused"]
)
def test_while_a_broken_configuration_is_not_in_force_the_one_before_is_shown_and_asked(up, text):
    before = read(up, "status")["agents"]
    up.write("aipass.toml", text)
    up.wait_for(lambda: "old one stays in force" in up.aipass("status").stdout, "the notice")
    assert read(up, "status")["agents"] == before
    assert up.aipass("send", "writer", "hello", "--wait", check=None).returncode == 0
    up.aipass("down")
    if "other" not in text:
        assert "not valid TOML" in up.aipass("send", "writer", "x", check=2).stderr


def test_the_example_agent_of_init_answers(repository):
    repository.aipass("init", env={"PATH": "/usr/bin:/bin"})
    repository.aipass("up", "--detach")
    assert repository.aipass("send", "writer", "hello", "--wait").stdout == "I was asked: hello\n"


def test_init_finds_installed_agents(repository, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("claude", "gemini"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    out = repository.aipass("init", env={"PATH": f"{programs}:/usr/bin:/bin"}).stdout
    assert "claude, gemini" in out
    assert (repository.root / "inbox/gemini").is_dir()


def test_a_dropped_file_is_answered_and_everything_about_it_can_be_asked(up):
    up.write("inbox/writer/hello.md", "Write hello.txt\n")
    answer = up.answer("writer/hello.*.md")
    assert answer.read_text() == "I was asked: Write hello.txt\n"
    record = json.loads(answer.with_suffix(".json").read_text())
    assert sorted(record) == sorted(
        [
            "dispatch",
            "agent",
            "state",
            "subject",
            "senders",
            "started",
            "finished",
            "exit",
            "answer",
            "reason",
            "usage",
        ]
    )
    up.wait_for(lambda: read(up, "show", "1")["answer"], "the answer's path")
    (row,) = read(up, "dispatches")
    assert sorted(row) == sorted(
        [
            "id",
            "agent",
            "state",
            "key",
            "subject",
            "senders",
            "plan",
            "phase",
            "attempts",
            "created",
            "started",
            "finished",
            "reason",
        ]
    )
    shown = read(up, "show", "1")
    assert (shown["answer"], shown["state"], shown["senders"]) == (
        "outbox/writer/hello.1.md",
        "succeeded",
        ["inbox/writer/hello.md"],
    )
    assert set(shown["runs"][0]) == {"id", "pid", "started", "finished", "exit", "signal", "outcome"}
    assert shown["runs"][0]["outcome"] == "succeeded"
    assert up.aipass("logs", "1").stdout == "I was asked: Write hello.txt\n"
    assert up.aipass("show", "1", "--prompt").stdout == "Write hello.txt\n"
    why = read(up, "why", "1")
    assert [link["type"] for link in why["chain"]] == ["event", "dispatch", "run"]
    assert why["chain"][0]["id"] == shown["cause"]
    assert {"handler": "inbox", "outcome": "dispatch", "reason": "dispatch 1"} in why["decisions"]
    assert read(up, "why", "outbox/writer/hello.1.md")["chain"] == why["chain"]
    assert read(up, "why", "inbox/writer/hello.md")["chain"][0] == why["chain"][0]
    events = [json.loads(line) for line in up.aipass("events", "--json").stdout.splitlines()]
    assert all(
        sorted(event) == sorted(["id", "time", "kind", "path", "ref", "source", "by", "cause", "detail"])
        for event in events
    )
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    folder = up.root / ".aipass/runs/1"
    assert {"prompt.md", "stdout.log", "stderr.log", "result.json", "exit"} <= {
        path.name for path in folder.iterdir()
    }
    for words in (
        ["dispatches"],
        ["show", "1"],
        ["why", "1"],
        ["events"],
        ["status"],
        ["events", "--limit", "2", "--kind", "run.*"],
    ):
        assert up.aipass(*words).stdout


def test_status_has_what_scripts_rely_on(up):
    found = read(up, "status")
    assert found["engine"]["running"] is True
    assert {"pid", "version", "started"} <= set(found["engine"])
    assert set(found["layers"]) == {"fence", "wall"}
    assert found["agents"] == [
        {"name": name, "driver": "command", "running": 0, "queued": 0} for name in ("writer", "slow")
    ]
    assert set(found["counts"]) == {"queued", "running", "succeeded", "failed", "cancelled", "blocked"}
    assert found["plans"] == found["leases"] == []


def test_send_prints_the_id_alone_and_waits_if_asked(up):
    assert up.aipass("send", "writer", "hi").stdout == "1\n"
    done = up.aipass("send", "writer", "--wait", stdin="from stdin")
    assert done.stdout == "I was asked: from stdin\n"
    up.write("text.txt", "from a file")
    assert up.aipass("send", "writer", "-f", "text.txt", "--wait").stdout == "I was asked: from a file\n"


def test_send_wait_ends_with_1_when_the_dispatch_fails(up):
    up.write("echo.py", "import sys; sys.exit('no')")
    done = up.aipass("send", "writer", "hi", "--wait", check=1)
    assert "exit status 1: no" in done.stdout


def test_without_an_engine_a_request_waits_and_its_id_stays_good(ready):
    done = ready.aipass("send", "writer", "later")
    request = done.stdout.strip()
    assert request.startswith("r-")
    assert "the engine is not running" in done.stderr
    assert ready.aipass("send", "writer", "x", "--wait", check=4)
    ready.aipass("up", "--until-idle")
    assert read(ready, "show", request)["state"] == "succeeded"
    assert ready.aipass("logs", request).stdout == "I was asked: later\n"


def test_five_at_the_same_moment_with_one_subject_are_one_run_and_five_answers(up):
    with ThreadPoolExecutor(5) as pool:
        answers = list(
            pool.map(
                lambda _: up.aipass("send", "slow", "0.5", "--subject", "same", "--wait").stdout, range(5)
            )
        )
    assert answers == ["done\n"] * 5
    (row,) = read(up, "dispatches")
    assert len(row["senders"]) == 5
    assert row["attempts"] == 1


def test_five_different_subjects_are_five_runs_in_order_never_two_at_once(up):
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda n: up.aipass("send", "slow", "0.1", "--subject", f"s{n}", "--wait"), range(5)))
    spans = sorted(
        (run["started"], run["finished"])
        for row in read(up, "dispatches")
        for run in read(up, "show", str(row["id"]))["runs"]
    )
    assert len(spans) == 5
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_cancel_stops_a_run_and_retry_runs_it_again(up):
    up.aipass("send", "slow", "60")
    up.wait_for(lambda: (up.root / "begun-1").exists())
    assert "being stopped" in up.aipass("cancel", "1").stdout
    up.wait_for(lambda: read(up, "show", "1")["state"] == "cancelled")
    assert up.aipass("cancel", "1", check=1)
    up.write("slow.py", "print('quick')")
    up.aipass("retry", "1")
    up.wait_for(lambda: read(up, "show", "1")["state"] == "succeeded")
    assert read(up, "show", "1")["attempts"] == 2


def test_logs_follows_until_the_end(up):
    up.write("slow.py", "import time\nfor n in range(3): print(n, flush=True); time.sleep(0.1)")
    up.aipass("send", "slow", "go")
    assert up.aipass("logs", "1", "-f").stdout == "0\n1\n2\n"


def test_runs_go_on_without_the_engine_and_are_found_again(up):
    up.aipass("send", "slow", "1.5")
    up.wait_for(lambda: (up.root / "begun-1").exists())
    up.aipass("down")
    assert read(up, "status")["engine"]["running"] is False
    up.aipass("up", "--until-idle")
    shown = read(up, "show", "1")
    assert (shown["state"], len(shown["runs"])) == ("succeeded", 1)


def test_down_kill_ends_runs_with_and_without_an_engine(up):
    up.aipass("send", "slow", "60")
    up.wait_for(lambda: (up.root / "begun-1").exists())
    up.aipass("down")
    up.aipass("down", "--kill")
    up.wait_for(lambda: not up.pids(), "the end of all processes")
    up.aipass("up", "--until-idle")
    assert read(up, "show", "1")["state"] == "cancelled"


def test_a_second_engine_is_refused_and_names_the_first(up):
    pid = read(up, "status")["engine"]["pid"]
    assert f"process {pid}" in up.aipass("up", check=3).stderr
    assert f"process {pid}" in up.aipass("up", "--detach").stdout


def test_until_idle_has_a_timeout(ready):
    ready.aipass("send", "slow", "60")
    assert (
        "stopped before everything was done"
        in ready.aipass("up", "--until-idle", "--timeout", "1s", check=1).stderr
    )


def test_an_agent_asks_as_itself_and_may_not_do_what_is_for_people(up):
    up.write(
        "slow.py",
        "import subprocess, sys\n"
        "for words in (['send', 'writer', 'from slow'], ['cancel', '1'], ['reload'], ['status', '--json']):\n"
        "    done = subprocess.run(['aipass', *words], capture_output=True, text=True)\n"
        "    print(words[0], done.returncode)\n",
    )
    up.aipass("send", "slow", "go")
    up.wait_for(lambda: read(up, "show", "1")["state"] == "succeeded")
    assert up.aipass("logs", "1").stdout == "send 0\ncancel 3\nreload 3\nstatus 0\n"
    assert read(up, "show", "2")["senders"] == ["slow"]
    why = read(up, "why", "2")["chain"]
    assert [link["type"] for link in why] == ["event", "run", "event", "dispatch", "run"]
    assert not list((up.root / ".aipass/spool").glob("run-*"))


def test_why_answers_for_what_did_not_start(up):
    up.write(
        "aipass.toml",
        agent("writer", "echo.py")
        + '[[on]]\nname = "r"\nevent = "file.closed"\npaths = ["src/"]\nwhere = { size = 1 }\ndispatch = "writer"\ntask = "t"\n',
    )
    up.aipass("reload")
    up.write("doc/x", "22")
    up.write("src/y", "22")
    up.wait_for(lambda: "src/y" in up.aipass("events").stdout)
    assert {"handler": "rule r", "outcome": "no match", "reason": "the path is none of src/"} in read(
        up, "why", "doc/x"
    )["decisions"]
    assert {"handler": "rule r", "outcome": "no match", "reason": "size is 2, not 1"} in read(
        up, "why", "src/y"
    )["decisions"]
    assert "does not watch it" in up.aipass("why", "node_modules/x", check=1).stderr


def test_a_changed_configuration_is_taken_over_and_a_broken_one_shown(up):
    text = (up.root / "aipass.toml").read_text()
    up.write("aipass.toml", text + "[limits]\nconcurrency = 1\n")
    up.wait_for(lambda: "config.changed" in up.aipass("events").stdout)
    up.write("aipass.toml", text + "[limits]\nconcurency = 1\n")
    up.wait_for(
        lambda: any("did you mean `concurrency`" in note for note in read(up, "status")["attention"]),
        "the note in status",
    )
    assert ":10: limits.concurency" in up.aipass("reload", check=2).stderr
    up.write("aipass.toml", text + agent("third", "echo.py"))
    up.wait_for(
        lambda: any("agents.third" in note for note in read(up, "status")["attention"]), "the note in status"
    )
    up.aipass("reload")
    assert up.aipass("send", "third", "hi", "--wait").stdout == "I was asked: hi\n"


def test_help_completion_schema_plugins_and_doctor(ready):
    from aipass.cli.main import VERBS

    out = ready.aipass("--help").stdout
    assert all(verb in out for verb in VERBS)
    for verb in VERBS:
        assert "Usage" in ready.aipass(verb, "-h").stdout
    for shell in ("bash", "zsh", "fish"):
        assert "_AIPASS_COMPLETE" in ready.aipass("completion", shell).stdout
    for what in ("config", "event", "dispatch", "request"):
        assert json.loads(ready.aipass("schema", what).stdout)["$schema"]
    assert {row["name"] for row in read(ready, "plugins")} >= {
        "inbox",
        "rules",
        "answers",
        "command",
        "claude",
    }
    findings = {row["what"]: row["state"] for row in read(ready, "doctor")}
    assert findings["supervisor"] == findings["aipass.toml"] == "ok"
    assert "wrong" not in findings.values()


def test_no_colours_without_a_terminal_and_none_where_they_are_not_wanted(ready):
    assert "\033" not in ready.aipass("status").stdout
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        done = subprocess.run(
            ["script", "-qec", f"{sys.executable} -m aipass status", "/dev/null"],
            cwd=ready.root,
            env={**clean, **env, "TERM": "xterm"},
            capture_output=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        assert (b"\033[" in done.stdout) == coloured


def test_tables_fit_the_terminal(up):
    up.aipass("send", "writer", "word " * 60, "--wait")
    done = subprocess.run(
        ["script", "-qec", f"stty cols 80; {sys.executable} -m aipass dispatches", "/dev/null"],
        cwd=up.root,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_the_demo_shows_it_all(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "aipass", "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "I wrote hello.txt",
        "Verdict: it has",
        "clock.tick rule review",
        "the engine is not running; the request is queued",
        "plan 0001  Login  done",
        "refused: [Errno 13] Permission denied: 'app/model.py'",
        "of web: plan 0001 reserves it for phase model",
    ):
        assert words in done.stdout
