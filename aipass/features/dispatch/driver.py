"""The driver protocol: how one command-line agent is started, and what its output means."""

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
    #: Whether fence or wall stand around the run: then the CLI may be let do what it likes, and no sandbox of its own works.
    contained: bool = False
    #: What an earlier attempt called its conversation, where it goes on with that; and what that has used so far.
    session: str | None = None
    used: Usage | None = None
    #: The run's own TMPDIR, where it is contained; it goes with the run.
    tmp: Path | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """Something that a CLI needs in `job.state`: of the user's, such as its sign-in, and left out where the user has none;
    or a file of ours, with `text`.

    `name`: where in `job.state`. It leads to the user's file, whose content the run may write with `writable`; with `copied` it
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
    CLI's; they are made where they are missing. `writes`: other folders that it must write.
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


def sum_usage(*used: Usage | None) -> Usage | None:
    """What several runs used together; None where none of them tells."""
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

    `afresh`: the conversation that it should go on with is lost; it begins anew without, which costs no attempt.

    `overload`: another attempt makes sense, soon. `limit`: a rate or usage limit of the account is reached, and nothing
    else makes sense with this driver before it ends, at `resets` (seconds since the epoch) where that is told. `blocked`:
    it waits for a person: it asked something, or was refused a permission that it needed.

    `answer` is Markdown, or a file that holds it. `session`: what the CLI calls the conversation. `usage` is this run's.
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


#: Later than any limit ends (the year 5000), and more than anybody uses: what is beyond is a mistake, such as milliseconds.
LAST_MOMENT, MOST = 95_617_584_000, 10**15
#: A reason is read by people, in lists.
REASON_CHARS = 1000
#: What an Outcome's state may be.
OUTCOME_STATES = ("succeeded", "failed", "overload", "limit", "afresh", "blocked")
#: What a CLI may call a conversation: it comes back as one of its arguments.
SESSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")


@runtime_checkable
class Driver(Protocol):
    """How one CLI is run. All methods are called in the engine's thread and must not wait for anything.

    Besides it may have:

    - `program`: what `aipass init` and `aipass doctor` look for;
    - `accounts`: names of environment variables, and files (`~/…`), of which any signs it in, for `aipass doctor`;
    - `habits`: paths below the root that the CLI always tries to write and does without: their refusals are logged, and no notice is given;
    - `handoff`: "write" where what it has written it has finished, else "exit";
    - `briefed`: True where it is a model that shall be told who it is, and how to answer, ask and send;
    - `session(stdout)`: the conversation's name, from the output of a run that was cut off, or None;
    - `readable(line)`: one line of its output for eyes, or None for one that says nothing to them.
    """

    name: str

    def command(self, job: Job) -> Command:
        """How to start the CLI for this job. What it raises is a failed start, with the message as its reason."""
        ...

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """What the ended run means. Only called for a run that ended by itself."""
        ...


def signed_in_by(accounts: Iterable[str], environ: Mapping[str, str]) -> str | None:
    """The first of a driver's `accounts` that is there: a variable of `environ`, or a file of the user's. None is read."""
    for one in accounts:
        if "/" in one and Path(one).expanduser().exists():
            return one
        if environ.get(one):
            return f"${one}"
    return None


def how_to_sign_in(driver: object) -> str:
    """What a person does where nothing signs a CLI in."""
    name = getattr(driver, "program", None) or getattr(driver, "name", "")
    variable = next((one for one in getattr(driver, "accounts", ()) if "/" not in one), None)
    return f"run `{name}` once and sign in" + (f", or set {variable}" if variable else "")


def prewrite_hook(dialect: str = "") -> str:
    """The command line, for a shell, of the program that tells a CLI's hook why a file may not be written.

    It reads what the CLI tells its hooks (JSON with `tool_input`, or with `args`) and answers in the words of Claude Code
    and Codex, or with the dialect `gemini` in that one's. It only explains: the fence enforces.
    """
    return shlex.join((sys.executable, "-I", "-S", prewrite.__file__, *((dialect,) if dialect else ())))


def mail_hook() -> str:
    """The command line, for a shell, of the program that hands a model its run's new messages after a tool call.

    It reads what the CLI tells its hooks (JSON, of which only `hook_event_name` matters) and, where there is something to
    tell, answers `{"hookSpecificOutput": {"hookEventName": …, "additionalContext": …}}`. Where no message has ever come it costs
    the start of a shell.
    """
    program = shlex.join((sys.executable, "-I", "-S", hook.__file__))
    look = f'for one in "$AIPASS_MAIL"/*.md; do [ ! -e "$one" ] || exec {program}; done'
    return shlex.join(("sh", "-c", look))


def check_driver(driver: object) -> None:
    """Raise PluginError, showing the plugin's own signature, unless `driver` has what a Driver has."""
    if not isinstance(driver, Driver) or not isinstance(driver.name, str):
        raise PluginError(f"{driver!r} is no driver: it needs `name`, `command(job)` and `outcome(job, end)`")
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
    """`found`, if it is a sound Command; raises PluginError that names the field."""
    if not isinstance(found, Command):
        raise PluginError(f"command returned {found!r:.200}; a Command is wanted")
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
        _check("Command.shares", share, _is_share, "a Share whose name lies in `job.state`")
    return found


def check_outcome(found: object) -> Outcome:
    """`found` with its words cut to what people read, if it is a sound Outcome; raises PluginError that names the field."""
    if not isinstance(found, Outcome):
        raise PluginError(f"outcome returned {found!r:.200}; an Outcome is wanted")
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


#: How far back the last words of an output are looked for.
TAIL_BYTES = 65_536


def says(path: Path, words: str) -> bool:
    """Whether the last 64 KB of an output file say this somewhere."""
    return words in tail(path, lines=TAIL_BYTES, chars=TAIL_BYTES)


def tail(path: Path, lines: int = 3, chars: int = 400) -> str:
    """The last words of an output file in one line, for a reason; empty where there are none."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])[-chars:]
