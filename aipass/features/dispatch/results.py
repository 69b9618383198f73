"""The results of ended runs: `result.json` in a run's folder, read with size limits, because an answer may be of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass.supervisor import held

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout

RESULT = "result.json"
#: Outcomes of a run, or of a check, that are no verdict on its work.
INTERRUPTED = frozenset(("lost", "killed"))
# No person reads a longer answer. A run's output may be a sparse file, whose size says nothing about the disk it needs.
MAX_ANSWER_BYTES = 20_000_000
#: How much of an answer a summary uses.
_READ_BYTES = 20_000


def result_of(layout: Layout, run: int) -> dict[str, Any]:
    """The content of a run's `result.json`; empty if it is missing or no JSON object."""
    try:
        found = json.loads(held.read(layout.run(run) / RESULT, 2 * MAX_ANSWER_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def said(layout: Layout, ledger: Ledger, dispatch: int) -> str:
    """The beginning of the answer of a dispatch's last run; empty if there is none."""
    runs = ledger.all("runs_of", {"dispatch": dispatch})
    found = result_of(layout, runs[-1]["id"]).get("answer") if runs else None
    return words(Path(found["file"]) if isinstance(found, dict) else found)


def words(answer: str | Path | None) -> str:
    """An answer as text; of a file only the first 20 KB. Empty if there is none, or if the file cannot be read."""
    if isinstance(answer, Path):
        try:
            with held.open_regular(answer) as file:
                answer = file.read(_READ_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""
    return answer or ""
