"""How verbs ask for something: a request in the spool, and the engine's reply in the ledger."""

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

# An engine answers within milliseconds; one that is in a storm, or starting, within seconds.
REPLY_WAIT_S = 60.0


#: What the engine answers: `exit`, `message` and, where there is one, `dispatch`.
Reply = dict[str, Any]


class ReplyError(AipassError):
    """The engine's refusal, with the exit code that it chose."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_agent() -> bool:
    """Whether this command was started by a run."""
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
    """Leave a request and wait for the engine's reply; None where no engine runs, with the request's id said.

    `patience_s` None: as long as an engine runs. `label` is shown on a terminal meanwhile. Raises NoEngineError where one is needed, and ReplyError where it was refused.
    """
    running = engine_lock.holder(layout) is not None
    if not running and (needs_engine or is_agent()):
        raise NoEngineError("no engine runs here; start one with `aipass up`")
    name = leave(layout, verb, **fields)
    if not running:
        click.echo(name)
        click.echo("no engine runs here; the request waits for `aipass up`", err=True)
        return None
    return reply(layout, name, patience_s, label)


def leave(layout: Layout, verb: str, **fields: Any) -> str:  # noqa: ANN401 - a request's fields
    """Leave a request, and do not wait for what comes of it; returns its id. Raises ConfigError where that cannot be."""
    if is_agent() and not os.environ.get("AIPASS_SPOOL"):
        raise ConfigError(
            "AIPASS_RUN is set and AIPASS_SPOOL is not; unset AIPASS_RUN, or leave both as aipass set them"
        )
    spool = Path(os.environ["AIPASS_SPOOL"]) if is_agent() else layout.human_spool()
    try:
        if not is_agent():
            spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        return request.write(spool, verb, **fields)
    except OSError as exc:
        hint = "is the disk full, or the folder another user's?"
        if exc.errno in {errno.EACCES, errno.EPERM} and not is_agent():
            hint = "what an agent starts must keep its AIPASS_ variables; else, is the folder another user's?"
        raise ConfigError(f"{spool}: the request cannot be left there ({exc.strerror}); {hint}") from exc


def reply(
    layout: Layout,
    name: str,
    patience_s: float | None = REPLY_WAIT_S,
    label: Callable[[], str] | None = None,
) -> Reply:
    """Wait for the engine's reply to a request. Raises ReplyError where it was refused, NoEngineError where the engine went."""
    from aipass.ledger import Ledger

    ledger: Ledger | None = None
    run = int(os.environ["AIPASS_RUN"]) if is_agent() and os.environ["AIPASS_RUN"].isdecimal() else None

    def look() -> Row | bool | None:
        nonlocal ledger
        if ledger is None:
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
            raise NoEngineError(f"the engine went away; the request {name} waits for `aipass up`")
        raise AipassError(
            f"the engine has not answered {name} within {REPLY_WAIT_S:.0f} seconds; `aipass status` and .aipass/log.jsonl may say why"
        )
    said = inert(row["message"] or "")  # it may quote what agents call things
    if row["exit"]:
        raise ReplyError(said, row["exit"])
    return {**dict(row), "message": said}


def known_agents(layout: Layout) -> dict[str, Any]:
    """The configured agents, without validating all of aipass.toml."""
    from aipass.config.quick import agents

    return agents(layout)


def check_agent(layout: Layout, name: str) -> None:
    """Raise ConfigError where there is no such agent, naming those that there are."""
    from aipass.config.quick import in_force

    agents = known_agents(layout)
    if name not in agents and name in (in_force(layout) or {}):
        return  # the file says otherwise, and is not in force
    if name not in agents:
        import difflib

        near = difflib.get_close_matches(name, agents, 1)
        hint = (
            f"; did you mean `{near[0]}`?" if near else f"; the agents are: {', '.join(agents) or 'none yet'}"
        )
        raise ConfigError(f"there is no agent `{name}`{hint}")
