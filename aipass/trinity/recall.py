"""Finding what is remembered, best first: the words decide, then whether it is the asker's own, then how old it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aipass.event import iso, printable
from aipass.trinity.words import query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aipass.ledger import Ledger, Row

SOURCES = ("learning", "observation", "session", "answer", "message", "plan", "pr")
#: So many of the best by their words are ranked anew.
CANDIDATES = 200
#: What is the asker's own counts more, and so does what somebody chose to keep.
OWN, KEPT = 1.25, {"learning": 1.2, "observation": 1.1}
#: What is older than this counts half of what the newest does, at the least as much as `FLOOR` says.
HALF_LIFE_S, FLOOR = 60 * 86400.0, 0.6
#: The very words in a row count more.
PHRASE = 1.5


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
) -> list[Hit]:
    """What is remembered of the words in `asked`, best first.

    asker: whose own counts more. agent: only what is that agent's. now: seconds, for what is recent.
    """
    expression = query(asked)
    if not expression:
        return []
    about = {"query": expression, "agent": agent, "limit": CANDIDATES}
    about |= {"sources": "".join(f"|{source}" for source in sources) + "|"}
    phrase = " ".join(asked.casefold().split())
    hits = [Hit(row, _score(row, phrase, asker, now)) for row in ledger.all("recall", about)]
    hits.sort(key=lambda hit: (-hit.score, -hit.row["id"]))
    return hits[:limit]


def _score(row: Row, phrase: str, asker: str | None, now: float) -> float:
    # bm25 of FTS5 is negative, and better the smaller it is.
    score = -float(row["rank"]) * KEPT.get(row["source"], 1.0)
    score *= FLOOR + (1.0 - FLOOR) * math.exp2(-max(0.0, now - row["time"]) / HALF_LIFE_S)
    if row["agent"] == asker:
        score *= OWN
    if len(phrase) > 3 and phrase in " ".join(row["text"].casefold().split()):
        score *= PHRASE
    return score
