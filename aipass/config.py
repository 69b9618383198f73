"""aipass.toml as a validated, frozen model; every error says file, line, field, what was found and what would be right."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from aipass import patterns
from aipass.config_quick import not_toml
from aipass.errors import ConfigError
from aipass.event import plain
from aipass.layout import CONFIG_NAME
from aipass.template import check_template
from aipass.units import parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pydantic_core import ErrorDetails

#: A configuration larger than this is a mistake (a log, a database) and is not read.
MAX_CONFIG_BYTES = 4_000_000
#: The forge that is none: PRs are kept here only.
LOCAL = "local"
RESERVED_NAMES = ("human", "all", "aipass")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=str | Literal[0])]
Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=str | int)]
Pattern = Annotated[str, AfterValidator(patterns.check)]
Layer = Literal["auto", "require", "off"]


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(
            "a name is letters, digits, `_`, `-` and `.`, begins with a letter or digit, and has at most 64"
        )
    if value.lower() in RESERVED_NAMES:
        raise ValueError(f"`{value}` is a reserved name; choose another")
    return value


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a program's arguments and environment cannot hold a NUL")
    return value


def _home(value: str) -> str:
    parts = [part for part in value.split("/") if part not in {"", "."}]
    inside = not value.startswith("/") and parts and ".." not in parts
    if (
        not inside
        or ".git" in parts
        or (parts[0] == ".aipass" and (parts[1:2] != ["agents"] or len(parts) != 3))
    ):
        raise ValueError(
            f"`{value}` cannot be a home; name a folder of the repository by its path from the root, such as `services/api`"
        )
    return "/".join(parts)


Name = Annotated[str, AfterValidator(_name)]
Word = Annotated[str, AfterValidator(_no_nul)]
Home = Annotated[Word, AfterValidator(_home)]


class Model(BaseModel):
    """Base of all parts of the configuration: frozen, no unknown keys, no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FromEnv(Model):
    """A value that is read from the engine's environment when a run starts; never stored."""

    from_env: Word


class Agent(Model):
    """`[agents.<name>]`: a configured identity."""

    driver: Annotated[str, Field(min_length=1)] = Field(
        description="How its CLI is run: command, claude, codex, gemini, opencode, llm, or a plugin's"
    )
    home: Home | None = Field(None, description="Its own folder; default `.aipass/agents/<name>`")
    owns: tuple[Pattern, ...] | None = Field(
        None,
        description="What it may write outside any plan; left out: all that nobody else owns; empty: nothing",
        strict=False,
    )
    model: Word | None = Field(None, description="Passed to the driver")
    role: Word | None = Field(
        None, description="What it is here, in a word or two; in its passport and its brief"
    )
    purpose: Word | None = Field(
        None, description="What it is for, in a sentence; in its passport and its brief"
    )
    brief: Word | None = Field(
        None,
        description="A file of the repository that says what the agent is told about itself; default our own words for models; empty: nothing",
    )
    args: tuple[Word, ...] = Field((), description="Appended to the CLI's own arguments", strict=False)
    command: tuple[Word, ...] | None = Field(
        None, description='The program and its arguments; `driver = "command"` only', strict=False
    )
    env: dict[Word, Word | FromEnv] = Field(
        default_factory=dict,
        description="Added to the run's environment; `NAME = { from_env = \"OTHER\" }` takes a value of the engine's and keeps it nowhere",
    )
    timeout: Duration = Field(3600.0, description="Ends a run that takes longer")
    stall: Duration = Field(600.0, description="A run silent for this long is told; it ends nothing")
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        2, description="New attempts after lost runs, failed starts and overload"
    )
    on_limit: Literal["wait", "fail"] = Field(
        "wait", description="What a dispatch does when its CLI has reached a rate or usage limit"
    )
    max_wait: Duration = Field(6 * 3600.0, description="How long a dispatch waits for the end of limits")
    linger: bool = Field(False, description="Let processes live on that the agent leaves behind")

    @model_validator(mode="after")
    def _command_fits_driver(self) -> Agent:
        if self.driver == "command" and not self.command:
            raise ValueError('`driver = "command"` needs a command; add `command = ["python3", "agent.py"]`')
        if self.driver != "command" and self.command is not None:
            if difflib.get_close_matches(self.driver, ["command"], 1, 0.6):
                raise ValueError(f'there is no driver "{self.driver}"; did you mean `command`?')
            raise ValueError(
                f'`command` is for `driver = "command"` only; driver "{self.driver}" takes `args`'
            )
        if self.command and not self.command[0]:
            raise ValueError("the command's first word is empty; it must be a program")
        return self


class Rule(Model):
    """`[[on]]`: an event starts an agent, without any Python."""

    name: Name = Field(description="The rule's own name")
    event: str | None = Field(None, description="Kind of event")
    cron: str | None = Field(None, description="Five cron fields, in local time, instead of `event`")
    branch: str | None = Field(None, description="The branch that the event must be of")
    paths: tuple[Pattern, ...] = Field(
        (), description="Patterns of which the event's path must match", strict=False
    )
    where: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Fields of the event that must be so"
    )
    dispatch: str = Field(description="The agent that is started")
    task: Annotated[str, Field(min_length=1), AfterValidator(check_template)] = Field(
        description="Its prompt; a template"
    )
    priority: Annotated[int, Field(ge=-100, le=100)] = Field(0, description="Larger runs first")
    debounce: Duration = Field(0.0, description="Firings within it collapse into one, of the last event")
    self: bool = Field(False, description="Fire on what this rule's own agent did as well")
    git: bool = Field(False, description="Fire on file events that git itself made as well")
    rebased: bool = Field(False, description="Fire on each commit that a rebase has made as well")
    per_hour: Annotated[int, Field(ge=1)] = Field(30, description="Pauses itself beyond this")

    @model_validator(mode="after")
    def _event_or_cron(self) -> Rule:
        if (self.event is None) == (self.cron is None):
            raise ValueError("a rule has either `event` or `cron`, and exactly one of them")
        if self.cron is not None:
            from datetime import datetime

            try:
                CronSim(self.cron, datetime(2000, 1, 1))
            except CronSimError as exc:
                raise ValueError(
                    f'"{self.cron}" is not a cron expression ({exc}); write "0 9 * * 1-5" or the like'
                ) from exc
        return self


class Limits(Model):
    """`[limits]`: how much may happen."""

    concurrency: Annotated[int, Field(ge=1)] = Field(
        default_factory=lambda: max(4, 2 * (os.cpu_count() or 1)),
        description="Runs at once in this repository; default max(4, 2 x cores)",
    )
    per_driver: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="Runs at once of one driver"
    )
    hops: Annotated[int, Field(ge=0)] = Field(
        5, description="How long a chain of agents waking agents may get"
    )
    runs_per_hour: Annotated[int, Field(ge=1)] = Field(60, description="Of each agent")
    keep: Duration = Field(
        90 * 86400.0, description="Run folders and events older than this are pruned; dispatches never"
    )
    keep_events: Annotated[int, Field(ge=1000)] = Field(
        2_000_000, description="Events beyond this many are pruned, oldest first"
    )


class Watch(Model):
    """`[watch]`: what of the tree is watched."""

    ignore: tuple[Pattern, ...] = Field(
        (), description="Added to .gitignore and the built-in list", strict=False
    )


class Inbox(Model):
    """`[inbox]`: what may be handed in."""

    max_size: Size = Field(20_000_000, description="Larger files are rejected")


class Pulling(Model):
    """`[pr]`: how PRs are opened and merged."""

    checks: tuple[Word, ...] = Field(
        (), description="Commands that must pass on a checkout of what a merge would come to", strict=False
    )
    check_timeout: Duration = Field(3600.0, description="Ends checks that take longer")
    method: Literal["merge", "squash", "ff"] = Field(
        "merge", description="A merge commit, one commit, or the PR's own where nothing came between"
    )
    secrets: bool = Field(True, description="Refuse PRs with new lines that look like keys or passwords")
    allow_secrets: tuple[Pattern, ...] = Field(
        (), description="Files that may hold what looks like one", strict=False
    )
    filters: tuple[Word, ...] = Field(
        (),
        description="Filters and merge drivers of git's configuration that aipass may start as well: you know that they take nothing that they run from the tree",
        strict=False,
    )
    forge: str = Field(
        "local", description="Where PRs are shown as well: local (nowhere), gh, glab, or a plugin's"
    )
    remote: Word = Field("origin", description="The forge's remote")
    wake_author: bool = Field(False, description="Tell an agent when its PR was merged, by a dispatch")


class Sandbox(Model):
    """`[sandbox]`: the fence and the wall around runs."""

    fence: Layer = Field(
        "auto",
        description="Single files: every write of a run is asked about; `require` refuses to run without it",
    )
    wall: Layer = Field(
        "auto",
        description="Landlock: folders of the run's own, other processes; `require` refuses to run without it",
    )
    scratch: tuple[Pattern, ...] = Field(
        (".pytest_cache/",),
        description="Nobody's: every agent may write there, one at a time per file",
        strict=False,
    )
    temp: tuple[str, ...] = Field(
        ("sed??????", "XX??????", "Cu??????"),
        description="Names of temporary files that tools leave beside a file they save",
        strict=False,
    )
    write: tuple[str, ...] = Field(
        (), description="Folders outside the repository that agents may write", strict=False
    )
    sockets: tuple[str, ...] = Field(
        (),
        description="UNIX sockets of other programs that agents may connect to; name services always",
        strict=False,
    )
    env: tuple[str, ...] | None = Field(
        None, description="Names that runs inherit; default all", strict=False
    )


def _misfit(text: str, *place: str | int) -> PydanticCustomError:
    """An error about how parts fit together, and the key that it is about."""
    return PydanticCustomError("misfit", "{text}", {"text": text, "place": place})


class State(Model):
    """`[state]`: how much of what an agent notes stays in its files; the oldest moves to memory, open todos never."""

    todos: Annotated[int, Field(ge=1, le=1000)] = Field(
        30, description="Open todos of an agent; more are refused"
    )
    learnings: Annotated[int, Field(ge=0, le=1000)] = Field(50, description="Learnings in its file")
    observations: Annotated[int, Field(ge=0, le=1000)] = Field(50, description="Observations in its file")
    sessions: Annotated[int, Field(ge=0, le=1000)] = Field(20, description="Sessions in its file")
    text: Annotated[int, Field(ge=20, le=10_000)] = Field(600, description="Characters of one entry")


class Memory(Model):
    """`[memory]`: what is remembered, and how much of it a prompt holds."""

    in_prompt: Annotated[int, Field(ge=0, le=100_000)] = Field(
        1500,
        description="Characters of a prompt for messages, open todos and what memory holds; 0: none of it",
    )
    model: str | None = Field(
        None,
        description="The folder of a sentence model, to find by meaning as well (`pip install aipass-engine[embeddings]`); no network is used",
    )


class Config(Model):
    """The whole of aipass.toml."""

    orchestrator: str = Field(
        "human",
        description="The agent that may cancel, retry, resume, plan and merge as a person may, or `human`",
    )
    agents: dict[Name, Agent] = Field(default_factory=dict, description="By name")
    on: tuple[Rule, ...] = Field((), description="Rules", strict=False)
    limits: Limits = Limits()
    watch: Watch = Watch()
    inbox: Inbox = Inbox()
    sandbox: Sandbox = Sandbox()
    pr: Pulling = Pulling()
    state: State = State()
    memory: Memory = Memory()
    plugins: dict[Name, dict[str, Any]] = Field(
        default_factory=dict, description="Settings of plugins, by the plugin's name; each says what it takes"
    )

    @model_validator(mode="after")
    def _names_agree(self) -> Config:
        folded: dict[str, str] = {}
        for name in self.agents:
            other = folded.setdefault(name.lower(), name)
            if other != name:
                text = f"agents `{other}` and `{name}` differ only in case; their folders would be one on some filesystems"
                raise _misfit(text, "agents", name)
        homes: dict[str, str] = {}
        for name in self.agents:
            other = homes.setdefault(self.home(name).lower(), name)
            if other != name:
                text = f"agents `{other}` and `{name}` have one home, {self.home(name)}; each needs its own"
                raise _misfit(text, "agents", name, "home")
        seen: set[str] = set()
        for number, rule in enumerate(self.on):
            if rule.name in seen:
                raise _misfit(
                    f"two rules are named `{rule.name}`; names of rules are unique", "on", number, "name"
                )
            seen.add(rule.name)
            if rule.dispatch not in self.agents:
                text = f"rule `{rule.name}` dispatches `{rule.dispatch}`, which is no agent here{nearest(rule.dispatch, self.agents)}"
                raise _misfit(text, "on", number, "dispatch")
        if self.orchestrator != "human" and self.orchestrator not in self.agents:
            text = f"orchestrator `{self.orchestrator}` is no agent here{nearest(self.orchestrator, self.agents)}"
            raise _misfit(text, "orchestrator")
        return self

    def drivers(self) -> dict[str, str]:
        """What each agent is driven by."""
        return {name: agent.driver for name, agent in self.agents.items()}

    def home(self, agent: str) -> str:
        """The agent's home, relative to the root."""
        return self.agents[agent].home or f".aipass/agents/{agent}"


def load(path: Path) -> Config:
    """The configuration in `path`.

    Raises ConfigError with one line for each thing that is wrong.
    """
    return parse(read_text(path), path.name)


def read_text(path: Path) -> str:
    """The file's text, without a byte order mark.

    Raises ConfigError where it cannot be read or is no UTF-8 text.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path.name}: is not a file; move away what is in its place")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"{path.name}: larger than {MAX_CONFIG_BYTES // 1_000_000} MB; is this the right file?"
            )
        data = path.read_bytes()
    except OSError as exc:
        raise ConfigError(
            f"{path.name}: cannot be read ({exc.strerror}); check that it is a file and its permissions"
        ) from exc
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError(
            f"{path.name}:{line}: not UTF-8 (byte 0x{data[exc.start]:02x}); save the file as UTF-8"
        ) from exc


def parse_toml(text: str, name: str = CONFIG_NAME) -> dict[str, Any]:
    """`text` as TOML; raises ConfigError with the line."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # a number of thousands of digits is a plain ValueError
        raise ConfigError(not_toml(text, exc, name)) from exc


def parse(text: str, name: str = CONFIG_NAME) -> Config:
    """The configuration in `text`; `name` is how errors call the file."""
    raw = parse_toml(text, name)
    try:
        return Config.model_validate(raw)
    except ValidationError as exc:
        lines = Lines(text)
        # A value that fits none of several types is told once for each; once is enough.
        told = dict.fromkeys(_explain(error, lines, name) for error in exc.errors())
        raise ConfigError("\n".join(told)) from exc


def _explain(error: ErrorDetails, lines: Lines, name: str) -> str:
    loc = tuple(
        part
        for part in error["loc"]
        if part not in {"[key]", "FromEnv"} and not str(part).startswith("function-")
    )
    if error["type"] == "misfit":
        loc = tuple(error["ctx"]["place"])
    if loc and loc[-1] in {"str", "int", "float", "bool"}:
        loc = loc[:-1]
    field = plain(".".join(str(part) for part in loc))
    place = f"{name}:{lines.of(loc)}: " + (f"{field}: " if field else "")
    if error["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        near = nearest(str(loc[-1]), known)
        return f"{place}unknown key{near}{' Known' if near else '; known'} here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{place}missing; it is required"
    if error["type"] in {"tuple_type", "list_type"}:
        if isinstance(error["input"], dict) and len(loc) == 1:
            return f"{place}it is a list of tables; write `[[{field}]]`"
        words = (
            error["input"].split()
            if isinstance(error["input"], str) and loc[-1] == "command"
            else [error["input"]]
        )
        shape = json.dumps(words, ensure_ascii=False, default=str)[:200]
        return f"{place}it is a list, found {_show(error['input'])}; write `{loc[-1]} = {shape}`"
    message = (
        error["msg"]
        .removeprefix("Value error, ")
        .replace("valid tuple", "list")
        .replace("valid dictionary", "table")
    )
    found = error["input"]
    shown = (
        ""
        if isinstance(found, dict) or error["type"] in {"value_error", "misfit"}
        else f", found {_show(found)}"
    )
    return f"{place}{message[0].lower()}{message[1:]}{shown}"


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def place(path: Path, *loc: str | int) -> str:
    """Where in the file a key stands, as errors begin."""
    try:
        line = f":{Lines(read_text(path)).of(loc)}"
    except ConfigError:
        line = ""
    return f"{path.name}{line}: {plain('.'.join(map(str, loc)))}: "


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """Keys that may stand in the table at `loc`."""
    tables: dict[str, type[BaseModel]] = {"on": Rule}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Model):
            tables[name] = field.annotation
    model = tables.get(str(loc[0]), Config) if loc else Config
    if loc[:1] == ("agents",):
        model = Agent if len(loc) <= 2 else FromEnv
    return sorted(model.model_fields)


def nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to a message, or nothing."""
    match = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean `{match[0]}`?" if match else ""


class Lines:
    """Which line of a TOML text holds a key: tables, arrays of tables and plain keys, no more than errors need."""

    _HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
    _KEY = re.compile(
        r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+))*)\s*="""
    )

    def __init__(self, text: str) -> None:
        self._line: dict[tuple[Any, ...], int] = {}
        table: tuple[Any, ...] = ()
        count: dict[tuple[Any, ...], int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if header := self._HEADER.match(line):
                table = self._split(header[2])
                if header[1] == "[[":
                    index = count[table] = count.get(table, -1) + 1
                    table = (*table, index)
                self._line.setdefault(table, number)
            elif key := self._KEY.match(line):
                self._line.setdefault((*table, *self._split(key[1])), number)

    @staticmethod
    def _split(dotted: str) -> tuple[Any, ...]:
        return tuple(part.strip().strip("\"'") for part in re.findall(r""""[^"]*"|'[^']*'|[^.]+""", dotted))

    def of(self, loc: tuple[Any, ...]) -> int:
        """The line of the longest known part of `loc`; 1 where none is known."""
        while loc:
            if loc in self._line:
                return self._line[loc]
            loc = loc[:-1]
        return 1


#: What may have come with a `git pull` and could start other programs or open other doors: it waits for a person.
GUARDED_AGENT_FIELDS = ("command", "args", "env", "driver")


def hold_back(old: Config, new: Config) -> tuple[Config, list[str]]:
    """`new` without the changes that wait for `aipass reload`, and the names of those that wait."""
    waiting: list[str] = []
    agents: dict[str, Agent] = {}
    for name, agent in new.agents.items():
        before = old.agents.get(name)
        if before is None:
            waiting.append(f"agents.{name}")
            continue
        changed = [field for field in GUARDED_AGENT_FIELDS if getattr(before, field) != getattr(agent, field)]
        waiting += [f"agents.{name}.{field}" for field in changed]
        agents[name] = agent.model_copy(update={field: getattr(before, field) for field in changed})
    update: dict[str, Any] = {"agents": agents}
    for field in ("sandbox", "orchestrator", "pr", "plugins"):
        if getattr(old, field) != getattr(new, field):
            waiting.append(field)
            update[field] = getattr(old, field)
    if update.get("orchestrator", new.orchestrator) not in {"human", *agents}:
        update["orchestrator"] = "human"
    update["on"] = tuple(rule for rule in new.on if rule.dispatch in agents)
    return new.model_copy(update=update), waiting
