"""What agents know, as the engine keeps it: notes, saves, sessions, and what is to stand in the files."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import rounds
from state_kit import body, note, save, texts

from aipass.features.memory.model import LOCAL, OBSERVATIONS, PASSPORT
from aipass.features.memory.state_files import StateRejected

TOML = """
[agents.api]
driver = "command"
command = ["true"]
role = "backend"
purpose = "Keeps the API."
owns = ["services/"]
[agents.web]
driver = "command"
command = ["true"]
[state]
todos = 3
learnings = 3
observations = 2
sessions = 2
text = 40
"""


@pytest.fixture
def house(aipass_bench):
    return aipass_bench(TOML)


def test_every_agent_has_its_three_files_with_their_keys_in_order(house):
    assert list(body(house, file=PASSPORT)) == [
        "schema", "agent", "role", "purpose", "driver", "model", "owns", "created",
    ]  # fmt: skip
    assert body(house, file=PASSPORT)["role"] == "backend"
    assert body(house, file=PASSPORT)["owns"] == ["services/"]
    assert list(body(house)) == ["schema", "agent", "updated", "now", "todos", "learnings", "sessions"]
    assert list(body(house)["now"]) == ["dispatch", "plan", "phase", "task", "since", "doing"]
    assert list(body(house, file=OBSERVATIONS)) == ["schema", "agent", "updated", "observations"]
    assert body(house, "web", PASSPORT)["owns"] is None


def test_the_passport_follows_aipass_toml_and_keeps_its_birthday(house):
    created = body(house, file=PASSPORT)["created"]
    house.clock.advance(100)
    house.layout.config.write_text(TOML.replace("backend", "database"))
    house.ask("reload")
    assert (body(house, file=PASSPORT)["role"], body(house, file=PASSPORT)["created"]) == (
        "database",
        created,
    )


def test_notes_come_into_the_file_and_todos_leave_it_when_they_are_done(house):
    assert note(house, "todo", "mend the tests")["message"] == "todo 1 of api is noted"
    assert note(house, "learning", "sqlite is fine", tags=["db"])["exit"] == 0
    assert note(house, "observation", "the tests are slow")["exit"] == 0
    assert note(house, "doing", "thinking")["message"] == "api is doing that"
    assert body(house)["todos"][0] | {"added": None} == {
        "id": 1,
        "text": "mend the tests",
        "added": None,
        "tags": [],
    }
    assert body(house)["learnings"][0]["tags"] == ["db"]
    assert body(house)["now"]["doing"] == "thinking"
    assert texts(house, "observations") == ["the tests are slow"]
    assert house.ask("note", do="done", todo=1, agent="api")["message"] == "todo 1 of api is done"
    assert house.ask("note", do="done", todo=1, agent="api")["message"] == "todo 1 is done already"
    assert house.ask("note", do="done", todo=2, agent="api")["exit"] == 1
    assert house.ask("note", do="done", todo=99, agent="api")["exit"] == 1
    assert texts(house, "todos") == []


def test_a_note_never_fails_for_its_length_and_says_what_was_kept(house):
    said = note(house, "learning", "x" * 100)
    assert said["exit"] == 0
    assert said["message"].endswith("; only its first 40 of 100 characters fit ([state] text)")
    assert texts(house) == ["x" * 40]


def test_the_oldest_learnings_move_to_memory_and_todos_are_refused(house):
    for number in range(5):
        note(house, "learning", f"learned {number}")
    assert texts(house) == ["learned 2", "learned 3", "learned 4"]
    for number in range(3):
        note(house, "todo", f"todo {number}")
    refused = note(house, "todo", "one too many")
    assert refused["exit"] == 3
    assert "api has 3 open todos, and no more fit" in refused["message"]
    assert texts(house, "todos") == ["todo 0", "todo 1", "todo 2"]


def test_an_agent_notes_for_itself_and_nobody_else(house):
    house.ask("send", agent="api", text="work")
    assert note(house, "learning", "mine", by=1)["exit"] == 0
    refused = house.ask("note", do="learning", text="x", agent="web", by=1)
    assert (refused["exit"], refused["message"]) == (3, "`api` notes for itself only")
    assert house.ask("note", do="learning", text="x")["exit"] == 2
    assert house.ask("note", do="learning", text="x", agent="nobody")["exit"] == 2
    assert house.ask("note", do="secret", text="x", agent="api")["exit"] == 2
    assert house.ask("note", do="todo", text=" ", agent="api")["exit"] == 2
    (row,) = house.ledger.all("open_notes", {"agent": "api"})
    assert row["text"] == "mine"


def test_what_an_agent_saved_is_taken_and_what_is_the_engines_is_put_back_and_reported(house):
    house.ask("send", agent="api", text="work on it\nwell")
    document = body(house)
    assert document["now"]["dispatch"] == 1
    assert document["now"]["task"] == "work on it well"
    document["learnings"].append({"text": "new"})
    document["now"] |= {"doing": "reading", "task": "to be the boss"}
    document["agent"] = "web"
    document["updated"] = "2030-01-01T00:00:00Z"  # models like to renew it: nobody minds
    save(house, document)
    assert texts(house) == ["new"]
    assert body(house)["now"] | {"since": None} == {
        "dispatch": 1, "plan": None, "phase": None, "task": "work on it well", "since": None, "doing": "reading",
    }  # fmt: skip
    (event,) = house.events("state.rejected")
    assert event.detail["fields"] == ["agent", "now.task"]
    assert event.by == 1
    (saved,) = house.events("state.saved")
    assert (saved.detail["added"], saved.ref, saved.path) == (
        1,
        "api",
        ".aipass/agents/api/.trinity/local.json",
    )
    (told,) = house.ledger.all("unread", {"recipient": "api", "limit": -1})
    assert "the fields `agent`, `now.task` belong to aipass" in told["text"]
    assert house.layout.run(1).joinpath("mail", f"{told['id']}.md").exists()


def test_a_stale_copy_undoes_nothing_and_is_no_forgery(house):
    house.ask("send", agent="api", text="work")
    note(house, "todo", "first", by=1)
    old = body(house)
    house.clock.advance(5)
    note(house, "todo", "second", by=1)
    house.ask("note", do="done", todo=1, by=1)
    house.finish(1, "did it")
    old["learnings"].append({"text": "learned"})
    save(house, old)
    assert texts(house, "todos") == ["second"]
    assert texts(house) == ["learned"]
    assert body(house)["now"]["dispatch"] is None
    assert len(body(house)["sessions"]) == 1
    assert not house.events("state.rejected")


def test_what_an_agent_took_out_is_gone_from_the_file_and_stays_in_memory(house):
    note(house, "learning", "wrong")
    note(house, "learning", "right")
    document = body(house)
    del document["learnings"][0]
    save(house, document)
    assert texts(house) == ["right"]
    assert house.ledger.one("note", {"id": 1})["text"] == "wrong"
    assert house.events("state.saved")[0].detail["removed"] == 1


def test_an_entry_that_was_rewritten_keeps_its_id_and_its_time(house):
    note(house, "learning", "sqlite is fine")
    before = body(house)["learnings"][0]
    house.clock.advance(5)
    document = body(house)
    document["learnings"][0] |= {"text": "sqlite is great", "added": "1999-01-01T00:00:00Z", "tags": ["db"]}
    save(house, document)
    assert body(house)["learnings"] == [before | {"text": "sqlite is great", "tags": ["db"]}]


def test_an_agents_order_is_kept(house):
    for text in ("one", "two", "three"):
        note(house, "todo", text)
    document = body(house)
    document["todos"].reverse()
    save(house, document)
    assert texts(house, "todos") == ["three", "two", "one"]


def test_more_than_fits_rolls_over_also_from_a_save(house):
    document = body(house)
    document["learnings"] = [{"text": f"learned {number}"} for number in range(6)]
    save(house, document)
    assert texts(house) == ["learned 3", "learned 4", "learned 5"]


def test_a_file_that_cannot_be_used_is_told_to_the_agent_with_line_and_field(house):
    house.engine.tell_now([StateRejected("api", LOCAL, 7, "todos.0", "it is text", ".aipass/quarantine/x")])
    house.settle()
    (event,) = house.events("state.rejected")
    assert event.detail == {
        "agent": "api", "file": LOCAL, "line": 7, "field": "todos.0", "reason": "it is text", "kept": ".aipass/quarantine/x",
    }  # fmt: skip
    (told,) = house.ledger.all("unread", {"recipient": "api", "limit": -1})
    assert told["text"] == (
        "Your .aipass/agents/api/.trinity/local.json could not be used: line 7, field `todos.0`: it is text. "
        "The last good state was put back; what you wrote is kept in .aipass/quarantine/x."
    )


def test_a_secret_that_was_taken_out_is_told(house):
    save(house, body(house), masked=("AWS key",))
    (told,) = house.ledger.all("unread", {"recipient": "api", "limit": -1})
    assert "aipass masked what looks like a secret in your local.json: AWS key" in told["text"]


def test_runs_are_remembered_newest_first_with_what_they_said_and_how_they_ended(house):
    for number in range(1, 4):
        house.clock.advance(10)
        house.ask("send", agent="api", text=f"work {number}")
        house.finish(number, f"I did\n{number} things.\n\nAnd more.", exit_code=number // 3)
        house.advance(0)
    sessions = body(house)["sessions"]
    assert [(one["dispatch"], one["run"], one["outcome"]) for one in sessions] == [
        (3, 3, "failed"),
        (2, 2, "succeeded"),
    ]
    assert sessions[1]["summary"] == "I did 2 things."
    assert sessions[1]["files"] == []
    assert sessions[1]["started"] < sessions[1]["finished"] or sessions[1]["started"] is not None


def test_what_it_was_doing_for_another_dispatch_it_does_no_more(house):
    house.ask("send", agent="api", text="first")
    note(house, "doing", "thinking", by=1)
    house.finish(1)
    assert body(house)["now"]["doing"] == "thinking"
    house.ask("send", agent="api", text="second")
    assert body(house)["now"] | {"since": None} == {
        "dispatch": 2, "plan": None, "phase": None, "task": "second", "since": None, "doing": None,
    }  # fmt: skip


def test_what_says_the_same_is_not_written_again(house):
    before = house.ledger.one("state", {"agent": "web", "file": LOCAL})["updated"]
    house.clock.advance(10)
    house.ask("reload")
    house.restart()
    assert house.ledger.one("state", {"agent": "web", "file": LOCAL})["updated"] == before


def test_a_clock_that_is_set_back_makes_no_copy_older_than_the_one_before(house):
    note(house, "learning", "one")
    first = body(house)["updated"]
    house.clock.jump(-1000.0)
    note(house, "learning", "two")
    assert body(house)["updated"] > first
    document = body(house)
    del document["learnings"][0]
    save(house, document)
    assert texts(house) == ["two"]


STEPS = st.lists(
    st.tuples(st.sampled_from(["note", "done", "read", "write", "drop", "save", "kill"]), st.integers(0, 3)),
    max_size=25,
)


@settings(max_examples=rounds(30, 300), deadline=None)
@given(steps=STEPS, seed=st.integers(0, 9))
@pytest.mark.slow
def test_any_interleaving_through_the_engine_loses_no_note_that_nobody_took_out(
    tmp_path_factory, steps, seed
):
    """Model: an entry is there if somebody made it and nobody who had seen it took it out; through kills as well."""
    from aipass.testing.bench import Bench

    words, dice = iter(range(10_000)), random.Random(seed)
    bench = Bench(
        tmp_path_factory.mktemp("keeper"),
        TOML.replace("learnings = 3", "learnings = 900").replace("todos = 3", "todos = 900"),
    )
    try:
        alive, copy, seen = set(), body(bench), set()
        for what, which in steps:
            bench.clock.advance(dice.choice([0.0, 0.001, 5.0]))
            if what == "note":
                alive.add(text := f"n{next(words)}")
                note(bench, "todo", text)
            elif what == "done" and body(bench)["todos"]:
                entry = body(bench)["todos"][which % len(body(bench)["todos"])]
                bench.ask("note", do="done", todo=entry["id"], agent="api")
                alive.discard(entry["text"])
            elif what == "read":
                copy = body(bench)
                seen = {entry["text"] for entry in copy["todos"]}
            elif what == "write":
                copy["todos"].insert(which, {"text": f"a{next(words)}"})
            elif what == "drop" and copy["todos"]:
                copy["todos"].pop(which % len(copy["todos"]))
            elif what == "save":
                now = {entry["text"] for entry in copy["todos"]}
                alive = (alive - (seen - now)) | (now - seen)
                save(bench, copy)
                copy = body(bench)
                seen = {entry["text"] for entry in copy["todos"]}
            elif what == "kill":
                bench.restart()
            assert set(texts(bench, "todos")) == alive
    finally:
        bench.close()


@pytest.mark.parametrize(
    "home", ["/etc", "..", "a/../../b", ".", "", ".git/x", "x/.git", ".aipass/cli", ".aipass/agents"]
)
def test_a_home_is_a_folder_of_the_repository(home):
    from aipass.config import reading
    from aipass.errors import ConfigError

    with pytest.raises(ConfigError, match="cannot be a home"):
        reading.parse(f'[agents.a]\ndriver = "command"\ncommand = ["true"]\nhome = "{home}"\n')


def test_two_agents_have_two_homes():
    from aipass.config import reading
    from aipass.errors import ConfigError

    agent = '[agents.{0}]\ndriver = "command"\ncommand = ["true"]\nhome = "{1}"\n'
    with pytest.raises(
        ConfigError, match="agents `a` and `b` have one home, services/api; each needs its own"
    ):
        reading.parse(agent.format("a", "./services/api/") + agent.format("b", "services//api"))
    assert reading.parse(agent.format("a", "./x/") + agent.format("b", "y")).home("a") == "x"


def test_a_copy_of_nobody_knows_when_removes_nothing(house):
    copy = body(house)
    note(house, "todo", "HUMAN TODO")
    for updated in ("2031-01-01T00:00:00.000Z", None, "yesterday"):
        save(house, copy | {"updated": updated, "learnings": [{"text": f"from {updated}"}]})
        assert texts(house, "todos") == ["HUMAN TODO"]
    assert len(texts(house)) == 3


def test_a_note_holds_nothing_that_a_save_would_be_refused_for(house):
    note(house, "learning", "a\x1b[31mb\r\nc", tags=["x" * 99, " ", *map(str, range(30))])
    document = body(house)
    document["todos"].append({"text": "good"})
    save(house, document)
    assert texts(house, "todos") == ["good"]
    assert texts(house) == ["a\N{REPLACEMENT CHARACTER}[31mb\nc"]


@pytest.mark.parametrize("added", ["0001-01-01T00:00:00", "9999-12-31T23:59:59-14:00", "2030-01-01", "soon"])
def test_a_note_of_elsewhere_is_of_a_time_that_has_been(house, added):
    reply = house.ask("note", do="learning", text="x", agent="api", added=added)
    assert (reply["exit"], "is not a time in the past" in reply["message"]) == (2, True)
