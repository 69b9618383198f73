"""Requests of verbs to the engine: the request is a file in the spool (request queue), the reply a row in the ledger."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aipass.core import requests as request
from aipass.errors import AipassError, ConfigError, NoEngineError
from aipass.event import inert
from aipass.terminal.output import poll
from aipass.workspace import engine_lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.ledger import Row
    from aipass.workspace.layout import Layout

#: An engine replies within milliseconds; during a storm of events, or while it starts, within seconds.
REPLY_WAIT_S = 60.0


#: The reply of the engine: `exit`, `message`, and `dispatch` if the request made one.
Reply = dict[str, Any]


class ReplyError(AipassError):
    """The engine's refusal, with the exit code that it chose."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_agent() -> bool:
    """Whether this process belongs to a run of an agent, by its environment."""
    # Good enough for texts and early refusals. The rights follow from the spool's folder, which an agent cannot choose.
    return "AIPASS_RUN" in os.environ


def ask(
    layout: Layout,
    verb: str,
    *,
    needs_engine: bool = False,
    patience_s: float | None = REPLY_WAIT_S,
    label: Callable[[], str] | None = None,
    **fields: Any,  # noqa: ANN401 - a request's fields
) -> Reply | None:
    """Put a request into the spool, wait for the engine's reply and return it.

    Without an engine, prints the request's id and returns None. `patience_s` None: waits as long as an engine runs. `label` is shown on
    a terminal while it waits. Raises NoEngineError if `needs_engine` and none runs, ReplyError if the engine refuses the request.
    """
    running = engine_lock.holder(layout) is not None
    if not running and (needs_engine or is_agent()):
        raise NoEngineError("the engine is not running; start it with `aipass up`")
    name = leave(layout, verb, **fields)
    if not running:
        # The id alone on stdout, so that a script can read it as it reads a dispatch's id.
        click.echo(name)
        click.echo(
            "the engine is not running; the request is queued, start the engine with `aipass up`", err=True
        )
        return None
    return reply(layout, name, patience_s, label)


def leave(layout: Layout, verb: str, **fields: Any) -> str:  # noqa: ANN401 - a request's fields
    """Put a request into the spool and return its id without a wait for the reply. Durable when it returns. Raises ConfigError."""
    if is_agent() and not os.environ.get("AIPASS_SPOOL"):
        raise ConfigError(
            "AIPASS_RUN is set and AIPASS_SPOOL is not; unset AIPASS_RUN, or leave both as aipass set them"
        )
    # The folder decides who asks: each run has its own spool, and the sandbox lets it write no other.
    spool = Path(os.environ["AIPASS_SPOOL"]) if is_agent() else layout.human_spool()
    try:
        if not is_agent():
            spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        return request.write(spool, verb, **fields)
    except OSError as exc:
        hint = "is the disk full, or does the folder belong to another user?"
        if exc.errno in {errno.EACCES, errno.EPERM} and not is_agent():
            # Likely a program inside a run that has cleared its environment, so that it seems to be the person.
            hint = (
                "inside a run, keep the AIPASS_ variables; otherwise, does the folder belong to another user?"
            )
        raise ConfigError(f"{spool}: the request cannot be written there ({exc.strerror}); {hint}") from exc


def reply(
    layout: Layout,
    name: str,
    patience_s: float | None = REPLY_WAIT_S,
    label: Callable[[], str] | None = None,
) -> Reply:
    """Wait for the engine's reply to a request and return it.

    Raises ReplyError if the engine refused the request, NoEngineError if the engine stopped, AipassError after `patience_s`.
    """
    from aipass.ledger import Ledger

    ledger: Ledger | None = None
    run = int(os.environ["AIPASS_RUN"]) if is_agent() and os.environ["AIPASS_RUN"].isdecimal() else None

    def look() -> Row | bool | None:
        nonlocal ledger
        if ledger is None:
            # The first engine of a root holds its lock before it has made the ledger.
            if not layout.ledger.exists():
                return None
            ledger = Ledger.read(layout.ledger)
        row = ledger.one("request", {"id": request.known_as(name, run)})
        if row is not None and row["exit"] is not None:
            return row
        if patience_s is None and engine_lock.holder(layout) is None:
            return False
        return None

    row = poll(look, patience_s, label) or None
    if ledger is not None:
        ledger.close()
    if row is None:
        if engine_lock.holder(layout) is None:
            raise NoEngineError(f"the engine stopped; the request {name} is queued for the next `aipass up`")
        raise AipassError(
            f"the engine did not reply to {name} within {patience_s or 0:.0f} seconds; `aipass status` and .aipass/log.jsonl may say why"
        )
    said = inert(row["message"] or "")  # it may quote names and texts of agents
    if row["exit"]:
        raise ReplyError(said, row["exit"])
    return {**dict(row), "message": said}


def known_agents(layout: Layout) -> dict[str, Any]:
    """Return the configured agents by name, without a validation of aipass.toml. Raises ConfigError if it cannot be read."""
    from aipass.config.quick import agents

    return agents(layout)


def check_agent(layout: Layout, name: str) -> None:
    """Raise ConfigError if there is no such agent; the message suggests a near name or lists the agents."""
    from aipass.config.quick import in_force

    agents = known_agents(layout)
    if name not in agents and name in (in_force(layout) or {}):
        return  # removed from the file, but the running engine has not reloaded it yet
    if name not in agents:
        import difflib

        near = difflib.get_close_matches(name, agents, 1)
        hint = (
            f"; did you mean `{near[0]}`?" if near else f"; the agents are: {', '.join(agents) or 'none yet'}"
        )
        raise ConfigError(f"there is no agent `{name}`{hint}")
