"""Facts recorded and routed, and requests made durable, by an engine in this process, on one core."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
import time

import pytest
import structlog

import aipass
from aipass.event import Fact
from aipass.ledger.statements import schema, statements
from aipass.workspace import log_file
from benchmarks import kit

pytestmark = pytest.mark.bench

FACTS, BATCH, STEP = kit.size(40_000, 4000), 500, 2000
REQUESTS, SINGLE = kit.size(2000, 100), kit.size(300, 20)
TOML = '[agents.writer]\ndriver = "command"\ncommand = ["cat"]\n[limits]\nruns_per_hour = 100000\n'


@pytest.fixture
def one_core():
    """Everything on one core, as the goal is said."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture
def real_log(tmp_path):
    """The engine's own log file, as `aipass up` has it."""

    @contextlib.contextmanager
    def logging_to_file():
        before = structlog.get_config()
        structlog.reset_defaults()  # the tests' own configuration says nothing at all
        root = logging.getLogger("aipass")
        handlers, propagate = root.handlers[:], root.propagate
        log_file.set_up(tmp_path / "log.jsonl", show=False)
        try:
            yield
        finally:
            for handler in root.handlers:
                handler.close()
            root.handlers[:], root.propagate = handlers, propagate
            structlog.configure(**before)
            for module in list(sys.modules.values()):
                if module.__name__.startswith("aipass") and isinstance(
                    getattr(module, "logger", None), type(structlog.get_logger())
                ):
                    vars(module.logger).pop("bind", None)  # what `cache_logger_on_first_use` keeps

    return logging_to_file


class Fifty:
    """A plugin of 50 handlers; one of them matches some of the facts."""

    __name__ = "fifty"

    def __init__(self) -> None:
        self.calls = 0

    @aipass.hookimpl
    def register_handlers(self, config):
        def handler(number: int) -> aipass.Handler:
            paths = ("/src/area-7/",) if number == 0 else (f"/other-{number}/**/*.md",)
            return aipass.Handler(f"h{number}", ("file.closed",), self.count, paths=paths)

        return [handler(number) for number in range(50)]

    def count(self, event, view):
        self.calls += 1
        return [aipass.Ignore("counted")]


def facts() -> list[Fact]:
    return [
        Fact(
            "file.closed",
            "bench",
            path=f"src/area-{n % 100}/f{n}.py",
            detail={"size": 10, "identity": f"{n}:10:1"},
        )
        for n in range(FACTS)
    ]


def feed(bench, items: list, size: int) -> float:
    """Seconds to have all items recorded; the queue is kept full, and never blocks."""
    began = time.perf_counter()
    for start in range(0, len(items), size):
        bench.engine.tell(items[start : start + size])
        if start // size % 4 == 3:
            bench.engine.step()
    bench.settle()
    return time.perf_counter() - began


def sqlite_ledger(path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.executescript(schema())
    return db


def plain_sqlite(path, rows: list[tuple], size: int, query: str) -> float:
    """Seconds to insert rows in transactions of `size`."""
    db = sqlite_ledger(path)
    began = time.perf_counter()
    for start in range(0, len(rows), size):
        db.execute("BEGIN IMMEDIATE")
        db.executemany(query, rows[start : start + size])
        db.execute("COMMIT")
    took = time.perf_counter() - began
    db.close()
    return took


def test_facts_recorded_and_routed(aipass_bench, row, tmp_path, one_core):
    items = facts()
    insert = statements()["insert_event"]
    peer_rows = [
        (n, 1.0, fact.kind, fact.source, fact.path, None, None, None, '{"size":10,"identity":"1:10:1"}')
        for n, fact in enumerate(items, 1)
    ]
    peer = FACTS / plain_sqlite(tmp_path / "peer.db", peer_rows, STEP, insert)
    plugin = Fifty()
    bench = aipass_bench(TOML, plugin)
    ours = FACTS / feed(bench, items, BATCH)
    assert len(bench.events("file.closed")) == FACTS
    assert plugin.calls == FACTS // 100
    row(
        "facts recorded and routed through 50 handlers, one core; peer: sqlite3 executemany",
        f"{ours:,.0f}/s",
        f"{peer:,.0f}/s",
        ours / peer,
        ">= 20,000/s",
        met=ours >= 20_000,
    )


def requests(count: int, prefix: str) -> list[Fact]:
    return [
        Fact(
            "request.received",
            "spool",
            ref=f"r-{prefix}{n:06d}",
            detail={"verb": "send", "agent": "writer", "text": f"{prefix} {n}"},
        )
        for n in range(count)
    ]


def test_durable_requests(aipass_bench, row, tmp_path):
    insert = "INSERT INTO requests (id, event, message) VALUES (?, ?, ?)"
    peer_rows = [(f"r-{n:07d}", n, f'{{"agent":"writer","text":"one {n}"}}') for n in range(SINGLE)]
    peer = SINGLE / plain_sqlite(tmp_path / "peer.db", peer_rows, 1, insert)
    for title, count, size in (("at once", REQUESTS, REQUESTS), ("one by one", SINGLE, 1)):
        bench = aipass_bench(TOML)
        items = requests(count, title.replace(" ", ""))
        began = time.perf_counter()
        for start in range(0, count, size):
            bench.engine.tell(items[start : start + size])
            bench.settle()
        ours = count / (time.perf_counter() - began)
        assert len(bench.dispatches()) == count
        row(
            f"durable requests, {count:,} {title}; peer: sqlite3 FULL, one insert a transaction",
            f"{ours:,.0f}/s",
            f"{peer:,.0f}/s",
            ours / peer,
        )
