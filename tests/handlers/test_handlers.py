"""The built-in handlers: inbox manners, rules, requests."""

from __future__ import annotations

import json
import os

import pytest
from aipass_handlers import frontmatter

from aipass.supervisor import held
from aipass.workspace.layout import REJECTED

WRITER = '[agents.writer]\ndriver = "command"\ncommand = ["cat"]\n'
REVIEWER = '[agents.reviewer]\ndriver = "command"\ncommand = ["cat"]\n'


def rule(**fields):
    lines = ["[[on]]"]
    values = {"name": "review", "dispatch": "reviewer", "task": "Review {path}", **fields}
    for name, value in values.items():
        shown = (
            json.dumps(value)
            if not isinstance(value, dict)
            else "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + " }"
        )
        lines.append(f"{name} = {shown}")
    return WRITER + REVIEWER + "\n".join(lines) + "\n"


# -- the inbox ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [".hidden.md", "x.tmp", "x.part", "x.md~", ".x.md.swp", "x.crdownload", "x.TMP"]
)
def test_unfinished_names_are_left_alone_until_renamed(aipass_bench, name):
    bench = aipass_bench()
    file = bench.drop(f"inbox/writer/{name}", "hi")
    assert file.exists()
    assert bench.dispatches() == []
    file.rename(file.with_name("done.md"))
    bench.see("inbox/writer/done.md")
    assert len(bench.dispatches()) == 1


def test_front_matter_sets_subject_key_and_priority(aipass_bench):
    bench = aipass_bench()
    bench.drop("inbox/writer/yaml.md", "---\nsubject: Fix it\nkey: k1\npriority: 7\n---\nBody\n")
    bench.drop("inbox/writer/toml.md", '+++\nsubject = "Other"\n+++\nText\n')
    first, second = bench.dispatches()
    assert (first["subject"], first["key"], first["priority"]) == ("Fix it", "k1", 7)
    assert (second["subject"], second["key"], second["priority"]) == ("Other", "Other", 0)
    assert bench.runner.prompt(1) == "Body\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("---\nsubject: [a\n---\nx", "not valid YAML"),
        ("+++\nsubject = \n+++\nx", "not valid TOML"),
        ("---\nsubjct: a\n---\nx", "did you mean `subject`"),
        ("---\npriority: high\n---\nx", "whole number"),
        ("---\npriority: 1000\n---\nx", "whole number"),
        ("---\nsubject: {a: b}\n---\nx", "must be text"),
        ("---\nsubject: a\n---\n", "nothing but front matter"),
    ],
)
def test_front_matter_that_is_wrong_is_told_beside_the_file(aipass_bench, text, reason):
    bench = aipass_bench()
    file = bench.drop("inbox/writer/x.md", text)
    note = json.loads((file.parent / "x.md.rejected.json").read_text())
    assert reason in note["reason"]
    assert note["remedy"]
    assert file.read_text() == text
    assert bench.dispatches() == []


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("---\nno mapping\n---\nx", "---\nno mapping\n---\nx"),
        ("---\ntitle: foreign\ntags: [a]\n---\nx", "---\ntitle: foreign\ntags: [a]\n---\nx"),
        ("---\nNote: it is: broken\n---\nx", "---\nNote: it is: broken\n---\nx"),
        ("---\ntitle: foreign\nsubject: s\n---\nx", "x"),
        ("---\nnever closed\n", "---\nnever closed\n"),
        ("text\n---\nsubject: x\n---\n", "text\n---\nsubject: x\n---\n"),
        ("---\n---\nx", "---\n---\nx"),
        ("---\r\nsubject: s\r\n---\r\nx", "x"),
    ],
)
def test_what_only_looks_like_front_matter_is_text(text, body):
    assert frontmatter.read(text).text == body


def test_a_rejected_file_is_accepted_once_it_is_right_and_its_note_goes(aipass_bench):
    bench = aipass_bench()
    file = bench.drop("inbox/writer/x.md", "")
    note = file.parent / "x.md.rejected.json"
    assert "empty" in json.loads(note.read_text())["reason"]
    bench.drop("inbox/writer/x.md", "now it says something")
    assert not note.exists()
    assert len(bench.dispatches()) == 1


def test_any_other_file_is_handed_over_by_path_with_type_and_size(aipass_bench):
    bench = aipass_bench()
    bench.drop("inbox/writer/photo.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 2000)
    prompt = bench.runner.prompt(1)
    assert ".aipass/dispatches/1/photo.png" in prompt
    assert "image/png" in prompt
    assert "2.01 KB" in prompt
    assert (bench.layout.root / ".aipass/dispatches/1/photo.png").stat().st_size == 2008


def test_markdown_that_is_no_text_is_handed_over_by_path(aipass_bench):
    bench = aipass_bench()
    bench.drop("inbox/writer/x.md", b"\xff\xfe\x00")
    assert ".aipass/dispatches/1/x.md" in bench.runner.prompt(1)


def test_what_is_no_regular_file_is_told_and_left(aipass_bench):
    bench = aipass_bench()
    inbox = bench.layout.inbox / "writer"
    (inbox / "link.md").symlink_to("/etc/hostname")
    os.mkfifo(inbox / "pipe")
    for name in ("link.md", "pipe"):
        bench.see(f"inbox/writer/{name}")
        note = json.loads((inbox / f"{name}.rejected.json").read_text())
        assert "not a regular file" in note["reason"]
        assert os.path.lexists(inbox / name)
    assert bench.dispatches() == []


def test_misplaced_files_are_told_where_they_belong(aipass_bench):
    bench = aipass_bench()
    for path, reason in (
        ("inbox/x.md", "has no recipient"),
        ("inbox/writter/x.md", "no agent `writter`"),
        ("inbox/writer/sub/x.md", "a folder inside the inbox"),
    ):
        file = bench.drop(path)
        assert reason in json.loads((bench.layout.root / f"{path}.rejected.json").read_text())["reason"]
        assert file.exists()
    assert bench.dispatches() == []


def test_the_note_of_a_file_that_is_taken_away_meanwhile_goes_with_it(aipass_bench, monkeypatch):
    bench = aipass_bench()
    write = held.write_atomic

    def write_late(path, data):
        write(path, data)
        if path.name.endswith(REJECTED):
            (bench.layout.root / "inbox/writer/x.md").unlink()

    monkeypatch.setattr(held, "write_atomic", write_late)
    bench.drop("inbox/writer/x.md", "")
    assert not list((bench.layout.inbox / "writer").iterdir())


def test_a_file_over_the_limit_is_told_and_left(aipass_bench):
    bench = aipass_bench(WRITER + '[inbox]\nmax_size = "1KB"\n')
    file = bench.drop("inbox/writer/big.bin", b"x" * 2000)
    note = json.loads((file.parent / "big.bin.rejected.json").read_text())
    assert "2000 bytes" in note["reason"]
    assert "raise that limit" in note["remedy"]
    bench.drop("aipass.toml", WRITER + '[inbox]\nmax_size = "1MB"\n')
    bench.see("inbox/writer/big.bin")
    assert len(bench.dispatches()) == 1


def test_a_file_that_changed_after_it_was_seen_stays_for_its_own_event(aipass_bench, monkeypatch):
    from aipass.features.dispatch import feature

    bench = aipass_bench()
    from aipass.sources.observation import Seen, identity_of

    target = bench.layout.inbox / "writer/x.md"
    target.write_text("old")
    seen = Seen("inbox/writer/x.md", identity_of(target.lstat()), complete=True)
    bench.engine.tell([seen])
    take = feature.take

    def changed_first(*arguments):
        target.write_text("new and longer")
        return take(*arguments)

    monkeypatch.setattr(feature, "take", changed_first)
    bench.settle()
    monkeypatch.undo()
    assert target.read_text() == "new and longer"
    bench.see("inbox/writer/x.md")
    assert not target.exists()
    assert bench.runner.prompt(1) == "old"
    assert (bench.layout.dispatch(2) / "x.md").read_text() == "new and longer"


def test_two_files_of_one_name_are_both_kept(aipass_bench):
    bench = aipass_bench()
    bench.ask("send", agent="writer", text="busy")
    bench.drop("inbox/writer/x.md", "---\nkey: k\n---\none")
    bench.drop("inbox/writer/x.md", "---\nkey: k\n---\ntwo")
    kept = sorted(path.name for path in bench.layout.dispatch(2).iterdir())
    assert kept == ["2-x.md", "x.md"]


# -- rules -------------------------------------------------------------------------------------------------------------


def test_a_rule_fires_on_its_kind_and_paths_and_fills_its_task(aipass_bench):
    bench = aipass_bench(
        rule(
            event="file.closed",
            paths=["src/**/*.py", "!src/gen/"],
            task="Review {name} at {path} ({kind}), {{x}} {sha}",
        )
    )
    bench.drop("src/a/b.py", "x")
    bench.drop("src/gen/c.py", "x")
    bench.drop("docs/d.py", "x")
    assert len(bench.dispatches()) == 1
    assert bench.runner.prompt(1) == "Review b.py at src/a/b.py (file.closed), {x} "


def test_a_rule_that_does_not_fire_leaves_its_reason(aipass_bench):
    bench = aipass_bench(rule(event="file.closed", paths=["src/"], where={"size": 5}))
    event = bench.tell("file.closed", path="src/x", detail={"size": 4})
    assert ("rule review", "no match: size is 4, not 5") in bench.engine.router.explain(event)
    event = bench.tell("file.closed", path="doc/x", detail={"size": 5})
    assert any("none of src/" in reason for _, reason in bench.engine.router.explain(event))


def test_debounce_collapses_firings_into_one_of_the_last_event(aipass_bench):
    bench = aipass_bench(rule(event="file.closed", paths=["src/"], debounce="2s", task="{path} {count}"))
    for number in range(5):
        bench.drop(f"src/{number}.py", "x")
        bench.advance(1)
    assert bench.dispatches() == []
    bench.advance(1.1)
    assert bench.runner.prompt(1) == "src/4.py 5"
    (tick,) = bench.events("clock.tick")
    assert bench.dispatch(1)["cause"] == tick.id
    assert next(e for e in bench.events() if e.id == tick.cause).path == "src/4.py"


def test_a_debounced_firing_survives_a_restart(aipass_bench):
    bench = aipass_bench(rule(event="file.closed", paths=["src/"], debounce="10s"))
    bench.drop("src/a.py", "x")
    bench.advance(4)
    bench.restart()
    bench.advance(5)
    assert bench.dispatches() == []
    bench.advance(1.5)
    assert len(bench.dispatches()) == 1


def test_a_rule_does_not_fire_on_what_its_own_agent_did_unless_it_says_so(aipass_bench):
    for own, expected in ((False, 1), (True, 2)):
        bench = aipass_bench(rule(event="file.closed", paths=["src/"], self=own))
        bench.ask("send", agent="reviewer", text="go")
        bench.tell("file.closed", path="src/x.py", by=1, detail={"size": 1})
        assert len(bench.dispatches()) == expected


def test_a_rule_does_not_fire_on_what_git_did_unless_it_says_so(aipass_bench):
    for git, expected in ((False, 0), (True, 1)):
        bench = aipass_bench(rule(event="file.closed", paths=["src/"], git=git))
        bench.tell("file.closed", path="src/x.py", detail={"size": 1, "git": True})
        assert len(bench.dispatches()) == expected


def test_a_rule_pauses_itself_beyond_per_hour_and_is_resumed_by_a_person(aipass_bench):
    bench = aipass_bench(rule(event="file.closed", paths=["src/"], per_hour=2))
    for number in range(4):
        bench.drop(f"src/{number}.py", "x")
    assert len(bench.dispatches()) == 2
    assert bench.events("rule.paused")[0].ref == "review"
    assert "review" in bench.notices()[-1]
    bench.advance(4000)
    bench.drop("src/later.py", "x")
    assert len(bench.dispatches()) == 2
    assert bench.ask("resume", name="review")["exit"] == 0
    bench.drop("src/after.py", "x")
    assert len(bench.dispatches()) == 3


def test_a_pause_and_its_count_survive_a_restart(aipass_bench):
    bench = aipass_bench(rule(event="file.closed", paths=["src/"], per_hour=2))
    bench.drop("src/1.py", "x")
    bench.restart()
    bench.drop("src/2.py", "x")
    bench.drop("src/3.py", "x")
    assert len(bench.dispatches()) == 2
    bench.restart()
    bench.drop("src/4.py", "x")
    assert len(bench.dispatches()) == 2


def test_a_branch_is_compared(aipass_bench):
    bench = aipass_bench(rule(event="run.finished", branch="main"))
    bench.tell("run.finished", ref="9", detail={"branch": "dev"})
    assert bench.dispatches() == []
    bench.tell("run.finished", ref="9", detail={"branch": "main"})
    assert len(bench.dispatches()) == 1


def test_cron_fires_at_its_times_only(aipass_bench, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    bench = aipass_bench(rule(cron="30 2 * * *", task="nightly"))
    bench.advance(2 * 3600)
    assert bench.dispatches() == []
    bench.advance(1801)
    assert len(bench.dispatches()) == 1
    bench.finish(1)
    bench.advance(86400)
    assert len(bench.events("clock.cron")) == 2


def test_resuming_what_is_not_paused_says_so(aipass_bench):
    bench = aipass_bench()
    reply = bench.ask("resume", name="nobody")
    assert reply["exit"] == 1
    assert "nothing named `nobody` is paused" in reply["message"]
