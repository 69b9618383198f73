"""Finding what is remembered, best first: the words decide, then whether it is the asker's own, then how old it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aipass.event import iso, printable
from aipass.features.memory.full_text import names, query

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aipass.features.memory.index import SemanticIndex
    from aipass.ledger import Ledger, Row

SOURCES = ("learning", "observation", "session", "answer", "message", "plan", "pr")
#: So many of the best by their words are ranked anew.
CANDIDATES = 200
#: What is the asker's own counts more, and so does what somebody chose to keep.
OWN, KEPT = 1.25, {"learning": 1.2, "observation": 1.1}
#: What is older than this counts half of what the newest does, at the least as much as `FLOOR` says.
HALF_LIFE_S, FLOOR = 60 * 86400.0, 0.6
#: The very words in a row count more, and so does each name that was typed (`parse_url`, `src/api/login.py`, `E0432`).
PHRASE, NAMED = 1.5, 2.0
#: Where meaning is asked as well, it decides: a cosine, and to that at most so much for words and for what counts more.
WORDS, WEIGHTS = 0.1, 0.05
#: What is farther from what was asked has nothing to do with it.
LEAST = 0.3


@dataclass(frozen=True, slots=True)
class Hit:
    """Something that was found. `score`: larger is better; only the order means anything."""

    row: Row
    score: float

    def as_json(self) -> dict[str, Any]:
        """As `aipass recall --json` prints it."""
        row = self.row
        return {
            "id": row["id"],
            "source": row["source"],
            "agent": row["agent"],
            "text": row["text"],
            "path": printable(row["path"]),
            "dispatch": row["dispatch"],
            "run": row["run"],
            "time": iso(row["time"]),
            "score": round(self.score, 4),
        }


def recall(
    ledger: Ledger,
    asked: str,
    *,
    asker: str | None = None,
    agent: str | None = None,
    sources: Sequence[str] = SOURCES,
    now: float,
    limit: int = 10,
    meanings: Sequence[SemanticIndex] = (),
) -> list[Hit]:
    """What is remembered of the words in `asked`, best first.

    asker: whose own counts more. agent: only what is that agent's. now: seconds, for what is recent. meanings: indexes that
    find by meaning as well. Raises what those raise.
    """
    phrase, named, expression = " ".join(asked.casefold().split()), names(asked), query(asked)
    about = {"query": expression, "agent": agent, "limit": CANDIDATES}
    about |= {"sources": "".join(f"|{source}" for source in sources) + "|"}
    # Of all it goes by the index alone; of some each that matches is looked at.
    statement = "recall" if agent is None and set(sources) >= set(SOURCES) else "recall_of"
    rows = {row["id"]: row for row in (ledger.all(statement, about) if expression else ())}
    scores = {
        # bm25 of FTS5 is negative, and better the smaller it is.
        number: -float(row["rank"]) * _weight(row, asker, now) * _literal(row, phrase, named)
        for number, row in rows.items()
    }
    near = [one for meaning in meanings for one in meaning.nearest(asked, CANDIDATES)]
    if near:
        scores = _fused(ledger, rows, scores, near, partial(_weight, asker=asker, now=now))
    hits = [
        Hit(row, scores[number])
        for number, row in rows.items()
        if row["source"] in sources and agent in {None, row["agent"]}
    ]
    hits.sort(key=lambda hit: (-hit.score, -hit.row["id"]))
    return hits[:limit]


def _fused(
    ledger: Ledger,
    rows: dict[int, Row],
    scores: dict[int, float],
    near: Sequence[tuple[int, float]],
    weight: Callable[[Row], float],
) -> dict[int, float]:
    """The closeness in meaning, and a little more for words; `rows` gets what the words did not find."""
    best = max(scores.values(), default=1.0)
    fused = {number: WORDS * score / best for number, score in scores.items()}
    for number, closeness in near:
        if (
            number not in rows
            and closeness >= LEAST
            and (row := ledger.one("memory", {"id": number})) is not None
        ):
            rows[number] = row
        if number in rows:
            fused[number] = max(fused.get(number, 0.0), closeness + WORDS * scores.get(number, 0.0) / best)
    return {number: score + WEIGHTS * (weight(rows[number]) - 1.0) for number, score in fused.items()}


def _weight(row: Row, asker: str | None, now: float) -> float:
    """How much something counts, whatever it says."""
    weight = KEPT.get(row["source"], 1.0)
    weight *= FLOOR + (1.0 - FLOOR) * math.exp2(-max(0.0, now - row["time"]) / HALF_LIFE_S)
    return weight * OWN if row["agent"] == asker else weight


def _literal(row: Row, phrase: str, named: Sequence[str]) -> float:
    """How much more it counts that the very words stand there."""
    text = " ".join(row["text"].casefold().split())
    factor = PHRASE if len(phrase) > 3 and phrase in text else 1.0
    for name in named:
        factor *= NAMED if name in text else 1.0
    return factor
