"""State and talk with everything real: the engine as a process, agents behind the fence, kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fence_kit import NO_FENCE
from patience import PATIENCE
from rounds import rounds
from talk_kit import talk

pytestmark = pytest.mark.slow
FENCED = pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}")


def build(repository, scripts, more=""):
    """Agents that are shell scripts, by their names."""
    toml = more
    for name, script in scripts.items():
        repository.write(f"{name}.sh", script)
        toml += f'\n[agents.{name}]\ndriver = "command"\ncommand = ["sh", "{name}.sh"]\n'
    repository.write("aipass.toml", toml)
    repository.aipass("init")
    repository.aipass("up", "--detach")


def read(repository, *words):
    return json.loads(repository.aipass(*words, "--json").stdout)


def local(repository, agent):
    return json.loads((repository.root / f".aipass/agents/{agent}/.trinity/local.json").read_text())


def kill_engine(repository):
    pid = read(repository, "status")["engine"]["pid"]
    if pid:
        os.kill(pid, signal.SIGKILL)


def events(repository, kind):
    return [
        json.loads(line) for line in repository.aipass("events", "--json", "--kind", kind).stdout.splitlines()
    ]


def test_an_agent_reads_and_edits_its_own_state_and_is_told_what_was_wrong(repository):
    script = """\
state=.aipass/agents/api/.trinity/local.json
aipass note --todo "mend the tests"
sed -i 's/mend the tests/mend all tests/' $state
until grep -q '"id"' $state && aipass trinity show api | grep -q "mend all"; do sleep 0.05; done
echo '{"todos": [' > $state
until ls $AIPASS_MAIL/*.md >/dev/null 2>&1; do sleep 0.05; done
cat $AIPASS_MAIL/*.md
cat $state
"""
    build(repository, {"api": script})
    said = repository.aipass("send", "api", "go", "--wait").stdout
    assert "local.json could not be used: line 2: this is not JSON" in said
    assert [todo["text"] for todo in local(repository, "api")["todos"]] == ["mend all tests"]
    repository.wait_for(lambda: read(repository, "messages", "api")[0]["read"], "the reading")
    assert local(repository, "api")["sessions"][0]["outcome"] == "succeeded"
    (rejected,) = events(repository, "state.rejected")
    assert (repository.root / rejected["detail"]["kept"]).read_text() == '{"todos": [\n'
    assert read(repository, "trinity", "check") == {"ok": True, "problems": []}


@FENCED
def test_nobody_writes_anothers_state_or_mail_or_speaks_as_another(repository):
    script = """\
echo x > .aipass/agents/web/.trinity/local.json || echo refused state
echo x > .aipass/mail.md || echo refused file
mkdir -p .aipass/runs/1/mail; echo x > .aipass/runs/1/mail/9.md || echo refused mail
echo '{"verb": "message", "to": "web", "text": "as human"}' > .aipass/spool/human/r-0000000000-00000000.json || echo refused spool
AIPASS_AGENT=web aipass message db "who am I" && echo said
aipass answer 1 "mine" || echo refused answer
aipass note --agent web "planted" || echo refused note
"""
    build(repository, {"asker": "aipass ask human which", "api": script, "web": "true", "db": "true"})
    repository.aipass("send", "asker", "go", "--wait", check=3)
    before = (repository.root / ".aipass/agents/web/.trinity/local.json").read_bytes()
    said = repository.aipass("send", "api", "go", "--wait").stdout
    for what in ("state", "file", "mail", "spool", "answer", "note"):
        assert f"refused {what}" in said
    assert (repository.root / ".aipass/agents/web/.trinity/local.json").read_bytes() == before
    assert [one["from"] for one in read(repository, "messages", "db")] == ["api"]
    assert read(repository, "messages", "web") == []
    assert "api tried to answer question" in repository.aipass("status").stdout
    assert {one["path"] for one in events(repository, "write.denied")} >= {
        ".aipass/agents/web/.trinity/local.json"
    }


def test_what_was_saved_while_no_engine_ran_is_taken_and_what_was_removed_is_there_again(repository):
    build(repository, {"api": "true"})
    repository.aipass("note", "--agent", "api", "known")
    repository.wait_for(lambda: local(repository, "api")["learnings"], "the note")
    kill_engine(repository)
    path = repository.root / ".aipass/agents/api/.trinity/local.json"
    document = local(repository, "api")
    document["learnings"].append({"text": "meanwhile"})
    path.write_text(json.dumps(document))
    (path.parent / "passport.json").unlink()
    (path.parent / "observations.json").write_text("{")
    repository.aipass("up", "--detach")
    repository.wait_for(
        lambda: [one["text"] for one in local(repository, "api")["learnings"]] == ["known", "meanwhile"],
        "both",
    )
    repository.wait_for(
        lambda: json.loads(repository.aipass("trinity", "check", "--json", check=None).stdout)["ok"],
        "good files",
    )
    told = repository.wait_for(
        lambda: events(repository, "state.rejected"), "the event: the file is good before it"
    )
    assert told[0]["detail"]["file"] == "observations.json"


def test_notes_and_saves_survive_kills_of_the_engine_at_any_moment(repository):
    """An agent saves, a person notes, the engine is killed again and again: every entry is there once."""
    saves, notes = rounds(20, 40), rounds(7, 12)
    script = """\
import json, os, pathlib, time
path = pathlib.Path(".aipass/agents/api/.trinity/local.json")
for number in range(SAVES):
    while True:
        try:
            document = json.loads(path.read_text())
            break
        except (OSError, ValueError):
            time.sleep(0.01)
    document["learnings"].append({"text": f"saved {number}"})
    half = path.with_name(".mine")
    half.write_text(json.dumps(document))
    half.rename(path)
    time.sleep(0.05)
""".replace("SAVES", str(saves))
    repository.write("api.py", script)
    repository.write(
        "aipass.toml",
        f'[agents.api]\ndriver = "command"\ncommand = ["{sys.executable}", "api.py"]\n[state]\nlearnings = 500\ntodos = 100\n',
    )
    repository.aipass("init")
    repository.aipass("up", "--detach")
    repository.aipass("send", "api", "go")
    dice, kills = random.Random(5), 0
    for number in range(notes):
        repository.aipass("note", "--agent", "api", "--todo", f"noted {number}", check=None)
        if number % 2:
            time.sleep(dice.uniform(0, 0.3))
            kill_engine(repository)
            kills += 1
            repository.aipass("up", "--detach")
    assert kills == notes // 2
    repository.wait_for(
        lambda: read(repository, "status")["counts"]["succeeded"] == 1, "the end", timeout=PATIENCE
    )
    repository.aipass("down")
    repository.aipass("up", "--until-idle")
    document = local(repository, "api")
    learned = [entry["text"] for entry in document["learnings"]]
    assert sorted(set(learned)) == sorted(learned)
    assert {f"saved {number}" for number in range(saves)} <= set(learned)
    noted = [entry["text"] for entry in document["todos"]]
    assert len(noted) == len(set(noted))
    assert not events(repository, "state.rejected")


@pytest.mark.timeout(1200)
def test_agents_that_write_to_each_other_while_engine_and_supervisor_are_killed_lose_nothing(repository):
    """Each of six agents tells each other one two things; who reads has all of them, in order, once."""
    names = [f"a{number}" for number in range(6)]
    script = """\
for number in 0 1; do
    for other in NAMES; do
        [ $other = $AIPASS_AGENT ] && continue
        until grep -qx "$AIPASS_AGENT $number $other" done-$AIPASS_AGENT 2>/dev/null; do
            aipass message $other "$AIPASS_AGENT $number" >/dev/null 2>&1 && echo "$AIPASS_AGENT $number $other" >> done-$AIPASS_AGENT || sleep 0.2
        done
    done
done
""".replace("NAMES", " ".join(names))
    build(repository, dict.fromkeys(names, script), "[limits]\nconcurrency = 10\nruns_per_hour = 1000\n")
    for name in names:
        repository.aipass("send", name, "go")
    dice = random.Random(8)
    for number in range(rounds(3, 5)):
        time.sleep(dice.uniform(0.5, 1.5))
        if number == 1:
            found = [pid for pid in repository.pids() if is_supervisor(pid)]
            for pid in found:
                os.kill(pid, signal.SIGKILL)
        else:
            kill_engine(repository)
        repository.aipass("up", "--detach")
    repository.wait_for(
        lambda: read(repository, "status")["counts"]["succeeded"] == len(names), "the end of all", timeout=200
    )
    for name in names:
        got = [(one["from"], one["text"]) for one in read(repository, "messages", name)]
        for other in names:
            if other != name:
                mine = [text for sender, text in got if sender == other]
                # A message whose teller was killed before it heard so is told again: by another id.
                once = list(dict.fromkeys(mine))
                assert once == [f"{other} {number}" for number in range(2)]


def is_supervisor(pid):
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"supervisor" in words


@FENCED
def test_a_question_waits_for_the_person_and_the_answer_ends_the_wait(repository):
    build(repository, {"api": 'echo "told: $(aipass ask human "Which?" --options a,b --wait 30s)"'})
    asking = subprocess.Popen(
        [sys.executable, "-m", "aipass", "send", "api", "go", "--wait"],
        cwd=repository.root,
        stdout=subprocess.PIPE,
    )
    repository.wait_for(lambda: read(repository, "status")["questions"], "the question")
    assert read(repository, "questions")[0] | {"asked": None} == {
        "id": 1, "from": "api", "to": "human", "text": "Which?", "options": ["a", "b"], "dispatch": 1, "asked": None,
        "answered": None, "answer": None, "answerer": None, "closed": None,
    }  # fmt: skip
    assert "dispatch 1 is waiting" in repository.aipass("questions").stdout
    repository.aipass("answer", "1", "b")
    assert b"told: b" in asking.communicate(timeout=PATIENCE)[0]
    assert repository.aipass("answer", "1", "c", check=3).stderr.startswith(
        "error: question 1 was answered already by human"
    )
    assert "no open questions" in repository.aipass("questions").stdout


def test_a_wait_that_has_an_end_says_so(repository):
    build(repository, {"api": "aipass ask human Which? --wait 200ms; echo status $?"})
    assert repository.aipass("send", "api", "go", "--wait", check=3).stderr
    text = (repository.root / ".aipass/runs/1/stdout.log").read_text()
    assert "status 3" in text
    said = (repository.root / ".aipass/runs/1/stderr.log").read_text()
    assert "question 1 has no answer yet; end your run: the answer starts you again" in said


def test_messages_are_shown_and_read_by_whom_they_are_for(repository):
    build(repository, {"api": "aipass messages; aipass message human done", "web": "true"})
    assert repository.aipass("message", "all", "hello", "--subject", "greeting").stdout == "1 2\n"
    assert repository.aipass("message", "nobody", "x", check=2).stderr.startswith(
        "error: there is no agent `nobody`"
    )
    repository.write("a b.sql", "x")
    repository.aipass("message", "web", "see that", "--attach", "a b.sql")
    assert (
        "--attach nowhere: there is no such file"
        in repository.aipass("message", "web", "x", "--attach", "nowhere", check=2).stderr
    )
    assert "with a b.sql" in repository.aipass("messages", "web").stdout
    assert [one["read"] for one in read(repository, "messages", "web")] == [None, None]
    repository.aipass("send", "api", "go", "--wait")
    assert read(repository, "status")["unread"] == 1
    assert "api to human" in repository.aipass("messages", "--unread").stdout
    repository.wait_for(lambda: read(repository, "status")["unread"] == 0, "the reading")
    assert repository.aipass("messages", "--unread").stdout == "no unread messages to you\n"
    assert len(read(repository, "messages", "--limit", "1")) == 1


def test_a_new_ledger_takes_over_the_files_of_an_earlier_one_without_a_word(repository):
    build(repository, {"api": "cat"})
    repository.aipass("note", "--agent", "api", "known")
    repository.aipass("note", "--agent", "api", "--todo", "to do")
    repository.wait_for(lambda: local(repository, "api")["todos"], "the notes")
    repository.aipass("down")
    for path in (repository.root / ".aipass").glob("ledger.db*"):
        path.unlink()
    repository.aipass("up", "--detach")
    repository.wait_for(lambda: "known" in repository.aipass("recall", "known").stdout, "the learning")
    assert [entry["text"] for entry in local(repository, "api")["todos"]] == ["to do"]
    assert not events(repository, "state.rejected")
    assert read(repository, "messages", "api") == []


@pytest.mark.timeout(1200)
def test_fifty_agents_that_write_to_each_other_lose_nothing_while_all_is_killed(repository):
    figures = talk(repository, agents=50, seconds=rounds(5, 60), kills=rounds(2, 9), pause=0.5, least=100)
    assert figures["read"], figures


def test_what_was_saved_while_no_engine_ran_and_what_stood_before_limits_fell_is_shown(repository):
    build(repository, {"api": "true"})
    repository.aipass("note", "--agent", "api", "x" * 300)
    repository.write("aipass.toml", (repository.root / "aipass.toml").read_text() + "[state]\ntext = 40\n")
    repository.aipass("reload")
    assert "x" * 40 in repository.aipass("trinity", "show", "api").stdout
    assert "all state files are valid" in repository.aipass("trinity", "check").stdout
    repository.aipass("down")
    path = repository.root / ".aipass/agents/api/.trinity/local.json"
    path.write_text(json.dumps({"todos": [{"text": "mine"}], "learnings": []}))
    assert "mine" in repository.aipass("trinity", "show", "api").stdout
