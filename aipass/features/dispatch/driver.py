"""The driver protocol: an adapter that starts one command-line agent (CLI) and interprets its output."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from aipass.errors import PluginError
from aipass.features.dispatch import cli_hook as hook
from aipass.signature import check_signature
from aipass.supervisor.fence import prewrite
from aipass.supervisor.held import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aipass.config.model import Agent


@dataclass(frozen=True, slots=True)
class Job:
    """The input of a driver: the run that it starts, or whose end it judges."""

    run: int
    dispatch: int
    agent: str
    settings: Agent
    root: Path
    folder: Path
    prompt: str
    attempt: int
    #: A folder of this agent for the files of its CLI. It exists, and it is kept between runs.
    state: Path
    #: Whether fence or wall (the sandboxes) are around the run. Then the CLI needs no permission prompts, and a sandbox
    #: of its own cannot be nested inside.
    contained: bool = False
    #: The CLI's id of the conversation that this run continues, and the usage of that conversation so far.
    session: str | None = None
    used: Usage | None = None
    #: The TMPDIR of a contained run; it is removed with the run.
    tmp: Path | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """A file or folder that a CLI needs in `job.state`: a `source` of the user, such as its sign-in, or a `text` of ours.

    `name` is the path in `job.state`. A source that does not exist is skipped. By default a link leads to the source, and
    `writable` lets the run change its content. `copied` makes a copy instead, and a new one when the source is newer: for files
    that the CLI writes and that must not change for the user.
    """

    name: str
    source: str = ""
    copied: bool = False
    writable: bool = False
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """The command that starts the agent. `env` is added to the run's environment; `stdin`: the prompt is its standard input.

    `shares`: files that it needs in `job.state`. `state`: folders outside the repository that belong to this CLI alone; they are
    created if they do not exist. `writes`: other folders outside the repository that it must write.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    stdin: bool = True
    shares: tuple[Share, ...] = ()
    state: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exit:
    """The exit status, or the signal, of a run's first process, and the files with its output."""

    code: int | None
    signal: int | None
    stdout: Path
    stderr: Path


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage that a CLI reported for a run: numbers of tokens, and the cost in US dollars. None: not reported."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None


def sum_usage(*used: Usage | None) -> Usage | None:
    """The total usage of several runs; None if no run reported any."""
    told = [one for one in used if one is not None]
    if not told:
        return None

    def total(name: str) -> Any:  # noqa: ANN401 - int or float, as the field
        values = [value for one in told if (value := getattr(one, name)) is not None]
        return sum(values) if values else None

    return Usage(total("input_tokens"), total("output_tokens"), total("cost_usd"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A driver's verdict, one of `OUTCOME_STATES`; `reason` says why in words, for every state but `succeeded`.

    `afresh`: the CLI no longer knows the conversation; the dispatch starts again without it, which costs no attempt.
    `overload`: the model's server is overloaded; aipass retries soon, with backoff. `limit`: a rate limit or usage limit of the
    account is reached; no run of this driver starts before it ends, at `resets` (seconds since the epoch) if that is known.
    `blocked`: the agent waits for a person: it asked a question, or a permission that it needed was refused.

    `answer` is Markdown, or the path of a file with it. `session`: the CLI's id of the conversation. `usage`: of this run only.
    `fault`: a cause that does not depend on the task, such as no API key or an unknown model. An agent whose dispatches fail
    several times in a row with the same fault is paused.
    """

    state: str
    answer: str | Path = ""
    reason: str | None = None
    usage: Usage | None = None
    session: str | None = None
    resets: float | None = None
    fault: str | None = None


#: Upper bounds of a time (the year 5000) and of an amount. A larger value is a mistake, such as milliseconds for seconds.
LAST_MOMENT, MOST = 95_617_584_000, 10**15
#: A reason is shown to people in lists, so a longer one is cut.
REASON_CHARS = 1000
#: The valid states of an Outcome.
OUTCOME_STATES = ("succeeded", "failed", "overload", "limit", "afresh", "blocked")
#: A valid id of a conversation. It becomes an argument of the CLI's next command, so it must not look like an option.
SESSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")


@runtime_checkable
class Driver(Protocol):
    """The adapter of one CLI. All methods are called in the engine's thread and must not block.

    Optional attributes:

    - `program`: the program that `aipass init` and `aipass doctor` search for;
    - `accounts`: environment variables and files (`~/…`); any one of them signs the CLI in, for `aipass doctor`;
    - `habits`: paths below the root that the CLI always tries to write but does not need: a refusal is an event, and no notice;
    - `handoff`: "write" if a file is finished as soon as the CLI has written it, else "exit";
    - `briefed`: True if the CLI is a model that needs to know its name and how to answer, ask and send;
    - `session(stdout)`: the id of the conversation, from the output of an interrupted run, or None;
    - `readable(line)`: one line of its output for people, or None for a line without information for them.
    """

    name: str

    def command(self, job: Job) -> Command:
        """Return the command that starts the CLI for this job.

        An exception is a failed start with its message as the reason.
        """
        ...

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """Return the meaning of an ended run. Called only for a run that exited by itself, not for a stopped or lost one."""
        ...


def signed_in_by(accounts: Iterable[str], environ: Mapping[str, str]) -> str | None:
    """The first of a driver's `accounts` that exists: a variable of `environ`, or a file of the user; else None.

    No content is read: a key or token never enters the engine.
    """
    for one in accounts:
        if "/" in one and Path(one).expanduser().exists():
            return one
        if environ.get(one):
            return f"${one}"
    return None


def how_to_sign_in(driver: object) -> str:
    """The instruction for a person whose CLI is not signed in."""
    name = getattr(driver, "program", None) or getattr(driver, "name", "")
    variable = next((one for one in getattr(driver, "accounts", ()) if "/" not in one), None)
    return f"run `{name}` once and sign in" + (f", or set {variable}" if variable else "")


def prewrite_hook(dialect: str = "") -> str:
    """The shell command for a CLI's pre-write hook, which explains to the model why a file must not be written.

    The program reads the hook's JSON (with `tool_input`, or with `args`) and answers in the format of Claude Code and Codex, or
    with the dialect `gemini` in that of Gemini CLI. It only explains; the fence enforces.
    """
    # `-I -S`: the hook runs before every write of the model, so its start must be fast, and it imports nothing from the
    # tree.
    return shlex.join((sys.executable, "-I", "-S", prewrite.__file__, *((dialect,) if dialect else ())))


def mail_hook() -> str:
    """The shell command for a CLI's hook after a tool call, which gives the model its run's new messages.

    The program reads the hook's JSON (only `hook_event_name` matters). If there are new messages it answers
    `{"hookSpecificOutput": {"hookEventName": …, "additionalContext": …}}`, else nothing.
    """
    program = shlex.join((sys.executable, "-I", "-S", hook.__file__))
    # Python starts only if the mail folder has a file: without one, each tool call costs only the start of a shell.
    look = f'for one in "$AIPASS_MAIL"/*.md; do [ ! -e "$one" ] || exec {program}; done'
    return shlex.join(("sh", "-c", look))


def check_driver(driver: object) -> None:
    """Raise PluginError, with the plugin's own signature, unless `driver` has the members of a Driver."""
    if not isinstance(driver, Driver) or not isinstance(driver.name, str):
        raise PluginError(
            f"{driver!r} is not a driver: it needs `name`, `command(job)` and `outcome(job, end)`"
        )
    where = f"driver `{driver.name}`, "
    check_signature(driver.command, ("job",), where + "command")
    check_signature(driver.outcome, ("job", "end"), where + "outcome")
    for method, argument in (("session", "stdout"), ("readable", "line")):
        if hasattr(driver, method):
            check_signature(getattr(driver, method), (argument,), where + method)
    if getattr(driver, "handoff", "exit") not in {"write", "exit"}:
        raise PluginError(f'{where}handoff is {driver.handoff!r}; it is "write" or "exit"')  # type: ignore[attr-defined]
    if not isinstance(getattr(driver, "program", ""), str):
        raise PluginError(f"{where}program is {driver.program!r}; it is the name of a program")  # type: ignore[attr-defined]


def check_command(found: object) -> Command:
    """Return `found` if it is a valid Command; else raise PluginError that names the wrong field."""
    if not isinstance(found, Command):
        raise PluginError(f"command returned {found!r:.200}; it must return a Command")
    _check("Command.argv", found.argv, _is_words, "a tuple of words, of which the first is the program")
    if not found.argv:
        raise PluginError("Command.argv is empty; its first word is the program")
    is_env = isinstance(found.env, dict) and all(
        _is_word(word) for pair in found.env.items() for word in pair
    )
    _check("Command.env", found.env, lambda _: is_env, "names and values, both text")
    _check("Command.state", found.state, _is_words, "a tuple of paths")
    _check("Command.writes", found.writes, _is_words, "a tuple of paths")
    for share in found.shares:
        # A name with `..` would let a driver's plugin place files outside the agent's folder.
        _check("Command.shares", share, _is_share, "a Share whose name is a path inside `job.state`")
    return found


def check_outcome(found: object) -> Outcome:
    """Return `found`, with a shortened reason and fault, if it is a valid Outcome.

    Otherwise raises PluginError with the name of the wrong field.
    """
    if not isinstance(found, Outcome):
        raise PluginError(f"outcome returned {found!r:.200}; it must return an Outcome")
    _check(
        "Outcome.state", found.state, lambda one: one in OUTCOME_STATES, f"one of {', '.join(OUTCOME_STATES)}"
    )
    _check(
        "Outcome.answer",
        found.answer,
        lambda one: isinstance(one, (str, Path)),
        "text, or the Path of a file",
    )
    for name in ("reason", "fault"):
        _check(f"Outcome.{name}", getattr(found, name), _or_none(str), "text")
    _check("Outcome.session", found.session, _is_session, f"a name such as {SESSION.pattern} allows")
    _check("Outcome.resets", found.resets, _is_moment, "seconds since the epoch")
    _check("Outcome.usage", found.usage, _or_none(Usage), "a Usage")
    if found.usage is not None:
        for name in ("input_tokens", "output_tokens", "cost_usd"):
            _check(f"Usage.{name}", getattr(found.usage, name), _is_amount, "a number, not below 0")
    reason, fault = (None if one is None else one[:REASON_CHARS] for one in (found.reason, found.fault))
    return replace(found, reason=reason, fault=fault)


def _check(name: str, value: object, test: Callable[[Any], bool], wanted: str) -> None:
    if not test(value):
        raise PluginError(f"{name} is {value!r:.200}; it must be {wanted}")


def _or_none(*types: type) -> Callable[[object], bool]:
    # In Python a bool is an int; here it is a mistake.
    return lambda one: one is None or (isinstance(one, types) and not isinstance(one, bool))


def _is_share(found: object) -> bool:
    return isinstance(found, Share) and not {"", ".", ".."} & set(found.name.split("/"))


def _is_session(found: object) -> bool:
    return found is None or (isinstance(found, str) and SESSION.fullmatch(found) is not None)


def _is_moment(found: object) -> bool:
    return found is None or (_is_amount(found) and float(str(found)) < LAST_MOMENT)


def _is_amount(found: object) -> bool:
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    return found is None or (is_number and 0 <= found < MOST)  # type: ignore[operator]


def _is_word(found: object) -> bool:
    return isinstance(found, str) and "\0" not in found


def _is_words(found: object) -> bool:
    return isinstance(found, (tuple, list)) and all(_is_word(word) for word in found)


#: Only this much of an output's end is read: a run may have written gigabytes, and the engine's thread must not block.
TAIL_BYTES = 65_536


def says(path: Path, words: str) -> bool:
    """Whether the last 64 KB of an output file contain `words`."""
    return words in tail(path, lines=TAIL_BYTES, chars=TAIL_BYTES)


def tail(path: Path, lines: int = 3, chars: int = 400) -> str:
    """The last lines of an output file, joined into one line, as the text of a reason; empty if there is no output."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])[-chars:]
