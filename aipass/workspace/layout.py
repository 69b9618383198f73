"""The layout of a root: the paths of all folders and files of aipass, defined only here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from aipass.errors import ConfigError
from aipass.files.names import fitting

CONFIG_NAME = "aipass.toml"
STATE_NAME = ".aipass"
#: Spool folder (request queue) of people and their shells. Every run has its own folder beside it.
HUMAN_SPOOL = "human"
#: Spool folder in which git's hooks leave their reports; no file there is a request.
NEWS_SPOOL = "git"
#: Suffix of the note beside an inbox file that cannot be used: `<its name>.rejected.json` has the reason.
REJECTED = ".rejected.json"
#: The spool folder of a run. 18 digits, because SQLite holds 64-bit ids; no leading zero, so that one run has one name.
RUN_FOLDER = re.compile(r"run-([1-9][0-9]{0,17})")


#: The checks of plans use run numbers from here on, because the supervisor and its journal number runs and checks alike.
CHECKS = 1 << 50
#: The checks of merges use run numbers from here on.
MERGES = 1 << 51


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one root. `root` is absolute and resolved."""

    root: Path

    @property
    def config(self) -> Path:
        """The configuration. People write it; the engine only reads it."""
        return self.root / CONFIG_NAME

    @property
    def inbox(self) -> Path:
        """The folder for incoming files: a file in `inbox/<agent>/` starts that agent."""
        return self.root / "inbox"

    @property
    def outbox(self) -> Path:
        """The folder for answers, with a folder for each agent."""
        return self.root / "outbox"

    @property
    def plans(self) -> Path:
        """The folder for plans, one file for each."""
        return self.root / "plans"

    @property
    def state(self) -> Path:
        """The engine's own folder, mode 0700."""
        return self.root / STATE_NAME

    @property
    def ledger(self) -> Path:
        """The ledger: the SQLite event log."""
        return self.state / "ledger.db"

    @property
    def spool(self) -> Path:
        """The spool (request queue): files in one folder for people and one for each live run."""
        return self.state / "spool"

    @property
    def runs(self) -> Path:
        """The folders of runs, one for each."""
        return self.state / "runs"

    @property
    def dispatches(self) -> Path:
        """The input files of dispatches, a folder for each."""
        return self.state / "dispatches"

    @property
    def mail(self) -> Path:
        """Copies of messages for reading, a folder for each recipient."""
        return self.state / "mail"

    def meaning(self, ledger: str) -> Path:
        """The folder for the files of semantic indexes. `ledger`: the id of the ledger that they belong to."""
        return self.state / "meaning" / ledger

    @property
    def quarantine(self) -> Path:
        """Files that could not be used and are kept for inspection."""
        return self.state / "quarantine"

    @property
    def log(self) -> Path:
        """The log for people. No program needs it: all facts are in the ledger."""
        return self.state / "log.jsonl"

    @property
    def engine_lock(self) -> Path:
        """The lock file of the running engine; its content identifies that engine."""
        return self.state / "engine.lock"

    @property
    def crashes(self) -> Path:
        """Crash reports: bugs in aipass."""
        return self.state / "crashes"

    def run(self, run: int) -> Path:
        """The folder of a run, or of a check whose number is at least CHECKS or MERGES."""
        if run >= MERGES:
            return self.merges / str(run - MERGES)
        return self.runs / str(run) if run < CHECKS else self.state / "checks" / str(run - CHECKS)

    @property
    def merges(self) -> Path:
        """The output of the checks of merges, a folder for each."""
        return self.state / "merges"

    def cli_state(self, agent: str) -> Path:
        """The files that an agent's CLI keeps between runs: conversations, settings, credentials."""
        return self.state / "cli" / agent

    def run_spool(self, run: int) -> Path:
        """The only spool folder that this run can write. It therefore identifies the sender of a request."""
        return self.spool / f"run-{run}"

    def human_spool(self) -> Path:
        """The spool folder for requests of people."""
        return self.spool / HUMAN_SPOOL

    def dispatch(self, dispatch: int) -> Path:
        """The folder with the input files of one dispatch."""
        return self.dispatches / str(dispatch)


def root_or_here() -> Path:
    """The root that contains the current folder; the current folder itself if there is none (before `aipass init`)."""
    try:
        return find_root().root
    except ConfigError:
        return Path.cwd()


def find_root(start: Path | None = None) -> Layout:
    """The nearest folder with an aipass.toml: `start` (default: the current folder) or one above it.

    Without `start`, the variable `AIPASS_ROOT` has precedence; every run has it. Raises ConfigError if there is no root.
    """
    named = os.environ.get("AIPASS_ROOT") if start is None else None
    if named:
        try:
            layout = Layout(Path(named).resolve())
        except (OSError, RuntimeError) as exc:
            raise ConfigError(f"AIPASS_ROOT={named}: cannot be resolved ({exc}); unset it") from exc
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
    raise ConfigError(f"no {CONFIG_NAME} in {here} or in any folder above it; `aipass init` creates one")


def rejection_beside(path: Path) -> Path:
    """The path of the note that says why a file was not used. The name is shortened if it would be too long."""
    return path.with_name(fitting(path.name, REJECTED))
