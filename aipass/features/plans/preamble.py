"""The part of a phase's prompt beside its task: what was delivered before, what the phase may write, the last check's output."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

from aipass.event import plain, printable
from aipass.features.plans import check, model
from aipass.git.working import ask_of_files
from aipass.supervisor.held import open_regular

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aipass.ledger import Ledger, Row

#: Bytes of a file in which lines are counted.
COUNTED_BYTES = 1_000_000
#: The end of a failed check's output that the prompt contains.
TAIL_BYTES, TAIL_LINES = 8000, 40
#: Paths that the prompt lists for one phase; it gives the number of the rest.
LISTED = 50
#: Limits of the comparison by git: bytes of all files together, and seconds. The engine's thread waits for it, and
#: agents decide how large their files are.
COMPARED_BYTES, COMPARE_S = 2_000_000, 1.0


def preamble(
    ledger: Ledger, root: Path, plan_id: str, phase_id: str, owns: Sequence[str] | None = None
) -> str:
    """The prompt text for a phase; empty where the plan is unknown. `owns`: the agent's own patterns beside the phase's."""
    row = ledger.one("plan", {"id": plan_id})
    if row is None:
        return ""
    plan = model.taken_over(row["body"], row["file"])
    phase = plan.phase(phase_id)
    lines = [f"This is phase {phase.id} of plan {plan.id}, {plan.title}."]
    before = check.ancestors(plan)[phase_id]
    written = {
        done["id"]: (
            done["agent"],
            [row["path"] for row in ledger.all("written_of", {"plan": plan_id, "phase": done["id"]})],
        )
        for done in ledger.all("phases_of", {"plan": plan_id})
        if done["id"] in before
    }
    changes = _changes(root, [path for _, paths in written.values() for path in paths[:LISTED]])
    for name, (agent, paths) in written.items():
        lines.append(f"\nDelivered before by {agent} ({name}):")
        lines += _listed(root, paths, changes) or ["- nothing to read"]
    own = [*phase.owns, *(owns or ())]
    lines.append(f"\nYou may write: {', '.join(own) or 'nothing in this repository'}")
    if phase.delivers:
        lines.append("You deliver: " + ", ".join(one.path for one in phase.delivers))
    for command in phase.checks:
        lines.append(f"It is done when this passes: {command}")
    return "\n".join([*lines, *_last_check(ledger, root, row, phase_id)]) + "\n"


def _last_check(ledger: Ledger, root: Path, plan: Row, phase: str) -> list[str]:
    """The end of the last check's output as prompt lines, where that check failed; else nothing."""
    ref = f"{plan['id']}/{phase}"
    row = ledger.one("last_check", {"ref": ref, "since": plan["started"]})
    detail = {} if row is None else json.loads(row["detail"])
    if detail.get("state") != "failed":
        return []
    try:
        with open_regular(root / detail["output"]) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            said = file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    except OSError:
        said = []
    return ["\nThe last time it failed:", *(f"    {plain(line)}" for line in said)]


def _listed(root: Path, paths: list[str], changes: dict[str, str]) -> list[str]:
    found = [
        # Another agent chose the name. `printable` and `plain` remove line ends, so a name cannot add lines to this
        # prompt (prompt injection).
        f"- {plain(str(printable(path)))} ({changes.get(path) or _size(root / path)})"
        for path in paths[:LISTED]
    ]
    return found + ([f"- and {len(paths) - LISTED} more"] if len(paths) > LISTED else [])


def _changes(root: Path, paths: list[str]) -> dict[str, str]:
    """The added and removed lines since the last commit, per path that git knows. Leaves out large files."""
    left, small = COMPARED_BYTES, []
    for path in dict.fromkeys(paths):
        try:
            found = os.lstat(root / path)
        except OSError:
            size = 0
        else:
            size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        if size <= left:
            left -= size
            small.append(path)
    if not small:
        return {}
    # Without external programs: an agent can write a script that the configuration names for these.
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
    told = {}
    for entry in ask_of_files(root, *words, "--", *small, timeout=COMPARE_S):
        added, removed, path = entry.split("\t", 2)
        told[path] = "changed, not text" if added == "-" else f"+{added} -{removed} lines"
    return told


def _size(path: Path) -> str:
    try:
        # An agent may have made a named pipe there, on which a plain `open` would hang.
        with open_regular(path) as file:
            lines = file.read(COUNTED_BYTES).count(b"\n")
    except OSError:
        return "gone"
    return f"{lines} line{'' if lines == 1 else 's'}"
