"""aipass.toml as a validated, frozen model; every error says file, line, field, what was found and what would be right."""

from __future__ import annotations

import difflib
import os
import re
from typing import Annotated, Any, Literal

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from aipass.text import patterns
from aipass.text.suggestion import nearest
from aipass.text.template import check_template
from aipass.text.units import parse_duration, parse_size

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
