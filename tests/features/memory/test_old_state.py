"""The state files of AIPass 2.x: every shape that people have is taken over, and what is left is said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import agent

from aipass.features.memory import import_v2 as old
from aipass.features.memory.import_v2 import read

CHANGED = 1_780_000_000.0


def found(**documents):
    return read({f"{name}.json": (json.dumps(value).encode(), CHANGED) for name, value in documents.items()})


def texts(result):
    return [(entry.kind, entry.text) for entry in result.entries]


def day(entry):
    from aipass.event import iso

    return iso(entry.time)[:10]


def test_lists_of_the_third_schema_are_taken_oldest_first_with_their_days_and_tags():
    result = found(
        local={
            "document_metadata": {"schema_version": "3.0.0"},
            "todos_meta": "⟦ rollover ON ⟧",
            "todos": [{"number": 1, "date": "2026-09-20", "task": "Fix the drone help", "priority": "high"}],
            "key_learnings": [
                {"number": 2, "date": "2026-07-02", "key": "redis", "value": "failover loses sessions"},
                {"number": 1, "date": "2026-07-01", "learning": "tests: run them alone"},
            ],
            "sessions": [
                {"number": 3, "date": "2026-08-02", "summary": "Moved auth", "status": "completed", "tags": ["auth"]},
                {"number": 2, "date": "2026-08-01", "summary": "Tried to move auth", "status": "blocked"},
                {"number": 1, "date": "2026-06-14", "summary": "Branch initialized - X created by aipass init.", "status": "completed"},
            ],
        },
        observations={"observations": [{"number": 1, "date": "2026-06-15", "note": "Likes short answers", "tags": ["style"]}]},
    )  # fmt: skip
    assert texts(result) == [
        ("observation", "Likes short answers"),
        ("learning", "tests: run them alone"),
        ("learning", "redis: failover loses sessions"),
        ("session", "Tried to move auth (blocked)"),
        ("session", "Moved auth"),
        ("todo", "Fix the drone help"),
    ]
    assert [day(entry) for entry in result.entries][:2] == ["2026-06-15", "2026-07-01"]
    assert result.entries[-1].tags == ("high",)
    (left,) = result.left
    assert "wrote it automatically" in left


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"key_learnings": {"a": "text [2026-02-04]", "b": {"value": "more", "source": "x"}}}, [("learning", "a: text"), ("learning", "b: more")]),
        ({"active_tasks": {"today_focus": "2026-03-05", "recently_completed": ["done it [2026-02-04]"]}}, [("session", "done it")]),
        ({"active_tasks": {"today_focus": ["mend it", "try it"], "key_learnings": {"a": "b"}}}, [("todo", "try it"), ("todo", "mend it"), ("learning", "a: b")]),
        ({"active": {"current_focus": ""}, "sessions": [{"session_number": 4, "date": "2026-01-01", "activities": ["one", "two"], "status": "completed"}]}, [("session", "one; two")]),
        ({"todos": [{"id": "t1", "text": "Fix the bug", "created": "2026-06-07"}, "and this", {"task": "over", "status": "done"}]}, [("todo", "Fix the bug"), ("todo", "and this")]),
        ({"key_learnings": [{"number": "7", "date": "2026-08-01", "key": "k", "value": ["a", {"b": 2}]}]}, [("learning", "k: a; 2")]),
    ],
)  # fmt: skip
def test_older_and_drifted_shapes_of_local_are_understood(document, expected):
    result = found(local=document)
    assert sorted(texts(result)) == sorted(expected)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"date": "2026-03-05", "session": 1, "entries": [{"title": "T", "detail": "D"}, {"title": "U", "insight": "I"}]}, ["U: I", "T: D"]),
        ({"date": "2026-03-05", "entries": [{"observation": "seen"}]}, ["seen"]),
        ({"date": "2026-03-05", "pattern": "asks first", "source": "s"}, ["asks first"]),
        ({"number": 1, "date": "2026-08-01", "note": [{"title": "T", "detail": "D"}, "plain"]}, ["T: D", "plain"]),
        ({"date": "2026-03-05T10:00:00+02:00", "entries": [{"title": "Likes short", "observation": "Likes short answers", "tags": ["t"]}]}, ["Likes short answers"]),
    ],
)  # fmt: skip
def test_observations_in_blocks_and_flat_ones_are_understood(entry, expected):
    result = found(observations={"observations": [entry]})
    assert sorted(entry.text for entry in result.entries) == sorted(expected)
    assert {day(one) for one in result.entries} <= {"2026-03-05", "2026-08-01"}


def test_a_passport_is_for_aipass_toml_and_what_has_no_place_is_said():
    result = found(
        passport={
            "branch_info": {"branch_name": "AI_MAIL", "path": "/x"},
            "identity": {"role": "Agent Messaging", "purpose": "Brings\nmail", "what_i_do": ["mail"]},
            "principles": ["Code is truth"],
            "citizenship": {"registered": True},
        }
    )
    assert (result.names, result.role, result.purpose) == (["AI_MAIL"], "Agent Messaging", "Brings mail")
    assert result.entries == []
    (left,) = result.left
    assert "`what_i_do`, `principles`" in left


def test_what_cannot_be_read_stands_twice_or_is_not_known_is_said():
    broken = read({"local.json": (b'{"sessions": [', CHANGED), "DRONE.observations.json": (b"[]", CHANGED)})
    assert [line.split(":")[0] for line in broken.left] == ["local.json", "DRONE.observations.json"]
    result = read({"local.json": (b'{"todos": ["a"], "todos": ["b"], "narrative": "I am"}', CHANGED)})
    assert texts(result) == [("todo", "b")]
    assert any("`todos` appears twice" in line for line in result.left)
    assert any("aipass has no field for `narrative`" in line for line in result.left)
    assert result.entries[0].time == CHANGED


KEYS = ["todos", "sessions", "key_learnings", "observations", "active_tasks", "identity", "branch_info"]
INNER = ["entries", "note", "date", "text", "value", "status", "tags", "key", "key_learnings"]
words = st.sampled_from(["", "a", "{{B}}", "2026-01-01", "2026-99-99", "b [2026-02-04]", "done", "\ud800"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER) | words, inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("depth", [60, 500, 950, 3000])
def test_what_is_nested_without_end_is_left(depth):
    for data in (
        b'{"todos":[{"text":' + b"[" * depth + b"1" + b"]" * depth + b"}]}",
        b'{"todos":[' + b'{"entries":[' * depth + b"]}" * depth + b"]}",
    ):
        result = read({"local.json": (data, CHANGED)})
        assert result.entries == []
        assert "cannot be read" in result.left[0]


@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4))
def test_whatever_stands_there_is_taken_or_left_and_never_an_error(document):
    for name in ("local.json", "observations.json", "passport.json"):
        result = read({name: (json.dumps(document).encode(), CHANGED)})
        assert all(entry.text.strip() for entry in result.entries)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("local.json", "local"), ("DRONE.local.json", "local"), ("AI_MAIL.id.json", "passport"), ("passport.json", "passport"), ("settings.json", None), ("1790000000000000000-local.json", "local"), ("local.json.pre_v2_backup", None), (".local.json.x.tmp", None)],
)  # fmt: skip
def test_files_are_known_by_their_names(name, kind):
    assert old.which(name) == kind


def test_an_old_tree_is_taken_over_once_and_the_rest_is_said(repository, tmp_path):
    tree = tmp_path / "old tree"
    for name, todos in (("ai_mail", ["one", "two"]), ("drone", ["three"])):
        folder = tree / "src" / name / ".trinity"
        folder.mkdir(parents=True)
        folder.joinpath("local.json").write_text(json.dumps({"todos": todos, "sessions": [{"date": "2026-01-02", "summary": f"{name} began the migration"}]}))  # fmt: skip
        folder.joinpath("passport.json").write_text(json.dumps({"branch_info": {"branch_name": name.upper()}, "identity": {"role": "a role"}}))  # fmt: skip
    repository.write("aipass.toml", agent("ai-mail", "work.py") + "[state]\ntodos = 2\n")
    repository.write("work.py", "")
    repository.aipass("init")
    tried = repository.aipass("trinity", "import", str(tree), "--dry-run", check=1)
    assert "found: 2 todos, 1 session" in tried.stdout
    assert "no agent in aipass.toml is called DRONE" in tried.stdout
    repository.aipass("up", "--detach")
    done = repository.aipass("trinity", "import", str(tree), check=1)
    assert "imported: 3" in done.stdout
    assert 'role = "a role"' in done.stdout
    again = repository.aipass("trinity", "import", str(tree / "src/ai_mail"))
    assert "imported: 0, already there: 3" in again.stdout
    local = json.loads((repository.root / ".aipass/agents/ai-mail/.trinity/local.json").read_text())
    assert [todo["text"] for todo in local["todos"]] == ["one", "two"] or [todo["text"] for todo in local["todos"]] == ["two", "one"]  # fmt: skip
    assert local["sessions"] == [], "no run of this aipass"
    assert "ai_mail began the migration" in repository.aipass("recall", "migration").stdout
    more = repository.aipass("trinity", "import", str(tree / "src/drone/.trinity"), "--agent", "ai-mail", "--json", check=1)  # fmt: skip
    (told,) = json.loads(more.stdout)
    assert told["taken"] == 1
    assert "no more fit" in told["refused"][0]
    missing = repository.aipass("trinity", "import", str(tree / "nothing"), check=2)
    assert "this folder does not exist" in missing.stderr


def test_an_old_file_in_an_agents_own_folder_is_set_aside_with_a_hint_and_taken_over_from_there(repository):
    repository.write("aipass.toml", agent("drone", "work.py"))
    repository.write("work.py", "")
    repository.aipass("init")
    old_file = {"document_metadata": {"schema_version": "3.0.0"}, "todos": [{"task": "mend the help"}]}
    repository.write(".aipass/agents/drone/.trinity/local.json", json.dumps(old_file))
    repository.aipass("up", "--detach")
    (told,) = repository.wait_for(
        lambda: json.loads(repository.aipass("messages", "drone", "--json").stdout), "the message"
    )
    assert "a state file of AIPass 2.x" in told["text"]
    done = repository.aipass("trinity", "import", ".aipass/quarantine/trinity/drone")
    assert "imported: 1" in done.stdout
    assert "mend the help" in repository.aipass("trinity", "show", "drone").stdout


def test_nothing_of_an_entry_is_passed_over_in_silence():
    result = found(
        local={
            "active_tasks": ["mend it", "try it"],
            "key_learnings": [{"value": "short", "detail": "and long", "steps": ["a", "b"]}],
            "sessions": [
                {"summary": "moved auth", "activities": ["one", "two"], "date": "0001-01-01T00:00:00+14:00"}
            ],
        }
    )
    assert sorted(texts(result)) == [
        ("learning", "short; and long"),
        ("session", "moved auth; one; two"),
        ("todo", "mend it"),
        ("todo", "try it"),
    ]
    assert result.entries[-1].time == CHANGED
    assert any("`steps` of the learning" in line for line in result.left)
