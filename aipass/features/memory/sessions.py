"""The session: a summary of one run, computed from its own record without a model. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aipass.event import iso, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aipass.ledger import Row

SUMMARY_CHARS, FILES = 400, 20


def of(run: Row, finished: float, outcome: str, said: str | None, files: Sequence[str]) -> dict[str, Any]:
    """Return a session as memory stores it. `finished`: seconds; `files`: written by the run, relative to the root."""
    # Every agent saves its own state files, so they say nothing about the work.
    own = [printable(path) for path in files if ".trinity" not in path.split("/")]
    return {
        "started": iso(run["started"] or run["created"]),
        "finished": iso(finished),
        "outcome": outcome,
        "summary": summary(said or outcome),
        "files": own[:FILES] + ([f"and {len(own) - FILES} more"] if len(own) > FILES else []),
    }


def with_questions(said: str | None, asked: Sequence[Row]) -> str | None:
    """Return the answer of a run with its open questions before it."""
    if not asked:
        return said
    # Before the answer: `summary` keeps the beginning.
    questions = "; ".join(f"{row['recipient']}: {summary(row['text'])}" for row in asked)
    return f"[asks {questions}] {said or ''}".rstrip()


def with_checks(said: str, check: Mapping[str, Any] | None) -> str:
    """Return a summary with the result of the phase's checks. `check`: the detail of the last `check.finished`."""
    # A check that was cut off has no result.
    if check is None or check["state"] == "lost":
        return said
    how = (
        "passed"
        if check["state"] == "succeeded"
        else f"failed ({check.get('reason') or 'exit ' + str(check.get('exit'))})"
    )
    return f"{said} [checks of {check['phase']}: {how}]"


def summary(said: str) -> str:
    """Return the first paragraph of a text in one line of at most SUMMARY_CHARS, without control characters."""
    paragraphs = [part for part in said.replace("\r", "").split("\n\n") if part.strip()]
    line = " ".join((paragraphs or [""])[0].split())
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
    return line if len(line) <= SUMMARY_CHARS else line[: SUMMARY_CHARS - 1] + "…"
