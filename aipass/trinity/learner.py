"""Lets the indexes of plugins learn what is remembered, in a thread of its own: a model takes its time."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass.ledger import Ledger
from aipass.sources.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aipass.layout import Layout
    from aipass.trinity.meaning import Meaning

logger = structlog.get_logger("aipass")

#: Texts at once; then it looks whether something else is asked of it.
BATCH = 32


class Learner:
    """Follows the ledger, and tells nothing. The engine's side returns at once."""

    name = "meaning"

    def __init__(self, layout: Layout, meanings: Sequence[Meaning]) -> None:
        self._layout, self._meanings = layout, list(meanings)
        self._worker = Worker(self.name, layout.crashes, lambda _: None)
        self._ledger: Ledger | None = None
        self._is_ending = False

    def start(self, tell: Callable[[list[Any]], None]) -> None:
        """Begin with what came while no engine ran."""
        del tell
        if self._meanings:
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
        for meaning in self._meanings:
            self._worker.ask(partial(self._learn, meaning))

    def changed(self, number: int) -> None:
        """A text is another now, or gone."""
        for meaning in self._meanings:
            self._worker.ask(partial(self._again, meaning, number))

    # -- the thread ------------------------------------------------------------------------------------------------

    def _learn(self, meaning: Meaning) -> None:
        if self._is_ending or meaning not in self._meanings:
            return
        try:
            rows = self._read().all("memory_after", {"after": meaning.newest(), "limit": BATCH})
            if rows:
                meaning.learn([(row["id"], row["text"]) for row in rows])
        except Exception as exc:  # noqa: BLE001 - a third party's code; told once, and the words go on alone
            self._meanings.remove(meaning)
            logger.error(
                "learns no more what is remembered", index=meaning.name, error=f"{type(exc).__name__}: {exc}"
            )
            return
        if len(rows) == BATCH:
            self._worker.ask(partial(self._learn, meaning))

    def _again(self, meaning: Meaning, number: int) -> None:
        row = self._read().one("memory", {"id": number})
        meaning.forget(number)
        if row is not None and row["source"] != "todo":
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
