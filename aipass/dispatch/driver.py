"""The driver protocol: how one command-line agent is started, and what its output means."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from aipass.errors import PluginError
from aipass.signature import check_signature
from aipass.supervisor.fence import prewrite
from aipass.supervisor.wire import open_regular

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.config import Agent


@dataclass(frozen=True, slots=True)
class Job:
    """What a driver is told about the run that it shall start."""

    run: int
    dispatch: int
    agent: str
    settings: Agent
    root: Path
    folder: Path
    prompt: str
    attempt: int
    #: A folder of this agent's own, for what its CLI keeps: it is there, and stays from run to run.
    state: Path
    #: Whether the fence stands around the run: then the CLI may be let do what it likes, and no sandbox of its own works.
    fenced: bool = False
    #: What an earlier attempt called its conversation, where it goes on with that.
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """Something that a CLI needs in `job.state`: of the user's, such as its sign-in, and left out where the user has none;
    or a file of ours, with `text`.

    `name`: where in `job.state`. It leads to the user's file, which the run may write with `writable`; with `copied` it
    is a copy, made anew when the user's is newer: for what a CLI writes as well, and must not change for the user.
    """

    name: str
    source: str = ""
    copied: bool = False
    writable: bool = False
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """How to start the agent. `env` is added to the run's environment; `stdin`: it reads the prompt there.

    `shares`: what of the user's it needs in `job.state`. `state`: folders outside the repository that are wholly this
    CLI's; they are made where they are missing. `writes`: other paths that it must write; `…*` is all that begins so.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    stdin: bool = True
    shares: tuple[Share, ...] = ()
    state: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exit:
    """How a run's first process ended, and where its output lies."""

    code: int | None
    signal: int | None
    stdout: Path
    stderr: Path


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run used, where the CLI tells. Tokens are counts, cost is in US dollars."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A driver's verdict, one of `OUTCOME_STATES`; `reason` says why in words, for every state but `succeeded`.

    `overload`: another attempt makes sense, soon. `limit`: a rate or usage limit of the account is reached, and nothing
    else makes sense with this driver before it ends, at `resets` (seconds since the epoch) where that is told. `blocked`:
    it waits for a person: it asked something, or was refused a permission that it needed.

    `answer` is Markdown, or a file that holds it. `session`: what the CLI calls the conversation; "" where that is lost.
    `fault`: what kept it from working at all, whatever the task: no key, no such model. An agent whose dispatches fail of
    the same fault again and again is paused.
    """

    state: str
    answer: str | Path = ""
    reason: str | None = None
    usage: Usage | None = None
    session: str | None = None
    resets: float | None = None
    fault: str | None = None


#: What an Outcome's state may be.
OUTCOME_STATES = ("succeeded", "failed", "overload", "limit", "blocked")


@runtime_checkable
class Driver(Protocol):
    """How one CLI is run. Both methods are called in the engine's thread and must not wait for anything.

    Besides it may have `program`, which `aipass doctor` looks for; `handoff`, "write" where what it has written it has
    finished; and `session(stdout)`, which finds the conversation's name in the output of a run that was cut off.
    """

    name: str

    def command(self, job: Job) -> Command:
        """How to start the CLI for this job. What it raises is a failed start, with the message as its reason."""
        ...

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """What the ended run means. Only called for a run that ended by itself."""
        ...


def prewrite_hook(dialect: str = "") -> str:
    """The command line, for a shell, of the program that tells a CLI's hook why a file may not be written.

    It reads what the CLI tells its hooks (JSON with `tool_input`, or with `args`) and answers in the words of Claude Code
    and Codex, or with the dialect `gemini` in that one's. It only explains: the fence enforces.
    """
    return shlex.join((sys.executable, "-I", "-S", prewrite.__file__, *((dialect,) if dialect else ())))


def check_driver(driver: object) -> None:
    """Raise PluginError, showing the plugin's own signature, unless `driver` has what a Driver has."""
    if not isinstance(driver, Driver) or not isinstance(driver.name, str):
        raise PluginError(f"{driver!r} is no driver: it needs `name`, `command(job)` and `outcome(job, end)`")
    check_signature(driver.command, ("job",), f"driver `{driver.name}`, command")
    check_signature(driver.outcome, ("job", "end"), f"driver `{driver.name}`, outcome")


def tail(path: Path, lines: int = 3, chars: int = 400) -> str:
    """The last words of an output file in one line, for a reason; empty where there are none."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, path.stat().st_size - 4096))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])[-chars:]
