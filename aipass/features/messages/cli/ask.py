"""The verb `aipass ask`: asks the person or an agent a question that needs an answer."""

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
# Takes the words of a question without quotes, for an error that names the remedy; click's own would not.
@click.argument("more", nargs=-1, metavar="")
@click.option("--options", multiple=True, metavar="A,B", help="Allowed answers; repeatable.")
@click.option(
    "--wait",
    "patience",
    is_flag=False,
    flag_value="",
    metavar="[T]",
    help="Wait for the answer and print it, optionally with a timeout (10m). Exit status 3 on timeout.",
)
def command(to: str, text: str, more: tuple[str, ...], options: tuple[str, ...], patience: str | None) -> int:
    """Ask a question; print its id.

    An agent need not wait: it ends its run, its dispatch is blocked, and the answer continues the same conversation.
    """
    if more:
        raise ConfigError(
            f"unexpected argument `{more[0]}`; put the question in quotes, and the options into one word: --options a,b"
        )
    layout = find_root()
    if to != HUMAN:
        check_agent(layout, to)
    # Before the request: after it, a wrong duration would leave a question that the user believes not asked.
    limit = _limit(patience)
    choices = [part.strip() for option in options for part in option.split(",") if part.strip()]
    row = ask(
        layout,
        "ask",
        needs_engine=patience is not None,
        to=to,
        text=text,
        options=choices or None,
        # The engine must know of the wait: it refuses one that would close a cycle of waits (deadlock).
        waits=None if patience is None else math.ceil(limit or 0),
    )
    if row is None:
        return 0
    number = int(row["message"])
    click.echo(number, err=patience is not None)  # with --wait, stdout has only the answer
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
    """Print the answer when it comes. Raises RefusedError on timeout or if the question was closed, NoEngineError if the engine stops."""
    from aipass.ledger import Ledger
    from aipass.workspace import engine_lock

    ledger = Ledger.read(layout.ledger)

    # The answer is looked for before the lock: an engine that answers and then stops is no error.
    def look() -> Row | None:
        row = ledger.one("message", {"id": number})
        if row is not None and (row["answered"] is not None or row["closed"] is not None):
            return row
        if engine_lock.holder(layout) is None:
            raise NoEngineError(f"the engine stopped; question {number} stays open")
        return None

    replies: list[int] = []
    try:
        row = poll(look, limit, lambda: f"question {number} waits for an answer …")
        # Read while the ledger is open; they are marked as read only after the answer was printed.
        replies = [one["id"] for one in ledger.all("replies", {"id": number})]
    finally:
        ledger.close()
    if row is None:
        hint = "; end your run: the answer starts you again" if is_agent() else ""
        raise RefusedError(f"question {number} has no answer yet{hint}")
    if row["answered"] is None:
        raise RefusedError(f"question {number} is closed: {row['closed']}")
    click.echo(inert(row["answer"]))
    if replies:
        leave(layout, "read", ids=replies)  # the answer is a message too, and must not come a second time
    return 0
