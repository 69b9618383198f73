"""`aipass ask`: ask the person, or another agent, something that must be answered."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from aipass.errors import ConfigError, NoEngineError, RefusedError
from aipass.event import inert
from aipass.features.messages.mailbox import HUMAN
from aipass.terminal.asking import ask, check_agent, is_agent, leave
from aipass.terminal.output import poll
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.ledger import Row
    from aipass.workspace.layout import Layout


@click.command("ask")
@click.argument("to", metavar="human|AGENT")
@click.argument("text")
@click.argument("more", nargs=-1, metavar="")
@click.option("--options", multiple=True, metavar="A,B", help="What may be answered; may be given again.")
@click.option(
    "--wait",
    "patience",
    is_flag=False,
    flag_value="",
    metavar="[T]",
    help="Wait for the answer and print it, for so long (10m) or for ever; exit status 3 where there is none in time.",
)
def command(to: str, text: str, more: tuple[str, ...], options: tuple[str, ...], patience: str | None) -> int:
    """Ask a question; prints its id.

    An agent need not wait: it ends, its dispatch is blocked, and goes on in the same conversation with the answer.
    """
    if more:
        raise ConfigError(
            f"`{more[0]}` is one word too many: the question stands in quotes, and the options in one word: --options a,b"
        )
    layout = find_root()
    if to != HUMAN:
        check_agent(layout, to)
    limit = _limit(patience)
    choices = [part.strip() for option in options for part in option.split(",") if part.strip()]
    row = ask(
        layout,
        "ask",
        needs_engine=patience is not None,
        to=to,
        text=text,
        options=choices or None,
        waits=None if patience is None else math.ceil(limit or 0),
    )
    if row is None:
        return 0
    number = int(row["message"])
    click.echo(number, err=patience is not None)
    return 0 if patience is None else _wait(layout, number, limit)


def _limit(patience: str | None) -> float | None:
    if not patience:
        return None
    from aipass.text.units import parse_duration

    try:
        return parse_duration(patience)
    except ValueError as exc:
        raise ConfigError(f"--wait: {exc}") from exc


def _wait(layout: Layout, number: int, limit: float | None) -> int:
    """Print the answer when it is there."""
    from aipass.ledger import Ledger
    from aipass.workspace import engine_lock

    ledger = Ledger.read(layout.ledger)

    def look() -> Row | None:
        row = ledger.one("message", {"id": number})
        if row is not None and (row["answered"] is not None or row["closed"] is not None):
            return row
        if engine_lock.holder(layout) is None:
            raise NoEngineError(f"the engine went away; question {number} stays open")
        return None

    replies: list[int] = []
    try:
        row = poll(look, limit, lambda: f"question {number} waits for an answer …")
        replies = [one["id"] for one in ledger.all("replies", {"id": number})]
    finally:
        ledger.close()
    if row is None:
        hint = "; end your work: it goes on with the answer" if is_agent() else ""
        raise RefusedError(f"question {number} has no answer yet{hint}")
    if row["answered"] is None:
        raise RefusedError(f"question {number} is closed: {row['closed']}")
    click.echo(inert(row["answer"]))
    if replies:
        leave(layout, "read", ids=replies)  # it came as a message as well
    return 0
