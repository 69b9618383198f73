"""The ranked search in memory: by words, then by owner and age; by meaning first where a semantic index exists."""

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
#: The best matches by words; only these are ranked again, by owner, age and literal words.
CANDIDATES = 200
#: Factors for the asker's own memories, and for those that an agent or a person chose to keep.
OWN, KEPT = 1.25, {"learning": 1.2, "observation": 1.1}
#: The factor for age falls from 1 to FLOOR, half of the way in HALF_LIFE_S: an old decision must still be found.
HALF_LIFE_S, FLOOR = 60 * 86400.0, 0.6
#: Factors for the literal phrase, and for each literal name (`parse_url`, `src/api/login.py`, `E0432`).
PHRASE, NAMED = 1.5, 2.0
#: With a semantic index the score is the cosine, plus at most WORDS for words, plus WEIGHTS for owner and age.
WORDS, WEIGHTS = 0.1, 0.05
#: A cosine below this means unrelated.
LEAST = 0.3


@dataclass(frozen=True, slots=True)
class Hit:
    """One result. `score`: larger is better; scores of two searches cannot be compared."""

    row: Row
    score: float

    def as_json(self) -> dict[str, Any]:
        """Return the object that `aipass recall --json` prints."""
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
    """Return the memories that match `asked`, best first; equal scores: the newest first.

    `asker`: its own memories rank higher. `agent`: only memories of this agent. `now`: seconds, to compute ages.
    `meanings`: semantic indexes to ask as well; every exception of theirs is raised here.
    """
    phrase, named, expression = " ".join(asked.casefold().split()), names(asked), query(asked)
    about = {"query": expression, "agent": agent, "limit": CANDIDATES}
    # One string with bars: SQLite has no list parameters, and `instr` finds a whole name in it.
    about |= {"sources": "".join(f"|{source}" for source in sources) + "|"}
    # Without a filter FTS5 sorts in its index. A filter needs the row of every match, which is slower.
    statement = "recall" if agent is None and set(sources) >= set(SOURCES) else "recall_of"
    rows = {row["id"]: row for row in (ledger.all(statement, about) if expression else ())}
    scores = {
        # FTS5's bm25 is negative: smaller is better.
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
    # Semantic indexes know neither sources nor agents, so their results are filtered here.
    hits.sort(key=lambda hit: (-hit.score, -hit.row["id"]))
    return hits[:limit]


def _fused(
    ledger: Ledger,
    rows: dict[int, Row],
    scores: dict[int, float],
    near: Sequence[tuple[int, float]],
    weight: Callable[[Row], float],
) -> dict[int, float]:
    """Combine cosines and word scores. Adds to `rows` what only a semantic index found."""
    best = max(scores.values(), default=1.0)
    fused = {number: WORDS * score / best for number, score in scores.items()}
    for number, closeness in near:
        if (
            # An index may still have a text that memory has deleted.
            number not in rows
            and closeness >= LEAST
            and (row := ledger.one("memory", {"id": number})) is not None
        ):
            rows[number] = row
        if number in rows:
            fused[number] = max(fused.get(number, 0.0), closeness + WORDS * scores.get(number, 0.0) / best)
    return {number: score + WEIGHTS * (weight(rows[number]) - 1.0) for number, score in fused.items()}


def _weight(row: Row, asker: str | None, now: float) -> float:
    """Return the factor for kind, age and owner."""
    weight = KEPT.get(row["source"], 1.0)
    weight *= FLOOR + (1.0 - FLOOR) * math.exp2(-max(0.0, now - row["time"]) / HALF_LIFE_S)
    return weight * OWN if row["agent"] == asker else weight


def _literal(row: Row, phrase: str, named: Sequence[str]) -> float:
    """Return the factor for literal matches of the phrase and of names."""
    text = " ".join(row["text"].casefold().split())
    factor = PHRASE if len(phrase) > 3 and phrase in text else 1.0
    for name in named:
        factor *= NAMED if name in text else 1.0
    return factor
