"""What a phase's prompt says besides its task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.event import printable
from aipass.git.ask import ask
from aipass.plan import check, model
from aipass.supervisor.wire import open_regular

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.ledger import Ledger

#: Lines beyond are not counted.
COUNTED_BYTES = 1_000_000
#: So many paths are listed; the rest is counted.
LISTED = 50


def preamble(ledger: Ledger, root: Path, plan_id: str, phase_id: str) -> str:
    """What a phase's prompt says besides its task: what was delivered before, by whom, and what is its own."""
    row = ledger.one("plan", {"id": plan_id})
    if row is None:
        return ""
    plan = model.taken_over(row["body"], row["file"])
    phase = plan.phase(phase_id)
    lines = [f"This is phase {phase.id} of plan {plan.id}, {plan.title}."]
    before = check.ancestors(plan)[phase_id]
    for done in ledger.all("phases_of", {"plan": plan_id}):
        if done["id"] in before:
            lines.append(f"\nDelivered before by {done['agent']} ({done['id']}):")
            written = [
                row["path"] for row in ledger.all("written_of", {"plan": plan_id, "phase": done["id"]})
            ]
            lines += _listed(root, written) or ["- nothing to read"]
    if phase.owns:
        lines.append("\nYou may write: " + ", ".join(phase.owns))
    if phase.delivers:
        lines.append("You deliver: " + ", ".join(one.path for one in phase.delivers))
    for command in phase.checks:
        lines.append(f"It is done when this passes: {command}")
    return "\n".join(lines) + "\n"


def _listed(root: Path, paths: list[str]) -> list[str]:
    changes = _changes(root, paths[:LISTED])
    found = [f"- {printable(path)} ({changes.get(path) or _size(root / path)})" for path in paths[:LISTED]]
    return found + ([f"- and {len(paths) - LISTED} more"] if len(paths) > LISTED else [])


def _changes(root: Path, paths: list[str]) -> dict[str, str]:
    """What git says of the paths that it knows: lines that were added and removed since the last commit."""
    words = (
        "diff",
        "--no-ext-diff",
        "--no-textconv",
        "--no-renames",
        "--numstat",
        "--relative",
        "-z",
        "HEAD",
    )
    found = {}
    for entry in ask(root, *words, "--", *paths):
        added, removed, path = entry.split("\t", 2)
        found[path] = "changed, not text" if added == "-" else f"+{added} -{removed} lines"
    return found


def _size(path: Path) -> str:
    try:
        # An agent may have put a pipe there, or something endless.
        with open_regular(path) as file:
            lines = file.read(COUNTED_BYTES).count(b"\n")
    except OSError:
        return "gone"
    return f"{lines} line{'' if lines == 1 else 's'}"
