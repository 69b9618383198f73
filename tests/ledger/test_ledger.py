"""The ledger: all or nothing, statements by name, migrations equal to the schema, pruning, and files that are not ours."""

from __future__ import annotations

import hashlib
import sqlite3

import pytest

from aipass.action import Dispatch, Ignore
from aipass.clock import Instant
from aipass.errors import LedgerError
from aipass.event import Fact
from aipass.ledger import Ledger
from aipass.ledger.sqlite import APPLICATION_ID, event_of
from aipass.ledger.statements import migrations, parse, schema, statements

NOW = Instant(0.0, 1000.0)


def shape(script: str) -> list[tuple]:
    db = sqlite3.connect(":memory:")
    db.executescript(script)
    found = db.execute("SELECT type, name, tbl_name FROM sqlite_master ORDER BY name").fetchall()
    columns = [
        (name, db.execute(f"PRAGMA table_info({name})").fetchall())
        for kind, name, _ in found
        if kind == "table"
    ]
    db.close()
    return found + columns


def test_migrations_lead_to_the_schema():
    assert shape("\n".join(migrations())) == shape(schema())


def test_every_statement_is_valid_and_used():
    db = sqlite3.connect(":memory:")
    db.executescript(schema())
    db.execute("CREATE TEMP TABLE protected (id INTEGER PRIMARY KEY)")
    from pathlib import Path

    import aipass

    code = "".join(path.read_text() for path in Path(aipass.__file__).parent.rglob("*.py"))
    for name, text in statements().items():
        db.execute(
            f"EXPLAIN {text}",
            {
                key: None
                for key in "".join(c if c.isalnum() or c in ":_" else " " for c in text).split()
                for key in [key.lstrip(":")]
            }
            if ":" in text
            else (None,) * text.count("?"),
        )
        assert f'"{name}"' in code, f"the statement {name} is used nowhere"
    db.close()


def test_statements_without_a_purpose_or_named_twice_are_refused():
    with pytest.raises(ValueError, match="purpose"):
        parse("-- name: a\nSELECT 1\n")
    with pytest.raises(ValueError, match="twice"):
        parse("-- name: a\n-- why\nSELECT 1\n\n-- name: a\n-- why\nSELECT 1\n")


def test_a_transaction_that_fails_leaves_nothing_and_ids_go_on(tmp_path):
    ledger = Ledger.open(tmp_path / "l.db")
    with ledger.transaction():
        ledger.record(Fact("a.b", "test"), NOW)
    with pytest.raises(RuntimeError), ledger.transaction():
        event = ledger.record(Fact("a.b", "test"), NOW)
        ledger.add_action(event.id, "h", Ignore("x"), "done", "x")
        ledger.run("set_meta", {"key": "k", "value": "v"})
        raise RuntimeError
    assert ledger.meta("k") is None
    with ledger.transaction():
        assert ledger.record(Fact("a.b", "test"), NOW).id == 2
    ledger.close()
    again = Ledger.read(tmp_path / "l.db")
    assert again.last_event == 2
    again.close()


def test_a_snapshot_is_of_one_moment_and_keeps_no_writer_waiting(tmp_path):
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path)
    with ledger.transaction():
        ledger.run("set_meta", {"key": "x", "value": "before"})
    there, live = Ledger.snapshot(path), Ledger.read(path)
    with ledger.transaction():
        ledger.run("set_meta", {"key": "x", "value": "after"})
    assert (there.meta("x"), live.meta("x")) == ("before", "after")
    there.close()
    live.close()
    ledger.close()


def test_an_event_comes_back_as_it_was_recorded(tmp_path):
    ledger = Ledger.open(tmp_path / "l.db")
    fact = Fact(
        "file.closed",
        "test",
        path=b"a\xff\n'\"".decode("utf-8", "surrogateescape"),
        ref="r",
        by=3,
        cause=1,
        detail={"a": ["\udcff", 1, None]},
    )
    with ledger.transaction():
        event = ledger.record(fact, NOW)
    assert event_of(ledger.one("event", {"id": event.id})) == event
    assert event.as_json()["path"] == "a\\xff\n'\""
    ledger.close()


def test_the_database_itself_allows_one_open_dispatch_of_a_key_and_one_run_of_an_agent(tmp_path):
    ledger = Ledger.open(tmp_path / "l.db")
    row = {
        "agent": "a",
        "key": "k",
        "subject": None,
        "priority": 0,
        "hops": 0,
        "created": 0,
        "cause": None,
        "handler": "h",
        "reply_to": None,
    }
    with ledger.transaction():
        first = ledger.run("insert_dispatch", row)
    with pytest.raises(sqlite3.IntegrityError), ledger.transaction():
        ledger.run("insert_dispatch", row)
    with ledger.transaction():
        ledger.run("dispatch_running", {"id": first, "now": 0})
        second = ledger.run("insert_dispatch", row)
        ledger.run("insert_run", {"dispatch": first, "agent": "a", "now": 0, "driver": "d"})
    with pytest.raises(sqlite3.IntegrityError), ledger.transaction():
        ledger.run("dispatch_running", {"id": second, "now": 0})
    with pytest.raises(sqlite3.IntegrityError), ledger.transaction():
        ledger.run("insert_run", {"dispatch": second, "agent": "a", "now": 0, "driver": "d"})
    ledger.close()


def spoil(path, how):
    if how == "no database":
        path.write_bytes(b"hello, I am a diary\n" * 100)
    elif how == "damaged":
        Ledger.open(path).close()
        data = bytearray(path.read_bytes())
        data[4096:12000] = b"\xa5" * (12000 - 4096)
        path.write_bytes(data)
    else:
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE t (a)")
        db.execute(f"PRAGMA user_version = {999 if how == 'newer' else 1}")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID if how == 'newer' else 7}")
        db.commit()
        db.close()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no database", "not a ledger"),
        ("damaged", "damaged"),
        ("newer", "written by a newer aipass"),
        ("foreign", "of another program"),
    ],
)
def test_a_file_that_is_not_our_ledger_is_refused_and_not_touched(tmp_path, how, message):
    path = tmp_path / "ledger.db"
    spoil(path, how)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(LedgerError, match=message):
        Ledger.open(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_pruning_keeps_dispatches_their_causes_and_what_is_pending(tmp_path):
    ledger = Ledger.open(tmp_path / "l.db")
    with ledger.transaction():
        root = ledger.record(Fact("a.root", "test"), NOW)
        middle = ledger.record(Fact("a.middle", "test", cause=root.id), NOW)
        dropped = [ledger.record(Fact("a.noise", "test"), NOW).id for _ in range(100)]
        waiting = ledger.record(Fact("a.waiting", "test"), NOW)
        ledger.add_action(waiting.id, "h", Dispatch("a", "t"), "pending", "dispatch 1")
        ledger.add_action(dropped[0], "h", Ignore("x"), "done", "x")
        row = {
            "agent": "a",
            "key": "k",
            "subject": None,
            "priority": 0,
            "hops": 0,
            "created": 0,
            "cause": middle.id,
            "handler": "h",
            "reply_to": None,
        }
        ledger.run("insert_dispatch", row)
        new = ledger.record(Fact("a.new", "test"), Instant(0.0, 5000.0))
    assert ledger.prune(4000.0, 1_000_000) == 100
    left = [row["id"] for row in ledger.all("events", {"after": 0, "kind": None})]
    assert left == [root.id, middle.id, waiting.id, new.id]
    assert ledger.all("actions_of_event", {"event": dropped[0]}) == []
    assert ledger.prune(4000.0, 1_000_000) == 0
    ledger.close()


def test_pruning_by_number_keeps_the_newest(tmp_path):
    ledger = Ledger.open(tmp_path / "l.db")
    with ledger.transaction():
        for _ in range(12_000):
            ledger.record(Fact("a.noise", "test"), NOW)
    assert ledger.prune(0.0, 1000) == 11_000
    assert len(ledger.all("events", {"after": 0, "kind": None})) == 1000
    ledger.close()
