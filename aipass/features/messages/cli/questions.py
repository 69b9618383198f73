"""The verb `aipass questions`: lists open questions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from aipass.event import iso, plain
from aipass.features.messages.status import state_of
from aipass.terminal.output import json_option, lines_of, print_json, when
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.ledger import Row


@click.command("questions")
@click.option(
    "--all", "everything", is_flag=True, help="Show also answered and closed questions; --json always does."
)
@json_option
def command(everything: bool, as_json: bool) -> int:
    """List open questions, oldest first; `aipass answer ID "…"` answers one."""
    from aipass.ledger import Ledger

    ledger = Ledger.snapshot(find_root().ledger)
    # A script gets closed questions too: it can wait for the answer of one by its id.
    rows = ledger.all("questions", {"all": int(everything or as_json)})
    states = {row["id"]: state_of(ledger, row) for row in rows}
    ledger.close()
    if as_json:
        print_json([record(row) for row in rows])
    elif not rows:
        click.echo("no open questions" if not everything else "no questions yet")
    else:
        click.echo("\n\n".join(_shown(row, states[row["id"]]) for row in rows))
    return 0


def record(row: Row) -> dict[str, Any]:
    """Return a question as `--json` prints it."""
    return {
        "id": row["id"],
        "from": row["sender"],
        "to": row["recipient"],
        "text": row["text"],
        "options": json.loads(row["options"]),
        "dispatch": row["dispatch"],
        "asked": iso(row["sent"]),
        "answered": iso(row["answered"]),
        "answer": row["answer"],
        "answerer": row["answerer"],
        "closed": row["closed"],
    }


def _shown(row: Row, state: str | None) -> str:
    whose = f", dispatch {row['dispatch']} is {state}" if state else ""
    lines = [f"{row['id']}  {row['sender']} asks {row['recipient']} ({when(row['sent'])}{whose})"]
    lines += lines_of(row["text"])
    # Texts of agents: indented and without control characters, so that no line looks like one of ours.
    lines += [f"    - {plain(option)}" for option in json.loads(row["options"])]
    if row["answered"] is not None:
        lines += [
            f"    {row['answerer']} answered:",
            *lines_of(row["answer"], "    > "),
        ]
    elif row["closed"] is not None:
        lines.append(f"    closed: {plain(row['closed'])}")
    return "\n".join(lines)
