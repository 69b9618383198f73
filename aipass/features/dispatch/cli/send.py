"""The verb `aipass send`: gives work to an agent, as a dispatch (job)."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aipass.errors import EXIT_FAILED, EXIT_REFUSED, AipassError, ConfigError, NoEngineError
from aipass.event import plain
from aipass.terminal.asking import ask, check_agent, is_agent
from aipass.terminal.output import poll, write_answer
from aipass.terminal.said import text_of
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.workspace.layout import Layout


@click.command("send")
@click.argument("agent")
@click.argument("text", required=False)
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), help="Read the text from a file; `-` is stdin."
)
@click.option("--subject", help="Subject; requests with the same subject are joined (deduplicated).")
@click.option("--key", help="Deduplication key (default: the subject, else the text).")
@click.option(
    "--priority", type=click.IntRange(-100, 100), default=None, help="Larger numbers run first (default: 0)."
)
@click.option(
    "--reply-to", metavar="ID", help="Continue the conversation of this dispatch of the same agent."
)
@click.option("--wake", is_flag=True, help="For agents: start the sending agent again with the answer.")
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for the answer and print it. Exit status: 0 succeeded, 3 blocked by a question, else 1.",
)
@click.option("--timeout", metavar="T", help="With --wait: wait at most this long (30s, 10m).")
def command(
    agent: str,
    text: str | None,
    file: Path | None,
    subject: str | None,
    key: str | None,
    priority: int | None,
    reply_to: str | None,
    wake: bool,
    wait: bool,
    timeout: str | None,
) -> int:
    """Give AGENT the work in TEXT; print the id of the dispatch (job).

    Without TEXT, the text is read from --file, or from stdin if stdin is not a terminal.
    """
    layout = find_root()
    # Before stdin is read: with a wrong name the user need not type or pipe the text first.
    check_agent(layout, agent)
    if wake and not is_agent():
        raise ConfigError("--wake is only for agents; use --wait")
    said = text_of(text, file)
    limit = None
    if timeout is not None and not wait:
        raise ConfigError("--timeout has no effect without --wait; add --wait, or remove --timeout")
    if timeout is not None:
        from aipass.text.units import parse_duration

        try:
            limit = parse_duration(timeout)
        except ValueError as exc:
            raise ConfigError(f"--timeout: {exc}") from exc
    row = ask(
        layout,
        "send",
        needs_engine=wait,
        agent=agent,
        text=said,
        subject=subject,
        key=key,
        priority=priority,
        reply_to=reply_to,
        wake=wake or None,
        # The engine must know of the wait: it refuses one that would close a cycle of waits (deadlock).
        waits=math.ceil(limit or 0) if wait else None,
    )
    if row is None:
        return 0
    click.echo(row["dispatch"], err=wait)  # with --wait, stdout has only the answer
    _tell_pause(layout, agent)
    return _wait(layout, row["dispatch"], limit) if wait else 0


def _tell_pause(layout: Layout, agent: str) -> None:
    """Print the pause that keeps the work from starting: without it the user would wait for an answer that cannot come."""
    from aipass.config.quick import agents
    from aipass.ledger import Ledger

    names = {"agent": agent, "driver": agents(layout).get(agent, {}).get("driver")}
    # On stderr, so that stdout has only the id of the dispatch.
    ledger = Ledger.read(layout.ledger)
    for pause in ledger.all("pauses"):
        if names.get(pause["kind"]) == pause["name"]:
            text = f"queued, but {pause['kind']} {pause['name']} is paused: {plain(pause['reason'])}"
            click.echo(f"{text}; `aipass resume {pause['name']}` ends the pause", err=True)
    ledger.close()


def _wait(layout: Layout, dispatch: int, limit: float | None) -> int:
    """Print the answer when the dispatch has ended; returns the exit status. Raises AipassError after `limit` seconds."""
    from aipass.ledger import Ledger
    from aipass.workspace import engine_lock

    ledger = Ledger.read(layout.ledger)
    state = "queued"

    def look() -> object:
        nonlocal state
        row = ledger.one("dispatch", {"id": dispatch})
        assert row is not None
        state = row["state"]
        # The answer is a file that is written after the state is recorded.
        done = state in {"succeeded", "failed", "cancelled"} and row["answer"] is not None
        # The row is read before the lock: a dispatch that ended just before the engine stopped is no error.
        if not done and state != "blocked" and engine_lock.holder(layout) is None:
            raise NoEngineError(
                f"the engine stopped; dispatch {dispatch} is {state} and continues with the next `aipass up`"
            )
        return row if done or state == "blocked" else None

    try:
        row = poll(look, limit, lambda: f"dispatch {dispatch} is {state} …")
    except KeyboardInterrupt:
        # Ctrl-C ends only the wait: users often expect that it cancels the dispatch.
        click.echo(
            f"dispatch {dispatch} continues; `aipass logs -f {dispatch}` shows it, `aipass cancel {dispatch}` ends it",
            err=True,
        )
        raise
    finally:
        ledger.close()
    if row is None:
        raise AipassError(f"dispatch {dispatch} is still {state}; `aipass show {dispatch}` shows details")
    if row["answer"] is None:
        click.echo(f"dispatch {dispatch} is blocked: {row['reason']}", err=True)
        return EXIT_REFUSED
    sys.stdout.flush()
    write_answer(layout.root / row["answer"])
    return 0 if row["state"] == "succeeded" else EXIT_FAILED
