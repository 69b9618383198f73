"""`aipass send`: give an agent work."""

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
@click.option("--subject", help="What it is about; requests with the same subject join.")
@click.option("--key", help="Join by this instead of the subject or the text.")
@click.option(
    "--priority", type=click.IntRange(-100, 100), default=None, help="Larger runs first; default 0."
)
@click.option(
    "--reply-to", metavar="ID", help="Go on with the conversation of this dispatch of the same agent."
)
@click.option("--wake", is_flag=True, help="For agents: be started again with the answer.")
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for the answer and print it; exit status 0 where it succeeded, 3 where it is blocked, else 1.",
)
@click.option("--timeout", metavar="T", help="With --wait: wait no longer than this (30s, 10m).")
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
    """Give AGENT the work in TEXT; prints the dispatch's id.

    Without TEXT it is read from --file, or from stdin where that is no terminal.
    """
    layout = find_root()
    check_agent(layout, agent)
    if wake and not is_agent():
        raise ConfigError("--wake is for agents, who are started again; use --wait")
    said = text_of(text, file)
    limit = None
    if timeout is not None and not wait:
        raise ConfigError("--timeout says how long --wait waits; add --wait, or leave it out")
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
        waits=math.ceil(limit or 0) if wait else None,
    )
    if row is None:
        return 0
    click.echo(row["dispatch"], err=wait)
    _tell_pause(layout, agent)
    return _wait(layout, row["dispatch"], limit) if wait else 0


def _tell_pause(layout: Layout, agent: str) -> None:
    """Say what keeps the work from starting, so that nobody waits for nothing."""
    from aipass.config.quick import agents
    from aipass.ledger import Ledger

    names = {"agent": agent, "driver": agents(layout).get(agent, {}).get("driver")}
    ledger = Ledger.read(layout.ledger)
    for pause in ledger.all("pauses"):
        if names.get(pause["kind"]) == pause["name"]:
            text = f"it waits: {pause['kind']} {pause['name']} is paused: {plain(pause['reason'])}"
            click.echo(f"{text}; `aipass resume {pause['name']}` ends that", err=True)
    ledger.close()


def _wait(layout: Layout, dispatch: int, limit: float | None) -> int:
    """Print the answer when it is there."""
    from aipass.ledger import Ledger
    from aipass.workspace import engine_lock

    ledger = Ledger.read(layout.ledger)
    state = "queued"

    def look() -> object:
        nonlocal state
        row = ledger.one("dispatch", {"id": dispatch})
        assert row is not None
        state = row["state"]
        done = state in {"succeeded", "failed", "cancelled"} and row["answer"] is not None
        if not done and state != "blocked" and engine_lock.holder(layout) is None:
            raise NoEngineError(
                f"the engine went away; dispatch {dispatch} is {state} and goes on with the next `aipass up`"
            )
        return row if done or state == "blocked" else None

    try:
        row = poll(look, limit, lambda: f"dispatch {dispatch} is {state} …")
    except KeyboardInterrupt:
        click.echo(
            f"dispatch {dispatch} goes on; `aipass logs -f {dispatch}`, `aipass cancel {dispatch}`", err=True
        )
        raise
    finally:
        ledger.close()
    if row is None:
        raise AipassError(f"dispatch {dispatch} is still {state}; `aipass show {dispatch}` tells more")
    if row["answer"] is None:
        click.echo(f"dispatch {dispatch} is blocked: {row['reason']}", err=True)
        return EXIT_REFUSED
    sys.stdout.flush()
    write_answer(layout.root / row["answer"])
    return 0 if row["state"] == "succeeded" else EXIT_FAILED
