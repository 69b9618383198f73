"""Memory: what is remembered, found by whatever words, ranked, and forgotten for good."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aipass.features.memory.full_text import indexed, query
from aipass.features.memory.recall import SOURCES, recall

TOML = """
[agents.api]
driver = "command"
command = ["true"]
[agents.web]
driver = "command"
command = ["true"]
[state]
text = 2000
learnings = 3
"""
DAY = 86400.0


@pytest.fixture
def house(aipass_bench):
    return aipass_bench(TOML)


def note(bench, text, agent="api", kind="learning", **more):
    return bench.ask("note", do=kind, text=text, agent=agent, **more)


def found(bench, asked, **more):
    more = {"now": bench.clock.now().wall, **more}
    return [hit.row["text"] for hit in recall(bench.ledger, asked, **more)]


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index():
    db = sqlite3.connect(":memory:")
    db.execute(
        "CREATE VIRTUAL TABLE t USING fts5 (w, tokenize = 'porter unicode61 remove_diacritics 2', prefix = '3')"
    )
    yield db
    db.close()


@given(st.text(max_size=60))
def test_whatever_is_typed_is_no_syntax_error(index, asked):
    expression = query(asked)
    if expression:
        index.execute("SELECT rowid FROM t WHERE t MATCH ?", (expression,)).fetchall()


@given(st.text(alphabet='"*()-^:+{}[]AND OR NOT NEAR', max_size=40))
def test_nothing_that_is_typed_is_an_operator(index, asked):
    expression = query(asked)
    if expression:
        index.execute("SELECT rowid FROM t WHERE t MATCH ?", (expression,)).fetchall()


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("we dropped redis", "dropping"),
        ("we dropped redis", "why did we drop redis"),
        ("the connection pool leaks", "connec"),
        ("parse_url returns None", "parse_url"),
        ("parse_url returns None", "parse url"),
        ("parse_url returns None", "parseUrl"),
        ("parseUrl returns None", "parse_url"),
        ("parseUrl returns None", "parse"),
        ("HTTPServer hangs", "http server"),
        ("see src/api/login.py", "src/api/login.py"),
        ("see src/api/login.py", "login.py"),
        ("see src/api/login.py", "login"),
        ("the café is closed", "cafe"),
        ("Grüße aus München", "munchen"),
        ("error E1234 in build", "E1234"),
        ("use --no-verify there", "--no-verify"),
        ('he said "stop"', '"stop'),
        ("it is what it is", "it"),
    ],
)
def test_words_are_found_in_other_forms_by_their_beginnings_and_by_the_parts_of_names(text, asked):
    db = sqlite3.connect(":memory:")
    db.execute(
        "CREATE VIRTUAL TABLE t USING fts5 (w, tokenize = 'porter unicode61 remove_diacritics 2', prefix = '3')"
    )
    db.execute("INSERT INTO t VALUES (?)", (indexed(text),))
    db.execute("INSERT INTO t VALUES ('something else entirely')")
    assert db.execute("SELECT rowid FROM t WHERE t MATCH ?", (query(asked),)).fetchall() == [(1,)]
    db.close()


def test_common_words_are_not_asked_for_unless_there_is_nothing_else():
    assert query("why did we drop it") == '("drop" OR "drop"*)'
    assert query("what is it") != ""
    assert query(" \t ") == query("!!! ???") == ""


# -- what is remembered ------------------------------------------------------------------------------------------------


def test_everything_is_remembered_as_it_comes_with_its_source_and_the_run_behind_it(house):
    note(house, "redis was too slow, so we dropped it")
    note(house, "the redis tests flicker", kind="observation")
    note(house, "look at redis again", kind="todo")
    house.ask("send", agent="api", text="replace redis")
    house.ask("message", to="web", text="redis is gone", by=1)
    house.ask("ask", to="human", text="may redis go?", by=1)
    house.ask("answer", question=2, text="yes, redis may go")
    house.ask("read", ids=[3], by=1)
    house.finish(1, "I replaced redis by sqlite.")
    house.settle()
    sources = [hit.row["source"] for hit in recall(house.ledger, "redis", now=0.0, limit=50)]
    assert sorted(sources) == [
        "answer",
        "answer",
        "learning",
        "message",
        "message",
        "message",
        "observation",
        "session",
    ]
    hit = recall(house.ledger, "sqlite", now=0.0, sources=["answer"])[0].as_json()
    assert hit["dispatch"] == 1
    assert hit["path"] == "outbox/api/send.1.md"
    assert set(hit) >= {"id", "source", "agent", "text", "path", "dispatch", "time", "score"}


def test_what_rolled_over_is_found_and_what_was_rewritten_is_found_by_its_new_words(house):
    for number in range(5):
        note(house, f"lesson number{number}x")
    assert found(house, "number0x") == ["lesson number0x"]
    from state_kit import body, save

    document = body(house)
    document["learnings"][0]["text"] = "quite another thing"
    save(house, document)
    assert found(house, "number2x") == []
    assert found(house, "another") == ["quite another thing"]


def test_own_recent_and_exact_things_come_first(house):
    note(house, "cache the tokens", agent="web")
    note(house, "cache the tokens", agent="api")
    hits = recall(house.ledger, "cache tokens", asker="api", now=house.clock.now().wall)
    assert [hit.row["agent"] for hit in hits] == ["api", "web"]
    house.clock.advance(400 * DAY)
    note(house, "cache the tokens!", agent="web")
    assert found(house, "cache tokens")[0] == "cache the tokens!"
    note(house, "tokens may be put into a cache", agent="web")
    assert found(house, "into a cache")[0] == "tokens may be put into a cache"
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_only_what_is_asked_for(house):
    note(house, "one redis", agent="web")
    note(house, "two redis", agent="api", kind="observation")
    assert found(house, "redis", agent="web") == ["one redis"]
    assert found(house, "redis", sources=["observation"]) == ["two redis"]
    assert found(house, "redis", limit=1, asker="web") == ["one redis"]
    assert found(house, "postgres") == []
    assert found(house, "") == []
    assert set(SOURCES) == {"learning", "observation", "session", "answer", "message", "plan", "pr"}


def test_a_prompt_holds_what_is_remembered_of_the_task_quoted(house):
    note(house, "parse_url fails on\nempty strings", agent="web")
    house.ask("send", agent="api", text="mend parse_url")
    prompt = house.runner.prompt(1)
    assert 'From memory (`aipass recall "…"` finds more):' in prompt
    assert "- learning 1 of web:\n  > parse_url fails on empty strings\n" in prompt
    house.finish(1, "parse_url is mended")
    house.ask("send", agent="api", text="mend something else")
    assert house.runner.prompt(2) == "mend something else"


# -- what is forgotten -------------------------------------------------------------------------------------------------


def test_what_is_forgotten_is_nowhere_any_more(house):
    word = "zanzibarian"
    note(house, f"the {word} incident was our fault, and nobody may ever hear of it again")
    note(house, "something else")
    assert word in str([event.detail for event in house.events("request.received")])
    assert house.ask("forget", memory=1)["message"] == "learning 1 of api is forgotten"
    assert found(house, word) == []
    from state_kit import texts

    assert texts(house) == ["something else"]
    assert house.ask("forget", memory=1)["exit"] == 1
    assert word not in str([event.detail for event in house.events()])
    house.ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    # What SQLite has freed it overwrites, where it was built so.
    if house.ledger._db.execute("PRAGMA secure_delete").fetchone()[0]:
        assert word.encode() not in house.layout.ledger.read_bytes()


def everywhere(house, word):
    """The tables and the files below .aipass that hold a word."""
    tables = ("events", "actions", "messages", "memory", "notes", "states")
    rows = {
        table: [tuple(row) for row in house.ledger._db.execute(f"SELECT * FROM {table}")] for table in tables
    }
    held = [table for table, those in rows.items() if word in str(those)]
    files = [path for path in house.layout.state.rglob("*.md") if word in path.read_text()]
    return held + [str(path.relative_to(house.layout.state)) for path in files]


def test_what_was_forgotten_of_a_message_reaches_nobody_any_more(house):
    house.ask("message", to="web", text="zanzibar is the password", subject="zanzibar", by=None)
    house.ask("forget", memory=1)
    assert everywhere(house, "zanzibar") == []
    house.ask("send", agent="web", text="go")
    assert "zanzibar" not in house.runner.prompt(1)


def test_what_was_forgotten_of_an_answer_and_of_a_pr_is_nowhere(house):
    house.ask("send", agent="api", text="w")
    house.ask("ask", to="human", text="may it go?", by=1)
    house.ask("answer", question=1, text="zanzibar may go")
    house.tell(
        "pr.opened",
        detail={"pr": 3, "title": "zanzibar goes", "paths": ["a"], "agent": "api", "dispatch": None},
    )
    for row in house.ledger._db.execute("SELECT id FROM memory WHERE text LIKE '%zanzibar%'").fetchall():
        assert house.ask("forget", memory=row[0])["exit"] == 0
    assert everywhere(house, "zanzibar") == []
    assert "may it go?" in str([event.detail for event in house.events("request.received")])


def test_what_was_forgotten_of_a_note_is_nowhere_however_it_was_written_before(house):
    from state_kit import body, save

    note(house, "zanzibar\r\nin two lines")
    note(house, "zanzibar first")
    document = body(house)
    document["learnings"][1]["text"] = "second"
    save(house, document)
    for number in (1, 2):
        house.ask("forget", memory=number)
    assert everywhere(house, "zanzibar") == []


def test_forgetting_a_short_text_takes_nothing_else_out_of_the_log(house):
    house.ask("send", agent="api", text="an important task")
    house.ask("message", to="web", text="a message", by=1)
    note(house, "a", by=1)
    number = house.ledger._db.execute("SELECT id FROM memory WHERE text = 'a'").fetchone()[0]
    assert house.ask("forget", memory=number, by=1)["exit"] == 0
    told = [event.detail for event in house.events("request.received")]
    assert [one.get("verb") for one in told] == ["send", "message", "note", "forget"]
    assert [one.get("text") for one in told] == ["an important task", "a message", "(forgotten)", None]


def test_a_copy_of_before_brings_nothing_back_that_was_forgotten(house):
    from state_kit import body, save, texts

    note(house, "zanzibar")
    note(house, "stays")
    copy = body(house)
    house.ask("forget", memory=1)
    copy["learnings"].append({"text": "added by the copy"})
    save(house, copy)
    assert texts(house) == ["stays", "added by the copy"]
    assert everywhere(house, "zanzibar") == []


def test_an_agent_takes_nobody_elses_words_out_of_the_log(house):
    order = "never touch the production database, whatever anybody else may tell you about it"
    house.ask("send", agent="api", text=order)
    house.ask("message", to="web", text=order + " and mind the backups")
    note(house, order, by=1)
    number = house.ledger._db.execute("SELECT id FROM memory WHERE source = 'learning'").fetchone()[0]
    assert house.ask("forget", memory=number, by=1)["exit"] == 0
    told = [event.detail.get("text") for event in house.events("request.received")]
    assert told == [order, order + " and mind the backups", "(forgotten)", None]


@pytest.mark.parametrize("odd", ["\x1b", "\x00", "\x0b", "é", '"', "\\"])
def test_what_is_forgotten_may_hold_any_character(house, odd):
    note(house, f"zan{odd}zibar {odd}")
    house.ask("forget", memory=1)
    assert everywhere(house, "zibar") == []


def test_an_agent_forgets_its_own_only(house):
    note(house, "mine")
    note(house, "theirs", agent="web")
    house.ask("send", agent="api", text="work")
    refused = house.ask("forget", memory=2, by=1)
    assert (refused["exit"], refused["message"]) == (3, "2 belongs to web, and `api` can forget only its own")
    assert house.ask("forget", memory=1, by=1)["exit"] == 0
    assert house.ask("forget", memory=2)["exit"] == 0


def test_what_looks_like_a_secret_is_remembered_by_nobody_and_the_writer_is_told(house):
    key = "sk-ant-" + "a1B2" * 12
    said = note(house, f"the key is {key}")
    assert "what looks like a secret was masked: Anthropic or OpenAI key" in said["message"]
    house.ask("send", agent="api", text="work")
    house.ask("message", to="web", text=f"take {key}", subject=key, by=1)
    note(house, "tagged", tags=[key])
    house.ask("ask", to="web", text=f"{key}?", options=[key, "other"], by=1)
    house.finish(max(house.running()), f"it is {key}")
    house.finish(1, f"I used {key}")
    house.tell("check.finished", by=1, detail={"state": "succeeded", "phase": "p", "exit": 0})
    tables = {
        table: str([tuple(row) for row in house.ledger._db.execute(f"SELECT * FROM {table}")])
        for table in ("memory", "messages", "events", "actions", "notes", "states", "memory_words")
    }
    assert [table for table, rows in tables.items() if key in rows] == []
    assert "[Anthropic or OpenAI key masked]" in tables["memory"]
    told = [row["text"] for row in house.ledger.all("messages_of", {"recipient": "api", "limit": -1})]
    assert "Text that looks like a secret was masked in your message: Anthropic or OpenAI key." in told


@pytest.mark.parametrize(
    "key",
    [
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabcdef\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA",
    ],
)
def test_all_of_a_key_is_masked(house, key):
    note(house, f"before {key}")
    (row,) = house.ledger.all("open_notes", {"agent": "api"})
    assert row["text"].startswith("before [")
    assert "abcdef" not in row["text"]
    assert "MIIE" not in row["text"]


def test_what_only_one_agent_knows_is_found_among_thousands_that_match(house):
    note(house, "redis is something that we removed a long while ago, for many reasons that nobody remembers")
    about = {"source": "message", "agent": "web", "text": "redis", "tags": "[]", "path": None, "time": 0.0}
    with house.ledger.transaction():
        for _ in range(2500):
            number = house.ledger.run(
                "insert_memory", about | {"dispatch": None, "run": None, "detail": "{}"}
            )
            house.ledger.run("put_words", {"id": number, "words": "redis"})
    assert len(recall(house.ledger, "redis", now=0.0, sources=["learning"])) == 1
    assert len(recall(house.ledger, "redis", now=0.0, agent="api")) == 1
