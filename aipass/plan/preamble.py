"""What a phase's prompt says besides its task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aipass.event import printable
from aipass.plan import check, model
from aipass.supervisor.wire import open_regular

if TYPE_CHECKING:
    import os

    from aipass.ledger import Ledger

#: Lines beyond are not counted.
COUNTED_BYTES = 1_000_000


def preamble(ledger: Ledger, root: os.PathLike[str], plan_id: str, phase_id: str) -> str:
    """What a phase's prompt says besides its task: what was delivered before, by whom, and what is its own."""
    row = ledger.one("plan", {"id": plan_id})
    if row is None:
        return ""
    plan = model.parse(row["body"], row["file"])
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


def _listed(root: os.PathLike[str], paths: list[str]) -> list[str]:
    found = []
    for path in paths:
        try:
            # An agent may have put a pipe there, or something endless.
            with open_regular(Path(root, path)) as file:
                lines = file.read(COUNTED_BYTES).count(b"\n")
            found.append(f"- {printable(path)} ({lines} lines)")
        except OSError:
            found.append(f"- {printable(path)} (gone)")
    return found
