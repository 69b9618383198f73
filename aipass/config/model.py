"""The model of aipass.toml: validated and frozen."""

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

#: The value of `[pr] forge` for no forge: PRs exist only in this repository.
LOCAL = "local"
#: Recipients and senders of messages that are not agents.
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


# The kernel ends an argument at a NUL. `subprocess` would raise a ValueError when the run starts, not when the file loads.
def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a program's arguments and environment cannot hold a NUL")
    return value


def _home(value: str) -> str:
    parts = [part for part in value.split("/") if part not in {"", "."}]
    # The home is an agent's own folder and it can write there: not the whole repository, not git's files, and nothing of
    # the engine's state but the folder of one agent.
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
    """Base of all tables of the configuration: frozen, without unknown keys, without silent conversion of types."""

    # Fields with tuples need `strict=False`: TOML arrays are lists, which strict mode refuses for a tuple.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FromEnv(Model):
    """A value that is read from the engine's environment when a run starts. It is never stored, so it can be a secret."""

    from_env: Word


class Agent(Model):
    """`[agents.<name>]`: a configured identity."""

    driver: Annotated[str, Field(min_length=1)] = Field(
        description="The driver that runs its CLI: command, claude, codex, gemini, opencode, llm, or one of a plugin"
    )
    home: Home | None = Field(None, description="The agent's own folder; default `.aipass/agents/<name>`")
    owns: tuple[Pattern, ...] | None = Field(
        None,
        description="Patterns of the files that the agent can write outside of plans; default: all files without another owner; empty list: no files",
        strict=False,
    )
    model: Word | None = Field(None, description="The model, passed to the driver")
    role: Word | None = Field(
        None, description="The role of the agent in a word or two; shown in its passport and its brief"
    )
    purpose: Word | None = Field(
        None, description="The purpose of the agent in one sentence; shown in its passport and its brief"
    )
    brief: Word | None = Field(
        None,
        description="A file of the repository with the instructions for the agent; default: built-in instructions for models; empty: no instructions",
    )
    args: tuple[Word, ...] = Field((), description="Arguments appended to those of the CLI", strict=False)
    command: tuple[Word, ...] | None = Field(
        None, description='The program and its arguments; only for `driver = "command"`', strict=False
    )
    env: dict[Word, Word | FromEnv] = Field(
        default_factory=dict,
        description="Variables added to the run's environment; `NAME = { from_env = \"OTHER\" }` takes the value from the engine's environment and never stores it",
    )
    timeout: Duration = Field(3600.0, description="Stop a run that takes longer")
    stall: Duration = Field(
        600.0,
        description="Report a run without output or writes for this time. The run is not stopped",
    )
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        2, description="Number of new attempts after a lost run, a failed start or overload"
    )
    on_limit: Literal["wait", "fail"] = Field(
        "wait",
        description="Whether a dispatch waits or fails when its CLI reaches a rate or usage limit",
    )
    max_wait: Duration = Field(
        6 * 3600.0, description="The longest time that a dispatch waits for the end of a limit"
    )
    linger: bool = Field(
        False, description="Do not kill the processes that the agent leaves behind when its run ends"
    )

    @model_validator(mode="after")
    def _command_fits_driver(self) -> Agent:
        if self.driver == "command" and not self.command:
            raise ValueError('`driver = "command"` needs a command; add `command = ["python3", "agent.py"]`')
        if self.driver != "command" and self.command is not None:
            # A mistyped `comand`: the hint about `args` would lead away from the mistake.
            if difflib.get_close_matches(self.driver, ["command"], 1, 0.6):
                raise ValueError(f'there is no driver "{self.driver}"; did you mean `command`?')
            raise ValueError(
                f'`command` is for `driver = "command"` only; driver "{self.driver}" takes `args`'
            )
        if self.command and not self.command[0]:
            raise ValueError("the command's first word is empty; it must be a program")
        return self


class Rule(Model):
    """`[[on]]`: a rule that starts an agent on an event or at a time, without Python."""

    name: Name = Field(description="The name of the rule; unique")
    event: str | None = Field(None, description="The kind of event that fires the rule; wildcards allowed")
    cron: str | None = Field(
        None,
        description="The times at which the rule fires, instead of `event`: five cron fields, local time",
    )
    branch: str | None = Field(None, description="Fire only on events of this branch")
    paths: tuple[Pattern, ...] = Field(
        (), description="Fire only if the event's path matches one of these patterns", strict=False
    )
    where: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Fire only if these fields of the event have these values"
    )
    dispatch: str = Field(description="The agent that is started")
    task: Annotated[str, Field(min_length=1), AfterValidator(check_template)] = Field(
        description="The prompt of the agent; a template"
    )
    priority: Annotated[int, Field(ge=-100, le=100)] = Field(
        0, description="The priority of the dispatch; a larger number runs first"
    )
    debounce: Duration = Field(
        0.0,
        description="Combine events within this time into one dispatch, with the values of the last event",
    )
    self: bool = Field(False, description="Fire also on events that the rule's own agent caused")
    git: bool = Field(False, description="Fire also on file events that git caused")
    rebased: bool = Field(False, description="Fire also on each commit that a rebase made")
    per_hour: Annotated[int, Field(ge=1)] = Field(
        30, description="Pause the rule if it fires more often than this within an hour"
    )

    @model_validator(mode="after")
    def _event_or_cron(self) -> Rule:
        if (self.event is None) == (self.cron is None):
            raise ValueError("a rule needs exactly one of `event` and `cron`")
        if self.cron is not None:
            from datetime import datetime

            # Only parsed; the date is arbitrary.
            try:
                CronSim(self.cron, datetime(2000, 1, 1))
            except CronSimError as exc:
                raise ValueError(
                    f'"{self.cron}" is not a cron expression ({exc}); write "0 9 * * 1-5" or the like'
                ) from exc
        return self


class Limits(Model):
    """`[limits]`: rates, concurrency and retention."""

    concurrency: Annotated[int, Field(ge=1)] = Field(
        default_factory=lambda: max(4, 2 * (os.cpu_count() or 1)),
        description="Maximum number of concurrent runs in this repository; default max(4, 2 x cores)",
    )
    per_driver: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="Maximum number of concurrent runs of a driver, by its name"
    )
    hops: Annotated[int, Field(ge=0)] = Field(
        5, description="Maximum number of hops: the length of a chain in which one agent starts the next"
    )
    runs_per_hour: Annotated[int, Field(ge=1)] = Field(
        60, description="Maximum number of runs of each agent within an hour"
    )
    keep: Duration = Field(
        90 * 86400.0,
        description="Delete folders of runs and checks, messages as files, quarantined files and events older than this; dispatches are kept",
    )
    keep_events: Annotated[int, Field(ge=1000)] = Field(
        2_000_000, description="Maximum number of events; the oldest are deleted first"
    )


class Watch(Model):
    """`[watch]`: the part of the tree that is watched."""

    ignore: tuple[Pattern, ...] = Field(
        (),
        description="Patterns of files to ignore, in addition to .gitignore and the built-in list",
        strict=False,
    )


class Inbox(Model):
    """`[inbox]`: the files that are accepted."""

    max_size: Size = Field(20_000_000, description="Maximum size of a file; larger ones are rejected")


class Pulling(Model):
    """`[pr]`: how PRs are opened and merged."""

    checks: tuple[Word, ...] = Field(
        (), description="Commands that must pass on a checkout of the merged result", strict=False
    )
    check_timeout: Duration = Field(3600.0, description="Stop checks that take longer")
    method: Literal["merge", "squash", "ff"] = Field(
        "merge",
        description="How a PR is merged: `merge` makes a merge commit, `squash` one commit, `ff` (fast-forward) none",
    )
    secrets: bool = Field(True, description="Refuse PRs with new lines that look like keys or passwords")
    allow_secrets: tuple[Pattern, ...] = Field(
        (),
        description="Patterns of files that can contain text that looks like a key or password",
        strict=False,
    )
    filters: tuple[Word, ...] = Field(
        (),
        description="Names of git filters and merge drivers that aipass starts as well. List only those that run no program and no code from the repository",
        strict=False,
    )
    forge: str = Field(
        "local",
        description="The service that shows PRs as well: local (none), gh, glab, or one of a plugin",
    )
    remote: Word = Field("origin", description="The git remote of the forge")
    wake_author: bool = Field(False, description="Start an agent by a dispatch when its PR was merged")


class Sandbox(Model):
    """`[sandbox]`: the fence (per-file sandbox, seccomp) and the wall (folder sandbox, Landlock) around runs."""

    fence: Layer = Field(
        "auto",
        description="The fence (per-file sandbox, seccomp): checks every write of a run; `require` refuses to run without it",
    )
    wall: Layer = Field(
        "auto",
        description="The wall (folder sandbox, Landlock): protects folders and other processes; `require` refuses to run without it",
    )
    scratch: tuple[Pattern, ...] = Field(
        (".pytest_cache/",),
        description="Patterns of files that every agent can write, one agent at a time per file, whoever owns them",
        strict=False,
    )
    temp: tuple[str, ...] = Field(
        # `sed -i` of GNU, `perl -i`, and `ln -f` of coreutils (force-link.c), in this order.
        ("sed??????", "XX??????", "Cu??????"),
        description="Names of the temporary files that tools create beside a file when they save it",
        strict=False,
    )
    write: tuple[str, ...] = Field(
        (), description="Folders outside the repository that agents can write", strict=False
    )
    sockets: tuple[str, ...] = Field(
        (),
        description="UNIX sockets of other programs that agents can connect to; those of name services are always allowed",
        strict=False,
    )
    env: tuple[str, ...] | None = Field(
        None,
        description="Names or patterns of the environment variables that runs inherit; default: all",
        strict=False,
    )


def _misfit(text: str, *place: str | int) -> PydanticCustomError:
    """An error about values that do not fit each other. `place`: the key to which the message points."""
    # A plain ValueError of a validator of the whole model has no location, so the error could not name a line.
    return PydanticCustomError("misfit", "{text}", {"text": text, "place": place})


class State(Model):
    """`[state]`: sizes of an agent's state files. The oldest entries move to memory; open todos stay."""

    todos: Annotated[int, Field(ge=1, le=1000)] = Field(
        30, description="Maximum number of open todos of an agent; more are refused"
    )
    learnings: Annotated[int, Field(ge=0, le=1000)] = Field(
        50, description="Number of learnings in an agent's file; older ones move to memory"
    )
    observations: Annotated[int, Field(ge=0, le=1000)] = Field(
        50, description="Number of observations in an agent's file; older ones move to memory"
    )
    sessions: Annotated[int, Field(ge=0, le=1000)] = Field(
        20, description="Number of sessions in an agent's file; older ones move to memory"
    )
    text: Annotated[int, Field(ge=20, le=10_000)] = Field(
        600, description="Maximum length of one entry, in characters"
    )


class Memory(Model):
    """`[memory]`: the search of memories, and the part of a prompt that they fill."""

    in_prompt: Annotated[int, Field(ge=0, le=100_000)] = Field(
        1500,
        description="Number of characters of a prompt for messages, open todos and related memories; 0: none",
    )
    model: str | None = Field(
        None,
        description="The folder of a sentence model, for search by meaning (`pip install aipass-engine[embeddings]`); the network is not used",
    )


class Config(Model):
    """The content of aipass.toml."""

    orchestrator: str = Field(
        "human",
        description="The agent that can cancel, retry, resume, plan and merge as a person can, or `human` for none",
    )
    agents: dict[Name, Agent] = Field(default_factory=dict, description="Agents by name")
    on: tuple[Rule, ...] = Field((), description="Rules", strict=False)
    limits: Limits = Limits()
    watch: Watch = Watch()
    inbox: Inbox = Inbox()
    sandbox: Sandbox = Sandbox()
    pr: Pulling = Pulling()
    state: State = State()
    memory: Memory = Memory()
    plugins: dict[Name, dict[str, Any]] = Field(
        default_factory=dict,
        description="Settings of plugins, by the plugin's name; each plugin defines its own keys",
    )

    @model_validator(mode="after")
    def _names_agree(self) -> Config:
        # Names are folders in inbox/ and outbox/. On macOS most filesystems ignore case.
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
                text = f"rule `{rule.name}` dispatches `{rule.dispatch}`, but there is no such agent{nearest(rule.dispatch, self.agents)}"
                raise _misfit(text, "on", number, "dispatch")
        if self.orchestrator != "human" and self.orchestrator not in self.agents:
            text = f"orchestrator `{self.orchestrator}`: there is no such agent{nearest(self.orchestrator, self.agents)}"
            raise _misfit(text, "orchestrator")
        return self

    def drivers(self) -> dict[str, str]:
        """The driver of each agent, by the agent's name."""
        return {name: agent.driver for name, agent in self.agents.items()}

    def home(self, agent: str) -> str:
        """The agent's home, relative to the root."""
        return self.agents[agent].home or f".aipass/agents/{agent}"
