"""Where everything lies in a repository: one place that knows the names of folders and files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from aipass.errors import ConfigError
from aipass.files.names import fitting

CONFIG_NAME = "aipass.toml"
STATE_NAME = ".aipass"
#: Spool folder of people and of their shells; every run has one of its own beside it.
HUMAN_SPOOL = "human"
#: Where git's hooks leave what they have to tell; nothing there is a request.
NEWS_SPOOL = "git"
#: Beside a drop that cannot be used: `<its name>.rejected.json` says why.
REJECTED = ".rejected.json"
#: A run's spool folder: ids that SQLite can hold, in plain digits.
RUN_FOLDER = re.compile(r"run-([1-9][0-9]{0,17})")


#: Checks have numbers of their own among a supervisor's runs.
CHECKS = 1 << 50
#: And so have those of merges.
MERGES = 1 << 51


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one root. `root` is absolute and resolved."""

    root: Path

    @property
    def config(self) -> Path:
        """What people write and the engine only reads."""
        return self.root / CONFIG_NAME

    @property
    def inbox(self) -> Path:
        """Drop a file in `inbox/<agent>/` and the agent works on it."""
        return self.root / "inbox"

    @property
    def outbox(self) -> Path:
        """Answers, a folder for each agent."""
        return self.root / "outbox"

    @property
    def plans(self) -> Path:
        """Plans, a file for each."""
        return self.root / "plans"

    @property
    def state(self) -> Path:
        """The engine's own folder, mode 0700."""
        return self.root / STATE_NAME

    @property
    def ledger(self) -> Path:
        """The durable record."""
        return self.state / "ledger.db"

    @property
    def spool(self) -> Path:
        """Requests as files: a folder for people, one for each live run."""
        return self.state / "spool"

    @property
    def runs(self) -> Path:
        """One folder for each run."""
        return self.state / "runs"

    @property
    def dispatches(self) -> Path:
        """The files that were handed in, a folder for each dispatch."""
        return self.state / "dispatches"

    @property
    def mail(self) -> Path:
        """What was said, for eyes: a folder for each recipient."""
        return self.state / "mail"

    def meaning(self, ledger: str) -> Path:
        """What indexes make of what is remembered, by the ledger that remembers it."""
        return self.state / "meaning" / ledger

    @property
    def quarantine(self) -> Path:
        """What could not be used and is kept."""
        return self.state / "quarantine"

    @property
    def log(self) -> Path:
        """For people; what matters is in the ledger."""
        return self.state / "log.jsonl"

    @property
    def engine_lock(self) -> Path:
        """Locked by the engine that runs; says which one."""
        return self.state / "engine.lock"

    @property
    def crashes(self) -> Path:
        """Reports of bugs in aipass."""
        return self.state / "crashes"

    def run(self, run: int) -> Path:
        """The folder of one run, or of one check."""
        if run >= MERGES:
            return self.merges / str(run - MERGES)
        return self.runs / str(run) if run < CHECKS else self.state / "checks" / str(run - CHECKS)

    @property
    def merges(self) -> Path:
        """What the checks of merges said, a folder for each."""
        return self.state / "merges"

    def cli_state(self, agent: str) -> Path:
        """What an agent's CLI keeps from run to run: conversations, settings, its sign-in."""
        return self.state / "cli" / agent

    def run_spool(self, run: int) -> Path:
        """The only spool folder that this run can write: who asks follows from it."""
        return self.spool / f"run-{run}"

    def human_spool(self) -> Path:
        """Where people's requests go."""
        return self.spool / HUMAN_SPOOL

    def dispatch(self, dispatch: int) -> Path:
        """The files handed in with one dispatch."""
        return self.dispatches / str(dispatch)


def root_or_here() -> Path:
    """The root that the current folder is in, or else that folder, which may become one."""
    try:
        return find_root().root
    except ConfigError:
        return Path.cwd()


def find_root(start: Path | None = None) -> Layout:
    """The nearest folder upward from `start` that has an aipass.toml.

    `AIPASS_ROOT` wins where it is set, as it is for every run. Raises ConfigError where there is none.
    """
    named = os.environ.get("AIPASS_ROOT") if start is None else None
    if named:
        try:
            layout = Layout(Path(named).resolve())
        except (OSError, RuntimeError) as exc:
            raise ConfigError(f"AIPASS_ROOT={named}: leads nowhere ({exc}); unset it") from exc
        if not layout.config.is_file():
            raise ConfigError(
                f"AIPASS_ROOT={named}: there is no {CONFIG_NAME} in that folder; unset it or run `aipass init` there"
            )
        return layout
    try:
        here = (start or Path.cwd()).resolve()
    except FileNotFoundError:
        raise ConfigError("the current folder no longer exists; go to the repository and try again") from None
    for folder in (here, *here.parents):
        if (folder / CONFIG_NAME).is_file():
            return Layout(folder)
    raise ConfigError(f"no {CONFIG_NAME} in {here} or in any folder above it; `aipass init` makes one")


def rejection_beside(path: Path) -> Path:
    """Where the note lies that says why a file was not used."""
    return path.with_name(fitting(path.name, REJECTED))
