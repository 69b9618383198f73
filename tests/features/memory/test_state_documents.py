"""State files: how they are read, checked and merged."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aipass.config.model import State
from aipass.features.memory.document import FaultError, line_of, read, render
from aipass.features.memory.merge import MergedNote, merge
from aipass.features.memory.model import LOCAL, OBSERVATIONS, NoteEntry, parse

LIMITS = State()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)
GOOD = {
    "schema": 1,
    "agent": "api",
    "updated": "2026-01-01T00:00:00.000Z",
    "now": {"dispatch": 3, "plan": None, "phase": None, "task": "t", "since": None, "doing": "x"},
    "todos": [{"id": 1, "text": "mend it", "added": "2026-01-01T00:00:00.000Z", "tags": ["a"]}],
    "learnings": [{"text": "it is\nso"}],
    "sessions": [],
}


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4), st.data())
def test_the_line_of_every_value_is_found(document, data):
    place, value, inner = (), document, document
    while isinstance(inner, (dict, list)) and inner:
        step = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        place, value, inner = (*place, step), inner[step], inner[step]
    text = json.dumps(document, indent=1)
    if not place:
        assert line_of(text, place) == 1
        return
    mark = "f0e1d2c3"
    parent = document
    for step in place[:-1]:
        parent = parent[step]
    parent[place[-1]] = mark
    marked = json.dumps(document, indent=1)
    assert line_of(text, place) == marked[: marked.index(mark)].count("\n") + 1
    assert value is inner


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        (b"", 1, "empty"),
        (b"  \n", 1, "empty"),
        (b"[1]", 1, "contains a list"),
        (b'{"a": 1,\n"a": 2}', 2, 'the key "a" appears twice'),
        (b'{"a":\n NaN}', 2, "NaN is not JSON"),
        (b'{"a": Infinity}', 1, "Infinity is not JSON"),
        (b'{"a":\n\n -1e400}', 3, "-1e400 is larger than any number"),
        (b'{\n\n"a": }', 3, "not JSON"),
        (b"\xef\xbb\xbf{}", 1, "byte order mark"),
        ("{}".encode("utf-16"), 1, "UTF-16"),
        (b'{\n"a": "\xe9"}', 2, "0xe9 is not UTF-8"),
        (b"{" + b'"a":{' * 100_000, 1, "cannot be read"),
        (b'{"a":' * 30 + b"1" + b"}" * 30, 1, "nested more than"),
        (b'{"a": ' + b"1" * 5000 + b"}", 1, "cannot be read"),
        (b"x" * 2_000_000, 1, "at most 1000000"),
    ],
)
def test_what_is_no_document_is_named_by_line(data, line, words):
    with pytest.raises(FaultError, match=words) as caught:
        read(data)
    assert caught.value.line == line


def test_a_truncated_file_is_never_taken():
    data = render(GOOD)
    for end in range(len(data) - 2):
        with pytest.raises(FaultError):
            parse(LOCAL, data[:end], LIMITS)


def change(place, value):
    document = json.loads(json.dumps(GOOD))
    inner = document
    for step in place[:-1]:
        inner = inner[step]
    if value is KeyError:
        del inner[place[-1]]
    elif isinstance(inner, list) and place[-1] == len(inner):
        inner.append(value)
    else:
        inner[place[-1]] = value
    return render(document)


@pytest.mark.parametrize(
    ("place", "value", "line", "words"),
    [
        (("todos",), {}, 13, "it is an object; it must be a list"),
        (("todos",), KeyError, 1, 'it is missing; write `"todos": \\[\\]`'),
        (("todos", 0), "x", 14, 'it is text; it must be an object, such as {"text"'),
        (("todos", 0, "text"), 3, 16, "it is a number; it must be text"),
        (("todos", 0, "text"), "  ", 16, "it is empty"),
        (("todos", 0, "text"), "x" * 601, 16, "it has 601 characters; at most 600"),
        (("todos", 0, "text"), "a\0b", 16, "the character U\\+0000"),
        (("todos", 0, "text"), "a\ud800b", 16, None),
        (("todos", 0, "id"), "7", 15, "it is text; it must be a whole number"),
        (("todos", 0, "id"), True, 15, "it is true or false; it must be a whole number"),
        (("todos", 0, "id"), 1 << 70, 15, "must be a whole number"),
        (("todos", 0, "done"), True, 21, "there is no such field here; the fields are id, text, added, tags"),
        (("todos", 0, "tags", 0), 1, 19, "it is a number; it must be text"),
        (("todos", 0, "tags"), ["a"] * 21, 18, "more than 20"),
        (("notes",), [], 29, "the fields are schema, agent, updated, now, todos, learnings, sessions"),
        (("now",), [], 5, "it is a list; it must be an object"),
        (("now", "doing"), 5, 11, "it must be text or null"),
        (("schema",), 2, 1, "schema 2 is newer"),
    ],
)
def test_what_has_another_shape_is_named_by_line_and_field(place, value, line, words):
    if words is None:
        data = change(place, "?").replace(b'"?"', b'"a\\ud800b"')
        words = "the character U\\+D800"
    else:
        data = change(place, value)
    with pytest.raises(FaultError, match=words) as caught:
        parse(LOCAL, data, LIMITS)
    assert caught.value.line == line
    assert caught.value.field.split(".") == [str(step) for step in place]


def test_what_is_right_is_taken_also_without_what_the_engine_gives():
    saved = parse(LOCAL, render(GOOD), LIMITS)
    assert saved.lists["todo"] == (NoteEntry(id=1, text="mend it", added=GOOD["updated"], tags=("a",)),)
    assert saved.lists["learning"][0].text == "it is\nso"
    assert saved.doing == "x"
    assert parse(LOCAL, b'{"todos": [], "learnings": []}', LIMITS).doing is None
    assert parse(OBSERVATIONS, b'{"observations": []}', LIMITS).lists == {"observation": ()}


def test_more_todos_than_may_be_open_are_refused_and_more_learnings_are_not():
    document = GOOD | {"learnings": [{"text": "x"}] * 99}
    assert len(parse(LOCAL, render(document), LIMITS).lists["learning"]) == 99
    with pytest.raises(FaultError, match=r"31 todos; at most 30 can be open") as caught:
        parse(LOCAL, render(document | {"todos": [{"text": "x"}] * 31}), LIMITS)
    assert caught.value.line > 100


def test_a_document_of_an_older_schema_is_migrated(monkeypatch):
    from aipass.features.memory import model

    monkeypatch.setitem(model.MIGRATIONS, 0, lambda old: {"schema": 1, "observations": old["seen"]})
    found = parse(OBSERVATIONS, b'{"schema": 0, "seen": [{"text": "x"}]}', LIMITS)
    assert found.lists["observation"][0].text == "x"


class Shared:
    """What is known, as the engine keeps it: every note that there was, and a clock that only goes on."""

    def __init__(self):
        self.clock, self.notes = 0.0, {}

    def add(self, text):
        note = MergedNote(len(self.notes) + 1, text, since=self.clock, changed=self.clock)
        self.notes[note.id] = note

    def alive(self):
        return {note.id: note.text for note in self.notes.values() if note.gone is None}

    def copy(self):
        return self.clock, [
            NoteEntry.model_construct(id=one, text=text, tags=()) for one, text in self.alive().items()
        ]

    def save(self, base, saved):
        """Merge; returns the texts of what is new."""
        done = merge(self.notes.values(), saved, base)
        self.clock += 1
        for one, entry in done.changed:
            note = self.notes[one]
            self.notes[one] = replace(
                note, text=entry.text, changed=self.clock, earlier=(*note.earlier, note.text)
            )
        for one in done.removed:
            self.notes[one] = replace(self.notes[one], gone=self.clock)
        fresh = [entry.text for entry in done.order if isinstance(entry, NoteEntry)]
        for text in fresh:
            self.add(text)
        assert sorted(one for one in done.order if not isinstance(one, NoteEntry)) + sorted(
            one for one, note in self.notes.items() if note.since == self.clock
        ) == sorted(self.alive())
        return fresh


def entry(text, one=None):
    return NoteEntry.model_construct(id=one, text=text, tags=())


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["note", "done", "copy", "add", "change", "remove", "save"]),
        st.integers(0, 1),
        st.integers(0, 3),
    ),
    max_size=40,
)


@settings(max_examples=500)
@given(STEPS)
def test_any_interleaving_of_engine_and_agent_merges_as_a_small_model_says(steps):
    """The agent works with two copies, in any order. Model: what an author meant is the difference from its copy, and holds
    wherever nobody else has touched the same entry; where somebody has, the new text stands beside."""
    shared, words = Shared(), iter(range(10_000))
    copies = [shared.copy(), shared.copy()]
    begun = [dict(shared.alive()) for _ in copies]
    for what, which, where in steps:
        base, mine = copies[which]
        if what == "note":
            shared.clock += 1
            shared.add(f"n{next(words)}")
        elif what == "done" and shared.alive():
            shared.clock += 1
            one = sorted(shared.alive())[where % len(shared.alive())]
            shared.notes[one] = replace(shared.notes[one], gone=shared.clock)
        elif what == "copy":
            copies[which], begun[which] = shared.copy(), shared.alive()
        elif what == "add":
            mine.insert(where, entry(f"a{next(words)}"))
        elif what == "change" and mine:
            mine[where % len(mine)] = entry(f"c{next(words)}", mine[where % len(mine)].id)
        elif what == "remove" and mine:
            mine.pop(where % len(mine))
        elif what == "save":
            expected = shared.alive()
            fresh = Counter(one.text for one in mine if one.id is None)
            for one in begun[which].keys() - {one.id for one in mine}:
                expected.pop(one, None)
            for one in mine:
                if one.id is None or one.text == begun[which][one.id]:
                    continue
                if expected.get(one.id) == begun[which][one.id]:
                    expected[one.id] = one.text
                else:
                    fresh[one.text] += 1
            assert Counter(shared.save(base, mine)) == fresh
            assert {one: text for one, text in shared.alive().items() if one in expected} == expected
            copies[which], begun[which] = shared.copy(), shared.alive()


def test_a_program_that_saves_the_same_copy_again_adds_nothing_twice():
    shared = Shared()
    base, mine = shared.copy()
    mine.append(entry("x"))
    assert shared.save(base, mine) == ["x"]
    mine.append(entry("y"))
    assert shared.save(base, mine) == ["y"]
    shared.notes[1] = replace(shared.notes[1], gone=shared.clock)
    assert shared.save(base, mine) == []
    assert shared.alive() == {2: "y"}


def test_two_entries_of_one_id_are_two_and_an_unknown_id_is_a_new_one():
    shared = Shared()
    shared.add("x")
    assert shared.save(0.0, [entry("x", 1), entry("z", 1), entry("q", 77)]) == ["z", "q"]


def test_what_was_taken_out_before_the_copy_was_made_comes_back_on_purpose():
    shared = Shared()
    shared.add("x")
    shared.save(0.0, [])
    assert shared.save(shared.clock, [entry("x", 1)]) == ["x"]


def test_many_faults_cost_little(monkeypatch):
    from aipass.features.memory import model

    looks = []
    real = model.line_of
    monkeypatch.setattr(model, "line_of", lambda *given: looks.append(1) or real(*given))
    with pytest.raises(FaultError, match="it is a number; it must be an object"):
        parse(LOCAL, json.dumps({"todos": [], "learnings": [1] * 1000}).encode(), LIMITS)
    with pytest.raises(FaultError, match="there are 100000 learnings"):
        parse(LOCAL, json.dumps({"todos": [], "learnings": [1] * 100_000}).encode(), LIMITS)
    assert len(looks) <= 20


def test_limits_that_are_lowered_leave_alone_what_stands_already():
    def document(*texts, doing="x"):
        entries = [{"id": number, "text": text} for number, text in enumerate(texts, 1)]
        now = {**GOOD["now"], "doing": doing}
        return json.dumps({**GOOD, "now": now, "todos": entries}).encode()

    low = State(text=20, todos=2)
    standing = document("a text that is far too long now", "b", "c", doing="and this is too long as well")
    saved = parse(LOCAL, standing, low, standing)
    assert len(saved.lists["todo"]) == 3
    shorter = document("a text that is far too long now", "b", "changed")
    assert parse(LOCAL, shorter, low, standing).lists["todo"][2].text == "changed"
    with pytest.raises(FaultError, match="at most 20"):
        parse(LOCAL, document("another text that is too long now", "b"), low, standing)
    with pytest.raises(FaultError, match="there are 4 todos; at most 2 can be open"):
        parse(LOCAL, document("a", "b", "c", "d"), low, standing)


def test_a_list_of_a_save_has_an_end():
    entries = [{"text": f"{number}"} for number in range(1_001)]
    with pytest.raises(FaultError, match="there are 1001 learnings; a file has at most 1000"):
        parse(LOCAL, json.dumps({**GOOD, "learnings": entries}).encode(), LIMITS)
