"""The launcher: starts, stops and judges the runs that the ledger has recorded. Every method is idempotent.

The engine calls it after the commit, and again after a crash, when it cannot know how far the last call came.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from aipass import environment, programs
from aipass.core.prompt import PromptWork
from aipass.errors import AipassError
from aipass.event import iso
from aipass.features.dispatch import brief, grant, shares
from aipass.features.dispatch.driver import (
    SESSION,
    Exit,
    Job,
    Outcome,
    Usage,
    check_command,
    check_outcome,
    how_to_sign_in,
    signed_in_by,
    sum_usage,
)
from aipass.features.dispatch.results import MAX_ANSWER_BYTES, RESULT
from aipass.features.ownership import layers
from aipass.supervisor import held, wire
from aipass.supervisor.fence.prewrite import TERRITORY
from aipass.supervisor.spawn import STOP_WAITS_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aipass.core.registry import Core
    from aipass.core.run_hook import RunHook
    from aipass.features.dispatch.driver import Driver
    from aipass.features.dispatch.hook import DispatchHook
    from aipass.ledger import Row

logger = structlog.get_logger("aipass")

CHECK_TIMEOUT_S = 3600.0
#: The prompt while it is written; renamed when complete.
PROMPT_HALF = f".{wire.PROMPT}.tmp"


class Runner(Protocol):
    """The interface to the processes: the supervisors, or a script in tests.

    The methods only send a request; the result comes later, as a Report. They raise OSError or AipassError if no supervisor
    can be reached.
    """

    def start_run(self, message: dict[str, Any]) -> None:
        """Start a run; a second request for the same run is ignored."""
        ...

    def stop_run(self, run: int, why: str, reason: str) -> None:
        """Stop a run's whole process tree; `why`: its outcome, `reason`: text for people."""
        ...

    def adopt(self, run: int, agent: str) -> None:
        """Report the state of a run that an earlier engine started."""
        ...

    def set_territory(self, message: dict[str, Any]) -> None:
        """Enforce a new ownership table; `serial` in it grows with each table."""
        ...

    def end_lockers(self, files: Iterable[Path]) -> None:
        """End the processes of runs that hold a lock on one of these files."""
        ...


class NoRunner:
    """A Runner that ignores every request, for engines that must not start processes."""

    def start_run(self, message: dict[str, Any]) -> None:
        """Do nothing."""

    def stop_run(self, run: int, why: str, reason: str) -> None:
        """Do nothing."""

    def adopt(self, run: int, agent: str) -> None:
        """Do nothing."""

    def set_territory(self, message: dict[str, Any]) -> None:
        """Do nothing."""

    def end_lockers(self, files: Iterable[Path]) -> None:
        """Do nothing."""


class Launcher:
    """Starts and stops the processes of one root and interprets their ends. Used by the engine's thread, after the commit.

    `verdict` is the exception: it is called inside the transaction.
    """

    def __init__(
        self, core: Core, runner: Runner, drivers: Mapping[str, Driver], hooks: Sequence[DispatchHook]
    ) -> None:
        self._core, self.layout, self._ledger = core, core.layout, core.ledger
        self._runner, self._drivers, self._hooks = runner, drivers, hooks
        self._environ = dict(core.environ)
        self._base: tuple[tuple[str, ...] | None, dict[str, str]] | None = None
        self.stop_waits_s = STOP_WAITS_S
        # Starts above every serial number of an earlier engine, whose last table a supervisor may still confirm.
        self._serial = time.time_ns()

    # -- runs ------------------------------------------------------------------------------------------------------

    def start(self, run: int) -> dict[str, Any] | None:
        """Prepare a run's folder and ask the supervisor to start the run.

        Returns None, or for a failed start the message by which a supervisor would report that end. A failed start is an
        outcome of the run. Raises only if no supervisor can be reached: the caller then tries again.
        """
        row, config = self._row("run", run), self._core.config()
        folder = self.layout.run(run)
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            self.layout.run_spool(run).mkdir(exist_ok=True, mode=0o700)
            furnished = [_furnished(hook, row, folder) for hook in self._core.run_hooks]
            job = self.job(row, prompt=True)
            # By rename: after a crash the engine writes it again, perhaps while the run opens it.
            with open(
                held.fresh(folder / PROMPT_HALF), "w", encoding="utf-8", errors="replace", newline=""
            ) as file:
                file.write(job.prompt)
            os.replace(folder / PROMPT_HALF, folder / wire.PROMPT)
            home = self.layout.root / config.home(job.agent)
            held.make_folders(home, self.layout.root, mode=0o777)
            job.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The driver recorded with the run, which also judges its end: a reload may have changed the agent's driver
            # since.
            command = check_command(self._drivers[row["driver"]].command(job))
            shares.furnish(job.state, command.shares, contained=job.contained)
            hops = self._row("dispatch", job.dispatch)["hops"]
            own = {
                "PWD": str(self.layout.root),
                "AIPASS_ROOT": str(self.layout.root),
                "AIPASS_AGENT": job.agent,
                "AIPASS_DISPATCH": str(job.dispatch),
                "AIPASS_RUN": str(run),
                "AIPASS_SPOOL": str(self.layout.run_spool(run)),
                "AIPASS_HOPS": str(hops),
                "AIPASS_PROMPT_FILE": str(folder / wire.PROMPT),
            }
            for more in furnished:
                own |= more
            # Without fence and wall there is nothing to specify; the supervisor then starts a plain process.
            active = layers.active(config)
            stands = grant.of_run(self.layout, config, job, command, active) if any(active) else None
            if stands is not None:
                row = self._row("dispatch", job.dispatch)
                stands |= {"plan": row["plan"], "phase": row["phase"]}
                caches = grant.cache(self.layout, job.agent)
                own |= grant.environment(caches, stands["tmp"], folder, fence=active.fence)
            base = self._inherited(config.sandbox.env)
            env = environment.compose(base, self._environ, job.settings, command.env, own)
            argv = [str(word) for word in command.argv]
            # Resolved by the run's own PATH, which the agent's settings may have changed, and not by the supervisor's.
            argv[0] = _program(argv[0], env["PATH"], job)
            message = {
                "run": run,
                "agent": job.agent,
                "folder": str(folder),
                "root": str(self.layout.root),
                "argv": argv,
                "env": env,
                "cwd": str(self.layout.root),
                "stdin": bool(command.stdin),
                "timeout_s": job.settings.timeout,
                "stall_s": job.settings.stall,
                "linger": job.settings.linger,
                "waits": self.stop_waits_s,
                "ground": stands,
            }
            # Only to find out here if the message is too large or no JSON: that is a failed start, and no lost connection.
            wire.pack(message)
        except Exception as exc:  # noqa: BLE001 - a driver may raise anything; a failed start is an outcome
            reason = (
                str(exc)
                if isinstance(exc, (AipassError, OSError))
                else f"the driver raised {type(exc).__name__}: {exc}"
            )
            return {"tell": "ended", "run": run, "outcome": "start-failed", "reason": reason}
        self._runner.start_run(message)
        return None

    def _inherited(self, allowed: tuple[str, ...] | None) -> dict[str, str]:
        """The inherited part of every run's environment, cached until `sandbox.env` changes."""
        if self._base is None or self._base[0] != allowed:
            self._base = allowed, environment.inherited(self._environ, allowed)
        return self._base[1]

    def job(self, run: Row, *, prompt: bool = False) -> Job:
        """The driver's input for a run.

        `prompt`: compose a new prompt. Otherwise the prompt that the run was given is read from its folder.
        """
        config = self._core.config()
        dispatch = self._row("dispatch", run["dispatch"])
        settings = config.agents[run["agent"]]
        session, used = self._conversation(dispatch, run["driver"])
        if not prompt:
            text = _read_text(self.layout.run(run["id"]) / wire.PROMPT)
        else:
            text = self.prompt(dispatch, run["id"], dispatch["attempts"], goes_on=session is not None)
        return Job(
            run["id"],
            run["dispatch"],
            run["agent"],
            settings,
            self.layout.root,
            self.layout.run(run["id"]),
            text,
            dispatch["attempts"],
            self.layout.cli_state(run["agent"]),
            any(layers.active(config)),
            session,
            used,
            Path(grant.temporary(self.layout, run["id"])) if any(layers.active(config)) else None,
        )

    def prompt(self, dispatch: Row, run: int | None, attempt: int, *, goes_on: bool) -> str:
        """The complete prompt of an attempt; `run` None: of one that has not started, as `aipass show` prints it."""
        name = None if run is None else self._row("run", run)["driver"]
        driver = self._drivers.get(name or self._core.config().agents[dispatch["agent"]].driver)
        briefed = bool(getattr(driver, "briefed", False))
        return brief.whole(
            self._core, self._hooks, driver, PromptWork(dispatch, run, attempt, goes_on, briefed)
        )

    def _conversation(self, dispatch: Row, driver: str) -> tuple[str | None, Usage | None]:
        """The session (conversation) that a dispatch continues, and the usage of it so far.

        None if there is none for this driver.
        """
        if dispatch["session"] is None:
            return None, None
        used: list[Usage] = []
        row: Row | None = dispatch
        # A reply continues the session of the dispatch that it replies to, which may be a reply itself. Some CLIs
        # report the usage of the whole session, so the driver needs the earlier part to subtract it.
        while row is not None:
            runs = self._ledger.all("runs_of", {"dispatch": row["id"]})
            ended = [run for run in runs if run["state"] == "ended"]
            if ended and ended[-1]["driver"] != driver:
                # Another CLI cannot know this session's id.
                return None, None
            if row["usage"]:
                used.append(Usage(**json.loads(row["usage"])))
            row = self._ledger.one("dispatch", {"id": row["reply_to"]}) if row["reply_to"] else None
        return dispatch["session"], sum_usage(*used)

    def set_territory(self, table: dict[str, Any], handed: list[dict[str, Any]]) -> None:
        """Send the ownership table to the supervisors.

        `handed`: files that live runs handed over, to which they lose write access.
        """
        self._serial += 1
        self._runner.set_territory({"serial": self._serial, "table": table, "handed": handed})
        try:
            # For the pre-write hooks of runs without a fence. They only explain, so a failure here weakens no protection.
            held.write_atomic(self.layout.state / TERRITORY, json.dumps(table))
        except OSError as exc:
            logger.error("the ownership table for pre-write hooks cannot be written", error=str(exc))

    def start_command(
        self,
        run: int,
        name: str,
        commands: Sequence[str],
        *,
        folder: str | None = None,
        timeout_s: float = CHECK_TIMEOUT_S,
    ) -> None:
        """Run shell commands (a check) one after the other in the sandbox, up to the first that fails.

        `run` and `name` must be those of no run and no agent. The output stays in the folder of the number `run`. `folder`: the
        working folder, and all that the commands may write; None: they work in the root and may write the paths that git ignores.
        """
        config = self._core.config()
        place = folder or str(self.layout.root)
        own = self.layout.run(run)
        own.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One process group and one output for all commands; each is echoed first, so that a reader sees which one failed.
        script = "exec 2>&1; " + "".join(
            f"echo {shlex.quote(f'$ {one}')}; sh -c {shlex.quote(one)} || exit; " for one in commands
        )
        active = layers.active(config)
        stands = grant.of_check(self.layout, config, run, active, folder) if any(active) else None
        env = dict(self._inherited(config.sandbox.env))
        # GIT_OPTIONAL_LOCKS=0: a `git status` in a check must not take the lock of the index from a person or the engine.
        env |= {"PWD": place, "AIPASS_ROOT": str(self.layout.root), "GIT_OPTIONAL_LOCKS": "0"}
        if folder is not None:
            # The checkout has no .git of its own: without this, git would find the repository around it.
            env["GIT_CEILING_DIRECTORIES"] = str(Path(folder).parent)
        if stands is not None:
            env |= grant.environment(Path(stands["tmp"], "cache"), stands["tmp"], own, fence=active.fence)
        self._runner.start_run(
            {
                "run": run,
                "agent": name,
                "folder": str(own),
                "root": str(self.layout.root),
                "argv": [programs.require("sh", self.layout.root), "-c", script],
                "env": env,
                "cwd": place,
                "stdin": False,
                "timeout_s": timeout_s,
                "stall_s": 0,
                "linger": False,
                "waits": self.stop_waits_s,
                "ground": stands,
            }
        )

    def stop(self, run: int, why: str, reason: str) -> None:
        """Ask the supervisors to stop a run's whole process tree; idempotent."""
        self._runner.stop_run(run, why, reason)

    def adopt(self, run: int, agent: str) -> None:
        """Ask the supervisors for the state of a run that an earlier engine started."""
        self._runner.adopt(run, agent)

    def verdict(self, run: Row, message: Mapping[str, Any]) -> Outcome:
        """Judge an ended run by its driver, write `result.json` into its folder, and return the verdict.

        Raises nothing: an error of the driver is a failed run.
        """
        outcome = self._judge(run, message)
        answer: object = {"file": str(outcome.answer)} if isinstance(outcome.answer, Path) else outcome.answer
        record = {
            "state": outcome.state,
            "answer": answer,
            "reason": outcome.reason,
            "session": outcome.session,
            "resets": iso(outcome.resets),
            "fault": outcome.fault,
        }
        record["usage"] = asdict(outcome.usage) if outcome.usage else None
        folder = self.layout.run(run["id"])
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            held.write_atomic(folder / RESULT, json.dumps(record))
        except OSError as exc:
            # With a full disk the end of the run must still be recorded; only the answer's text is lost.
            logger.error("a run's result cannot be written", run=run["id"], error=str(exc))
        return outcome

    def _judge(self, run: Row, message: Mapping[str, Any]) -> Outcome:
        ended = str(message["outcome"])
        if ended != "exited":
            return Outcome(ended, reason=message.get("reason"), session=self._session(run))
        folder = self.layout.run(run["id"])
        # The driver that started the run: only it knows the format of the output, and a reload may have changed the agent's.
        driver = run["driver"]
        if run["agent"] not in self._core.config().agents or driver not in self._drivers:
            return Outcome(
                "failed",
                folder / wire.STDOUT,
                reason="its agent or driver is not configured any more, so its output cannot be interpreted; configure it again and retry",
            )
        end = Exit(message.get("exit"), message.get("signal"), folder / wire.STDOUT, folder / wire.STDERR)
        try:
            found = check_outcome(self._drivers[driver].outcome(self.job(run), end))
            return self._signed_out(self._drivers[driver], found)
        except Exception as exc:  # noqa: BLE001 - a driver may raise anything; its run has failed then
            what = str(exc) if isinstance(exc, AipassError) else f"{type(exc).__name__}: {exc}"
            return Outcome(
                "failed", folder / wire.STDOUT, reason=f"driver `{driver}` could not judge the run: {what}"
            )

    def _signed_out(self, driver: Driver, outcome: Outcome) -> Outcome:
        """Add to the reason of a fault that the CLI is not signed in, if no account of it exists.

        A key that a person exports after the engine's start does not reach the engine, so the advice includes a restart.
        """
        accounts = getattr(driver, "accounts", ())
        if outcome.fault is None or not accounts or signed_in_by(accounts, self._environ):
            return outcome
        hint = f"the engine was started without a sign-in of `{driver.name}`: {how_to_sign_in(driver)}, then `aipass down` and `aipass up --detach`"
        return replace(outcome, reason=f"{outcome.reason}; {hint}" if outcome.reason else hint)

    def _session(self, run: Row) -> str | None:
        """The session id from the output of an interrupted run, if its driver can find one.

        The next attempt continues it.
        """
        find = getattr(self._drivers.get(run["driver"]), "session", None)
        if find is None:
            return None
        try:
            found = find(self.layout.run(run["id"]) / wire.STDOUT)
        except Exception as exc:  # noqa: BLE001 - a driver may raise anything; then the next attempt starts afresh
            logger.warning("a driver could not find the session", run=run["id"], error=str(exc))
            return None
        return found if isinstance(found, str) and SESSION.fullmatch(found) else None

    def prune(self, before: float) -> int:
        """Remove folders of runs, checks and quarantined files older than `before` (seconds since the epoch).

        Returns how many were removed.
        """
        remover, quarantine, after = self._core.remover, self.layout.quarantine, 0
        removed = remover.prune(self.layout.state / "checks", before)
        removed += remover.prune(quarantine / "handover", before)
        for path in quarantine.glob("run-*"):
            removed += path.lstat().st_mtime < before and remover.remove(path)
        # In pages: a ledger of years has many runs, and only a few of them still have a folder.
        while rows := self._ledger.all("old_runs", {"time": before, "after": after, "limit": 500}):
            for row in rows:
                after = row["id"]
                folder = self.layout.run(row["id"])
                if folder.is_dir():
                    removed += remover.remove(folder)
        return removed

    def _row(self, name: str, number: int) -> Row:
        row = self._ledger.one(name, {"id": number})
        assert row is not None, f"no {name} {number}"
        return row


def _furnished(hook: RunHook, row: Row, folder: Path) -> Mapping[str, str]:
    """The environment variables that a feature adds to a run.

    Any exception of its hook becomes an AipassError with its name.
    """
    try:
        return hook.furnish(row, folder)
    except (AipassError, OSError):
        raise
    except Exception as exc:
        raise AipassError(f"{type(hook).__name__}.furnish raised {type(exc).__name__}: {exc}") from exc


def _program(name: str, path: str, job: Job) -> str:
    """The path of a run's program. Raises AipassError if it is only in the tree and the configuration does not name it there."""
    found = programs.for_run(name, path, job.root)
    # An agent could place a program of the CLI's name in a folder of the tree that is on PATH, and so run as another agent.
    if (
        job.settings.command is None
        and os.path.dirname(found)
        and programs.is_agents(os.path.realpath(found), str(job.root))
    ):
        raise AipassError(
            f"`{name}` is only found in {os.path.dirname(found)}, where agents may write; install it outside the repository"
        )
    return found


def _read_text(path: Path) -> str:
    """A file's text; empty if it cannot be read."""
    try:
        with held.open_regular(path) as file:
            return file.read(MAX_ANSWER_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
