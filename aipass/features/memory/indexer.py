"""The indexer: keeps the semantic indexes of plugins up to date with memory, in its own thread."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass.errors import AipassError
from aipass.ledger import Ledger
from aipass.sources.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aipass.features.memory.index import SemanticIndex
    from aipass.workspace.layout import Layout

logger = structlog.get_logger("aipass")

#: Texts in one call of a model, some 20 ms each. Between two batches the thread can stop, or forget a text.
BATCH = 32


class Indexer:
    """A source that reads the ledger and reports nothing. Its public methods only queue work for its thread.

    An index that raises an exception is logged and not used again by this engine; search by words still works.
    """

    name = "meaning"

    def __init__(self, layout: Layout, meanings: Sequence[SemanticIndex]) -> None:
        self._layout = layout
        #: The newest id that each index has learned; None before it was compared with the ledger.
        self._reached: dict[SemanticIndex, int | None] = dict.fromkeys(meanings)
        self._worker = Worker(self.name, layout.crashes, lambda _: None, watches=False)
        self._ledger: Ledger | None = None
        self._is_ending = False

    def start(self, tell: Callable[[list[Any]], None]) -> None:
        """Start the thread, and first learn and forget what changed while no engine ran."""
        del tell
        if self._reached:
            self._worker.start()
            self.look()

    def stop(self) -> None:
        """End the thread after the present batch; the next engine learns the rest."""
        self._is_ending = True
        self._worker.stop()
        if self._ledger is not None:
            self._ledger.close()

    def look(self) -> None:
        """Learn new texts. Called after the commit, because the thread reads the ledger by itself."""
        # A copy, because the thread removes an index that failed.
        for meaning in tuple(self._reached):
            self._worker.ask(partial(self._try, meaning, self._learn))

    def changed(self, number: int) -> None:
        """Learn a changed text again, or forget a deleted one."""
        for meaning in tuple(self._reached):
            self._worker.ask(partial(self._try, meaning, partial(self._again, number)))

    # -- the thread ------------------------------------------------------------------------------------------------

    def _try(self, meaning: SemanticIndex, work: Callable[[SemanticIndex], None]) -> None:
        """Run work on an index, and drop the index after the first exception of its code."""
        if self._is_ending or meaning not in self._reached:
            return
        try:
            work(meaning)
        except AipassError:
            raise  # a temporary problem of our ledger, not a fault of the index
        except Exception as exc:  # noqa: BLE001 - whatever it raises
            del self._reached[meaning]
            error = f"{type(exc).__name__}: {exc}"
            logger.error(
                "a semantic index failed and is not used until the next start",
                index=meaning.name,
                error=error,
            )

    def _learn(self, meaning: SemanticIndex) -> None:
        reached = self._reached[meaning]
        if reached is None:
            reached = self._reconcile(meaning)
        rows = self._read().all("memory_after", {"after": reached, "limit": BATCH})
        if rows:
            meaning.learn([(row["id"], row["text"]) for row in rows])
            reached = rows[-1]["id"]
        self._reached[meaning] = reached
        if len(rows) == BATCH:
            self._worker.ask(partial(self._try, meaning, self._learn))

    def _reconcile(self, meaning: SemanticIndex) -> int:
        """Compare an index with the ledger: forget deleted texts, learn the missing ones. Returns its newest id."""
        has, rows = set(meaning.ids()), self._read().all("memory_ids")
        for number in has - {row["id"] for row in rows}:
            meaning.forget(number)
        newest = max(has, default=0)
        missing = [row["id"] for row in rows if row["id"] < newest and row["id"] not in has]
        for begin in range(0, len(missing), BATCH):
            found = [self._read().one("memory", {"id": number}) for number in missing[begin : begin + BATCH]]
            meaning.learn([(row["id"], row["text"]) for row in found if row is not None])
        return newest

    def _again(self, number: int, meaning: SemanticIndex) -> None:
        reached, row = self._reached[meaning], self._read().one("memory", {"id": number})
        meaning.forget(number)
        # `_learn` will read a newer id later, with its present text.
        if row is not None and row["source"] != "todo" and reached is not None and number <= reached:
            meaning.learn([(number, row["text"])])

    def _read(self) -> Ledger:
        # Its own connection: SQLite connections belong to one thread.
        if self._ledger is None:
            self._ledger = Ledger.read(self._layout.ledger)
        return self._ledger


def memory_id(ledger: Ledger) -> str:
    """Return the id of this ledger's memory, and create it once. Index files are named by it: ids of two ledgers differ."""
    known = ledger.meta("memory.id")
    if known is None:
        known = uuid.uuid4().hex
        with ledger.transaction():
            ledger.run("set_meta", {"key": "memory.id", "value": known})
    return known
