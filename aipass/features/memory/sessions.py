"""What a run did, in a few words, made of its own record: no model is asked. Pure, but for reading an answer's beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aipass.event import iso, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aipass.ledger import Row

SUMMARY_CHARS, FILES = 400, 20


def of(run: Row, finished: float, outcome: str, said: str | None, files: Sequence[str]) -> dict[str, Any]:
    """A session as it is remembered. `finished`: seconds; `files`: what the run wrote, relative to the root."""
    own = [printable(path) for path in files if ".trinity" not in path.split("/")]
    return {
        "started": iso(run["started"] or run["created"]),
        "finished": iso(finished),
        "outcome": outcome,
        "summary": summary(said or outcome),
        "files": own[:FILES] + ([f"and {len(own) - FILES} more"] if len(own) > FILES else []),
    }


def with_questions(said: str | None, asked: Sequence[Row]) -> str | None:
    """What a run said, and before it what it asked and was not told: it ends with that."""
    if not asked:
        return said
    questions = "; ".join(f"{row['recipient']}: {summary(row['text'])}" for row in asked)
    return f"[asks {questions}] {said or ''}".rstrip()


def with_checks(said: str, check: Mapping[str, Any] | None) -> str:
    """A summary, and what the checks of its phase came to. `check`: the detail of the last `check.finished`."""
    if check is None or check["state"] == "lost":
        return said
    how = (
        "passed"
        if check["state"] == "succeeded"
        else f"failed ({check.get('reason') or 'exit ' + str(check.get('exit'))})"
    )
    return f"{said} [checks of {check['phase']}: {how}]"


def summary(said: str) -> str:
    """The first paragraph of what was said, in one line, without control characters."""
    paragraphs = [part for part in said.replace("\r", "").split("\n\n") if part.strip()]
    line = " ".join((paragraphs or [""])[0].split())
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
    return line if len(line) <= SUMMARY_CHARS else line[: SUMMARY_CHARS - 1] + "…"
