"""What a run left in its folder at its end, as `result.json`: read with limits, for an agent may have put anything there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass.supervisor import held

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout

RESULT = "result.json"
#: Ends of a run, or of a check, that say nothing of its work.
INTERRUPTED = frozenset(("lost", "killed"))
# No answer that anybody reads is longer; a run's output may be anything, and have holes that are no bytes on the disk.
MAX_ANSWER_BYTES = 20_000_000
#: Of an answer, for a summary.
_READ_BYTES = 20_000


def result_of(layout: Layout, run: int) -> dict[str, Any]:
    """What a run came to; empty where nothing can be read."""
    try:
        found = json.loads(held.read(layout.run(run) / RESULT, 2 * MAX_ANSWER_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def said(layout: Layout, ledger: Ledger, dispatch: int) -> str:
    """What a dispatch's last run said at its end, as far as it is short; empty where that is nothing."""
    runs = ledger.all("runs_of", {"dispatch": dispatch})
    found = result_of(layout, runs[-1]["id"]).get("answer") if runs else None
    return words(Path(found["file"]) if isinstance(found, dict) else found)


def words(answer: str | Path | None) -> str:
    """The beginning of an answer; empty where there is none."""
    if isinstance(answer, Path):
        try:
            with held.open_regular(answer) as file:
                answer = file.read(_READ_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""
    return answer or ""
