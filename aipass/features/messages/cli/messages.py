"""The verb `aipass messages`: lists the messages to an agent or to the person."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from aipass.errors import ConfigError
from aipass.event import iso, plain
from aipass.features.messages.mailbox import HUMAN
from aipass.terminal.asking import check_agent, is_agent, leave
from aipass.terminal.output import json_option, lines_of, print_json, when
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.ledger import Row


@click.command("messages")
@click.argument("agent", required=False)
@click.option("--unread", is_flag=True, help="Show only unread messages.")
@click.option("--limit", type=click.IntRange(1), help="Show only this number of the newest messages.")
@json_option
def command(agent: str | None, unread: bool, limit: int | None, as_json: bool) -> int:
    """List the messages to AGENT (default: to you), oldest first.

    This marks messages to you as read; messages to others keep their state.
    """
    layout = find_root()
    # By the environment only, which a program inside a run can change: the engine checks the sender of `read` by its spool.
    me = os.environ.get("AIPASS_AGENT", HUMAN) if is_agent() else HUMAN
    whose = agent or me
    if whose not in {HUMAN, me}:
        check_agent(layout, whose)
    if not layout.ledger.exists():
        raise ConfigError("there is no ledger yet; `aipass up` creates it")
    from aipass.ledger import Ledger

    ledger = Ledger.read(layout.ledger)
    # SQLite: LIMIT -1 means no limit. With --unread the filter runs first, so the query must return all.
    most = limit or -1
    rows = list(reversed(ledger.all("messages_of", {"recipient": whose, "limit": -1 if unread else most})))
    if unread:
        rows = [row for row in rows if row["read"] is None][-most if most > 0 else 0 :]
    ledger.close()
    if as_json:
        print_json([_record(row) for row in rows])
    elif not rows:
        click.echo(
            f"no {'unread ' if unread else ''}messages to {'you' if whose == me else whose}{'' if unread else ' yet'}"
        )
    else:
        click.echo("\n\n".join(map(_shown, rows)))
    # Only what was printed, by id: a message that came since must stay unread.
    news = [row["id"] for row in rows if row["read"] is None]
    if whose == me and news:
        leave(layout, "read", ids=news)
    return 0


def _record(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "from": row["sender"],
        "to": row["recipient"],
        "subject": row["subject"],
        "text": row["text"],
        "reply_to": row["reply_to"],
        "files": json.loads(row["files"]),
        "sent": iso(row["sent"]),
        "delivered": iso(row["delivered"]),
        "read": iso(row["read"]),
        "dispatch": row["dispatch"],
    }


def _shown(row: Row) -> str:
    state = "read" if row["read"] else "delivered" if row["delivered"] else "queued"
    about = f", {plain(row['subject'])}" if row["subject"] else ""
    lines = [f"{row['id']}  {row['sender']} to {row['recipient']}{about} ({when(row['sent'])}, {state})"]
    lines += lines_of(row["text"])
    return "\n".join(lines + [f"    with {plain(path)}" for path in json.loads(row["files"])])
