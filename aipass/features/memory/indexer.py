"""Lets the indexes of plugins learn what is remembered, in a thread of its own: a model takes its time."""

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

#: Texts at once; then it looks whether something else is asked of it.
BATCH = 32


class Indexer:
    """Follows the ledger, and tells nothing. The engine's side returns at once."""

    name = "meaning"

    def __init__(self, layout: Layout, meanings: Sequence[SemanticIndex]) -> None:
        self._layout = layout
        #: How far each has come; None where it was not asked yet what it has.
        self._reached: dict[SemanticIndex, int | None] = dict.fromkeys(meanings)
        self._worker = Worker(self.name, layout.crashes, lambda _: None, watches=False)
        self._ledger: Ledger | None = None
        self._is_ending = False

    def start(self, tell: Callable[[list[Any]], None]) -> None:
        """Begin with what came, and what went, while no engine ran."""
        del tell
        if self._reached:
            self._worker.start()
            self.look()

    def stop(self) -> None:
        """End after the texts that it is just at; the rest is learned by the next engine."""
        self._is_ending = True
        self._worker.stop()
        if self._ledger is not None:
            self._ledger.close()

    def look(self) -> None:
        """Something new is remembered."""
        for meaning in tuple(self._reached):
            self._worker.ask(partial(self._try, meaning, self._learn))

    def changed(self, number: int) -> None:
        """A text is another now, or gone."""
        for meaning in tuple(self._reached):
            self._worker.ask(partial(self._try, meaning, partial(self._again, number)))

    # -- the thread ------------------------------------------------------------------------------------------------

    def _try(self, meaning: SemanticIndex, work: Callable[[SemanticIndex], None]) -> None:
        """A third party's code that fails is left out, told once, and the words go on alone."""
        if self._is_ending or meaning not in self._reached:
            return
        try:
            work(meaning)
        except AipassError:
            raise  # our own ledger's trouble, which passes
        except Exception as exc:  # noqa: BLE001 - whatever it raises
            del self._reached[meaning]
            error = f"{type(exc).__name__}: {exc}"
            logger.error("learns no more what is remembered", index=meaning.name, error=error)

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
        """Forget what went while nobody told it, learn what it misses before its newest; returns that."""
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
        # What it has not come to yet it will learn as it is now.
        if row is not None and row["source"] != "todo" and reached is not None and number <= reached:
            meaning.learn([(number, row["text"])])

    def _read(self) -> Ledger:
        if self._ledger is None:
            self._ledger = Ledger.read(self._layout.ledger)
        return self._ledger


def memory_id(ledger: Ledger) -> str:
    """What tells this ledger's memory from that of any other: ids of another mean something else."""
    known = ledger.meta("memory.id")
    if known is None:
        known = uuid.uuid4().hex
        with ledger.transaction():
            ledger.run("set_meta", {"key": "memory.id", "value": known})
    return known
