"""Carries out in the world what the ledger has recorded. Everything here may be done a second time after a crash."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from aipass import ground, programs, request
from aipass.dispatch import brief, environment, shares
from aipass.dispatch.driver import (
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
from aipass.errors import AipassError
from aipass.event import iso, printable
from aipass.graveyard import Graveyard
from aipass.layout import REJECTED, RUN_FOLDER
from aipass.plan.reserved import check_name
from aipass.sources.observation import Identity, identity_of
from aipass.supervisor import held, wire
from aipass.supervisor.fence.prewrite import TERRITORY
from aipass.supervisor.spawn import STOP_WAITS_S
from aipass.talk import letter
from aipass.talk.postbox import MAIL
from aipass.trinity import sessions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aipass.config import Config
    from aipass.dispatch.driver import Driver
    from aipass.git.desk import CheckAsked
    from aipass.layout import Layout
    from aipass.ledger import Ledger, Row
    from aipass.plan.model import Phase

logger = structlog.get_logger("aipass")

RESULT = "result.json"
CHECK_TIMEOUT_S = 3600.0
#: At a run's end so many of its requests, and so many bytes of them, are looked through at once.
AT_LAST_FILES, AT_LAST_BYTES = 1000, 20_000_000
#: Of one run's unusable requests so many are kept.
MOST_SET_ASIDE = 100
PROMPT_HALF = f".{wire.PROMPT}.tmp"


class Runner(Protocol):
    """Who starts and stops processes: the supervisors, or a script in tests."""

    def start_run(self, message: dict[str, Any]) -> None:
        """Have a run started."""
        ...

    def stop_run(self, run: int, why: str, reason: str) -> None:
        """Have a run stopped."""
        ...

    def adopt(self, run: int, agent: str) -> None:
        """Ask what became of a run."""
        ...

    def set_territory(self, message: dict[str, Any]) -> None:
        """Say who owns what from now on."""
        ...

    def end_lockers(self, files: Iterable[Path]) -> None:
        """Have processes of runs ended that hold a lock on one of these files."""
        ...


class World:
    """Files and processes of one root."""

    def __init__(self, layout: Layout, ledger: Ledger, runner: Runner, environ: Mapping[str, str]) -> None:
        self.layout, self._ledger, self._runner = layout, ledger, runner
        self._environ = dict(environ)
        self.graves = Graveyard(layout)
        self._base: tuple[tuple[str, ...] | None, dict[str, str]] | None = None
        self.stop_waits_s = STOP_WAITS_S
        #: How many unusable requests of a run were set aside.
        self._set_aside: dict[int, int] = {}
        #: Answers that were written, with the run that they are of, and what tells them from what others put there.
        self._answers: dict[str, tuple[int, Identity]] = {}
        # An older supervisor may still answer what the last engine asked.
        self._serial = time.time_ns()

    def end_lockers(self, files: Iterable[Path]) -> None:
        """Have processes of runs ended that hold a lock on one of these files."""
        self._runner.end_lockers(files)

    # -- runs ------------------------------------------------------------------------------------------------------

    def start(self, run: int, config: Config, drivers: Mapping[str, Driver]) -> dict[str, Any] | None:
        """Prepare a run's folder and have it started; for a start that fails here, its end as a supervisor would tell it."""
        row = self._row("run", run)
        folder = self.layout.run(run)
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            self.layout.run_spool(run).mkdir(exist_ok=True, mode=0o700)
            (folder / MAIL).mkdir(exist_ok=True, mode=0o700)
            for letter_ in self._ledger.all(
                "unread", {"recipient": row["agent"], "limit": letter.MOST_WAITING}
            ):
                if letter_["shown"] != run:
                    self.put_mail(run, letter_["id"])
            job = self.job(row, config, drivers)
            # By rename: after a crash this is done again, perhaps while the run is just opening it.
            with open(
                held.fresh(folder / PROMPT_HALF), "w", encoding="utf-8", errors="replace", newline=""
            ) as file:
                file.write(job.prompt)
            os.replace(folder / PROMPT_HALF, folder / wire.PROMPT)
            home = self.layout.root / config.home(job.agent)
            held.make_folders(home, self.layout.root, mode=0o777)
            job.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            # As it was chosen; the configuration may say another by now, and that is what judges it.
            command = check_command(drivers[row["driver"]].command(job))
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
                "AIPASS_MAIL": str(folder / MAIL),
            }
            layers = ground.active(config)
            stands = ground.of_run(self.layout, config, job, command, layers) if any(layers) else None
            if stands is not None:
                row = self._row("dispatch", job.dispatch)
                stands |= {"plan": row["plan"], "phase": row["phase"]}
                caches = ground.cache(self.layout, job.agent)
                own |= ground.environment(caches, stands["tmp"], folder, fence=layers.fence)
            base = self._inherited(config.sandbox.env)
            env = environment.compose(base, self._environ, job.settings, command.env, own)
            argv = [str(word) for word in command.argv]
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

    def said(self, dispatch: int) -> str:
        """What a dispatch's last run said at its end, as far as it is short; empty where that is nothing."""
        runs = self._ledger.all("runs_of", {"dispatch": dispatch})
        found = self._result(runs[-1]["id"]).get("answer") if runs else None
        return sessions.words(Path(found["file"]) if isinstance(found, dict) else found)

    def put_mail(self, run: int, message: int) -> None:
        """Let a run that lives find a message; a second time changes nothing."""
        row = self._ledger.one("message", {"id": message})
        place = self.layout.run(run) / MAIL
        if row is not None and not (place / f"{message}.md").exists():
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            held.write_atomic(place / f"{message}.md", letter.whole(row))

    def file_mail(self, recipient: str, message: int) -> None:
        """Let people see a message as a file, whomever it is to. Nothing reads it there."""
        row = self._ledger.one("message", {"id": message})
        if row is not None:
            place = self.layout.mail / recipient
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            held.write_atomic(place / f"{message}.md", letter.whole(row))

    def unmail(self, message: int, recipient: str) -> None:
        """Take a message that is to be forgotten from where it lies as a file."""
        (self.layout.mail / recipient / f"{message}.md").unlink(missing_ok=True)
        for path in self.layout.runs.glob(f"*/{MAIL}/{message}.md"):
            path.unlink(missing_ok=True)

    def _inherited(self, allowed: tuple[str, ...] | None) -> dict[str, str]:
        """The part of every run's environment that is the same for all; worked out once."""
        if self._base is None or self._base[0] != allowed:
            self._base = allowed, environment.inherited(self._environ, allowed)
        return self._base[1]

    def job(self, run: Row, config: Config, drivers: Mapping[str, Driver] | None = None) -> Job:
        """What a driver is told about a run; with `drivers` the prompt is made, else it is read as it was made."""
        dispatch = self._row("dispatch", run["dispatch"])
        settings = config.agents[run["agent"]]
        session, used = self._conversation(dispatch, run["driver"])
        if drivers is None:
            text = _read_text(self.layout.run(run["id"]) / wire.PROMPT)
        else:
            work = brief.Work(dispatch, run["id"], dispatch["attempts"], session is not None)
            text = brief.whole(self._ledger, self.layout, config, drivers.get(run["driver"]), work)
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
            any(ground.active(config)),
            session,
            used,
            Path(ground.temporary(self.layout, run["id"])) if any(ground.active(config)) else None,
        )

    def _conversation(self, dispatch: Row, driver: str) -> tuple[str | None, Usage | None]:
        """What a dispatch goes on with, and what that has used so far; another driver's conversation is none."""
        if dispatch["session"] is None:
            return None, None
        used: list[Usage] = []
        row: Row | None = dispatch
        while row is not None:
            runs = self._ledger.all("runs_of", {"dispatch": row["id"]})
            ended = [run for run in runs if run["state"] == "ended"]
            if ended and ended[-1]["driver"] != driver:
                return None, None
            if row["usage"]:
                used.append(Usage(**json.loads(row["usage"])))
            row = self._ledger.one("dispatch", {"id": row["reply_to"]}) if row["reply_to"] else None
        return dispatch["session"], sum_usage(*used)

    def set_territory(self, table: dict[str, Any], handed: list[dict[str, Any]]) -> None:
        """Let the supervisors know who owns what from now on, and what was handed over by runs that live on."""
        self._serial += 1
        self._runner.set_territory({"serial": self._serial, "table": table, "handed": handed})
        try:
            # For the pre-write hooks of runs without a fence, which only explain.
            held.write_atomic(self.layout.state / TERRITORY, json.dumps(table))
        except OSError as exc:
            logger.error("who owns what cannot be written for hooks", error=str(exc))

    def start_check(self, run: int, plan: str, phase: Phase, config: Config) -> None:
        """Run the checks of a phase, in the fence; what they say stays in `.aipass/checks/<number>`."""
        self._start_check(run, check_name(plan, phase.id), phase.checks, config)

    def _start_check(
        self,
        run: int,
        name: str,
        commands: Sequence[str],
        config: Config,
        *,
        folder: str | None = None,
        timeout_s: float = CHECK_TIMEOUT_S,
    ) -> None:
        """`folder` is where they work and what they may write; left out: the root, and what git ignores there."""
        place = folder or str(self.layout.root)
        own = self.layout.run(run)
        own.mkdir(parents=True, exist_ok=True, mode=0o700)
        script = "exec 2>&1; " + "".join(
            f"echo {shlex.quote(f'$ {one}')}; sh -c {shlex.quote(one)} || exit; " for one in commands
        )
        layers = ground.active(config)
        stands = ground.of_check(self.layout, config, run, layers, folder) if any(layers) else None
        env = dict(self._inherited(config.sandbox.env))
        env |= {"PWD": place, "AIPASS_ROOT": str(self.layout.root), "GIT_OPTIONAL_LOCKS": "0"}
        if folder is not None:
            # A repository around the checkout, which is none, would answer in its place.
            env["GIT_CEILING_DIRECTORIES"] = str(Path(folder).parent)
        if stands is not None:
            env |= ground.environment(Path(stands["tmp"], "cache"), stands["tmp"], own, fence=layers.fence)
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

    def start_merge_check(self, asked: CheckAsked, name: str, config: Config) -> None:
        """Run commands in the fence on a checkout of what a merge would come to; nothing else of the tree is theirs to write."""
        self._start_check(
            asked.run, name, asked.commands, config, folder=asked.folder, timeout_s=config.pr.check_timeout
        )

    def stop(self, run: int, why: str, reason: str) -> None:
        """Have a run's whole tree stopped."""
        self._runner.stop_run(run, why, reason)

    def adopt(self, run: int, agent: str) -> None:
        """Have the supervisors say what became of a run."""
        self._runner.adopt(run, agent)

    def verdict(
        self, run: Row, message: Mapping[str, Any], config: Config, drivers: Mapping[str, Driver]
    ) -> Outcome:
        """What an ended run means, written to its folder as `result.json`."""
        outcome = self._judge(run, message, config, drivers)
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
            # That it ended is worth more than what it said.
            logger.error("a run's result cannot be written", run=run["id"], error=str(exc))
        return outcome

    def _judge(
        self, run: Row, message: Mapping[str, Any], config: Config, drivers: Mapping[str, Driver]
    ) -> Outcome:
        ended = str(message["outcome"])
        if ended != "exited":
            return Outcome(ended, reason=message.get("reason"), session=self._session(run, config, drivers))
        folder = self.layout.run(run["id"])
        settings = config.agents.get(run["agent"])
        driver = run["driver"]  # as it was started; the configuration may say another by now
        if settings is None or driver not in drivers:
            return Outcome(
                "failed",
                folder / wire.STDOUT,
                reason="its agent or driver is not configured any more, so nobody can say what its output means",
            )
        end = Exit(message.get("exit"), message.get("signal"), folder / wire.STDOUT, folder / wire.STDERR)
        try:
            return self._signed_out(
                drivers[driver], check_outcome(drivers[driver].outcome(self.job(run, config), end))
            )
        except Exception as exc:  # noqa: BLE001 - a driver may raise anything; its run has failed then
            what = str(exc) if isinstance(exc, AipassError) else f"{type(exc).__name__}: {exc}"
            return Outcome(
                "failed", folder / wire.STDOUT, reason=f"driver `{driver}` could not judge the run: {what}"
            )

    def _signed_out(self, driver: Driver, outcome: Outcome) -> Outcome:
        """Where nothing worked and nothing signs the CLI in, the reason says so: a key that is exported later is not the engine's."""
        accounts = getattr(driver, "accounts", ())
        if outcome.fault is None or not accounts or signed_in_by(accounts, self._environ):
            return outcome
        hint = f"the engine was started without a sign-in of `{driver.name}`: {how_to_sign_in(driver)}, then `aipass down` and `aipass up --detach`"
        return replace(outcome, reason=f"{outcome.reason}; {hint}" if outcome.reason else hint)

    def _session(self, run: Row, config: Config, drivers: Mapping[str, Driver]) -> str | None:
        """What a run that was cut off had called its conversation, as far as its driver can tell."""
        del config
        find = getattr(drivers.get(run["driver"]), "session", None)
        if find is None:
            return None
        try:
            found = find(self.layout.run(run["id"]) / wire.STDOUT)
        except Exception as exc:  # noqa: BLE001 - a driver may raise anything; then the next attempt starts afresh
            logger.warning("a driver could not find the session", run=run["id"], error=str(exc))
            return None
        return found if isinstance(found, str) and SESSION.fullmatch(found) else None

    def read_at_last(self, run: int) -> set[int]:
        """Messages that a run says to have read, in requests that lie in its spool folder still; of so many that somebody waits."""
        found: set[int] = set()
        left = AT_LAST_BYTES
        try:
            with held.folder(self.layout.run_spool(run)) as folder:
                names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))[:AT_LAST_FILES]
                for name in names:
                    try:
                        data = held.read_in(folder, name, min(left, request.MAX_REQUEST_BYTES))
                        left -= len(data)
                        asked = json.loads(data)
                        if asked["verb"] == "read":
                            found.update(one for one in asked["ids"] if isinstance(one, int))
                    except (OSError, ValueError, TypeError, KeyError, RecursionError):
                        continue  # whoever takes the requests says what is wrong with it
        except OSError:
            pass  # it is gone, or the agent has put something else in its place
        return found

    def close_spool(self, run: int) -> None:
        """Remove an ended run's spool folder, once all requests in it are consumed: the last that is closes it.

        What is no request by its name never will be one: half a request, or whatever the agent kept there.
        """
        place = self.layout.run_spool(run)
        try:
            with held.folder(place) as folder, os.scandir(folder) as entries:
                # Who leaves more than that besides has hidden the rest himself.
                if any(
                    request.FILE.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False)
                    for entry in islice(entries, MOST_LOOKED_AT)
                ):
                    return
        except FileNotFoundError:
            return
        except OSError:
            pass  # closed to its owner: what is in it is nobody's request
        if not self.graves.bury(place):
            logger.error("a spool folder cannot be removed", path=str(place))

    def tidy(self) -> None:
        """Remove the spool folders of runs that ended while nobody looked, and go on with what was being removed."""
        self.graves.sweep()
        for folder in self.layout.spool.glob("run-*"):
            match = RUN_FOLDER.fullmatch(folder.name)
            row = self._ledger.one("run", {"id": int(match[1])}) if match else None
            if row is not None and row["state"] == "ended":
                self.close_spool(row["id"])

    # -- the inbox -------------------------------------------------------------------------------------------------

    def take(self, event: int, dispatch: int, path: str, identity: str | None) -> str:
        """Move a handed-in file into its dispatch's folder, where it is kept; returns what became of it.

        A file that changed since it was seen stays: its new version is a request of its own.
        """
        source = self.layout.root / path
        about = next(
            (
                row["file"]
                for row in self._ledger.all("senders", {"dispatch": dispatch})
                if row["event"] == event and row["file"]
            ),
            None,
        )
        if about is None:
            return "it was handed in twice"
        told = json.loads(about)
        target, digest = self.layout.root / told["path"], told.get("sha256")
        held.make_folders(target.parent, self.layout.state)
        try:
            with held.above(source) as (folder, name), held.above(target) as (kept, new):
                if not held.exists(kept, new):
                    if not _is_same(folder, name, identity, digest):
                        return _CHANGED
                    held.move(folder, name, kept, new)
                    if not _is_same(kept, new, identity, digest):
                        # Saved anew between the look and the move: back it goes, unless a still newer one is there.
                        held.try_move(kept, new, folder, name)
                        return _CHANGED
                held.remove(folder, rejection_beside(source).name)
        except FileNotFoundError:
            return "kept" if target.exists() else "the file was taken away before it could be kept"
        return "kept"

    def reject(self, path: str, reason: str, remedy: str) -> str:
        """Say beside a file why it was not used."""
        note = rejection_beside(self.layout.root / path)
        if not os.path.lexists(self.layout.root / path):
            return "it is gone already"
        text = json.dumps({"file": printable(path), "reason": reason, "remedy": remedy}, indent=2) + "\n"
        try:
            if held.read(note, len(text) * 4 + 4) == text.encode():
                return f"rejected: {reason}"  # it says so already: a reload looks at all of them again
        except OSError:
            pass
        held.write_atomic(note, text)
        if not os.path.lexists(self.layout.root / path):
            # Taken away meanwhile: a note beside nothing would puzzle whoever finds it.
            note.unlink(missing_ok=True)
            return "it is gone already"
        return f"rejected: {reason}"

    # -- the spool -------------------------------------------------------------------------------------------------

    def consume(self, path: str, run: int | None) -> None:
        """Remove a request that is recorded."""
        self.graves.bury(self.layout.spool / path)
        if (
            run is not None
            and (row := self._ledger.one("run", {"id": run})) is not None
            and row["state"] == "ended"
        ):
            self.close_spool(run)

    def set_aside(self, path: str, reason: str, event: int) -> None:
        """Keep a spool file that cannot be used, with the reason beside it."""
        source = self.layout.spool / path
        place = self.layout.quarantine / "spool"
        held.make_folders(place, self.layout.state)
        target = place / fitting(f"{event}-{source.name}", REJECTED).removesuffix(REJECTED)
        run = RUN_FOLDER.fullmatch(path.rpartition("/")[0])
        if run is not None:
            number = self._set_aside[int(run[1])] = self._set_aside.get(int(run[1]), 0) + 1
            if number > MOST_SET_ASIDE:
                self.graves.bury(
                    source
                )  # its event says what it was; a run that floods its spool fills no disk
                return
        # The note first: killed in between, the file is still where the next engine finds it, and never without its reason.
        held.write_atomic(
            rejection_beside(target), json.dumps({"file": printable(path), "reason": reason}, indent=2) + "\n"
        )
        with held.above(source) as (folder, name), held.above(target) as (kept, new):
            held.try_move(folder, name, kept, new)

    # -- answers ---------------------------------------------------------------------------------------------------

    def deliver(self, dispatch: int) -> str | None:
        """Write the answer for everybody who asked; returns the first one's path, relative to the root."""
        row = self._ledger.one("dispatch", {"id": dispatch})
        if row is None:
            raise AipassError(f"there is no dispatch {dispatch} to answer")
        senders = self._ledger.all("senders", {"dispatch": dispatch})
        runs = self._ledger.all("runs_of", {"dispatch": dispatch})
        # What an earlier try said is not the answer to this one.
        result = self._result(runs[-1]["id"]) if runs and row["tries"] else {}
        folder = self.layout.outbox / row["agent"]
        held.make_folders(folder, self.layout.root, mode=0o777)
        first = None
        for stem in dict.fromkeys(sender["stem"] for sender in senders):
            answer = folder / fitting(stem, f".{dispatch}.md")
            relative = str(answer.relative_to(self.layout.root))
            record = {
                "dispatch": dispatch,
                "agent": row["agent"],
                "state": row["state"],
                "subject": row["subject"],
                "senders": [sender["sender"] for sender in senders],
                "started": iso(row["started"]),
                "finished": iso(row["finished"]),
                "exit": row["exit"],
                "answer": printable(relative),
                "reason": row["reason"],
                "usage": json.loads(row["usage"]) if row["usage"] else None,
            }
            # The record first: whoever waits for the answer finds it there.
            beside = answer.with_name(answer.name.removesuffix(".md") + ".json")
            _put(beside, (json.dumps(record, indent=2) + "\n").encode())
            self._put_answer(answer, row, result)
            if runs:
                self._remember(runs[-1]["id"], beside, answer)
            first = first or relative
        return first

    def _remember(self, run: int, *paths: Path) -> None:
        for path in paths:
            self._answers[str(path.relative_to(self.layout.root))] = run, identity_of(os.lstat(path))
        while len(self._answers) > MOST_ANSWERS:
            self._answers.pop(next(iter(self._answers)))

    def answered(self, path: str) -> int | None:
        """The run that a file of the outbox is the answer of, as it was written; a chain goes on through it."""
        run, identity = self._answers.get(path, (None, None))
        try:
            return (
                run
                if run is not None and identity_of(os.lstat(self.layout.root / path)) == identity
                else None
            )
        except OSError:
            return run

    def _put_answer(self, path: Path, row: Row, result: Mapping[str, Any]) -> None:
        answer = result.get("answer") or ""
        if row["state"] != "succeeded":
            said = (
                _read_end(Path(answer["file"]))
                if isinstance(answer, dict)
                else answer.encode("utf-8", "replace")
            )
            _put(
                path,
                f"# {row['state'].capitalize()}\n\n{row['reason'] or 'No reason is known.'}\n".encode(
                    "utf-8", "replace"
                )
                + (b"\n---\n\n" + said if said.strip() else b""),
            )
        elif isinstance(answer, dict):
            _put_copy(path, Path(answer["file"]))
        else:
            _put(path, answer.encode("utf-8", "replace"))

    def _result(self, run: int) -> dict[str, Any]:
        try:
            found = json.loads(held.read(self.layout.run(run) / RESULT, 2 * MAX_ANSWER_BYTES))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def prune(self, before: float) -> int:
        """Remove the folders of runs and checks of before a moment (seconds since the epoch); returns how many."""
        removed, after = 0, 0
        quarantine = self.layout.quarantine
        tops = [
            self.layout.state / "checks",
            self.layout.merges,
            quarantine / "foreign",
            quarantine / "spool",
        ]
        tops += [quarantine / "handover"]
        for by_agent in (quarantine / "trinity", self.layout.mail):
            tops += by_agent.iterdir() if by_agent.is_dir() else ()
        runs = [path for path in quarantine.glob("run-*") if path.lstat().st_mtime < before]
        old = (
            path for top in tops if top.is_dir() for path in top.iterdir() if path.lstat().st_mtime < before
        )
        for path in (*runs, *old):
            removed += self.graves.bury(path)
        while rows := self._ledger.all("old_runs", {"time": before, "after": after, "limit": 500}):
            for row in rows:
                after = row["id"]
                folder = self.layout.run(row["id"])
                if folder.is_dir():
                    removed += self.graves.bury(folder)
        return removed

    def _row(self, name: str, number: int) -> Row:
        row = self._ledger.one(name, {"id": number})
        assert row is not None, f"no {name} {number}"
        return row


def _program(name: str, path: str, job: Job) -> str:
    """The program of a run as it is started. Raises AipassError where only the tree has it, and nobody named it there."""
    found = programs.for_run(name, path, job.root)
    if (
        job.settings.command is None
        and os.path.dirname(found)
        and programs.is_agents(os.path.realpath(found), str(job.root))
    ):
        raise AipassError(
            f"`{name}` is only found in {os.path.dirname(found)}, where agents may write; install it outside the repository"
        )
    return found


# The longest name on common filesystems is 255 bytes; a temporary name beside it needs some of them.
MAX_NAME_BYTES = 230


def fitting(stem: str, suffix: str) -> str:
    """`stem` + `suffix` as a file's name; a stem that is too long is cut and keeps a hash of the whole."""
    data = os.fsencode(stem)
    room = MAX_NAME_BYTES - len(os.fsencode(suffix))
    if len(data) > room:
        stem = (
            os.fsdecode(data[: room - 9]).encode("utf-8", "ignore").decode()
            + "-"
            + hashlib.sha256(data).hexdigest()[:8]
        )
    return stem + suffix


def rejection_beside(path: Path) -> Path:
    """Where the note lies that says why a file was not used."""
    return path.with_name(fitting(path.name, REJECTED))


# A failed agent's output goes into its answer as far as a person reads.
SHOWN_BYTES = 20_000
# No answer that anybody reads is longer; a run's output may be anything, and have holes that are no bytes on the disk.
MAX_ANSWER_BYTES = 20_000_000
#: Of an ended run's spool folder, while requests in it are still to be read.
MOST_LOOKED_AT = 2000
#: So many answers are known as such; they are seen within moments.
MOST_ANSWERS = 2000


def _is_same(folder: int, name: str, identity: str | None, digest: str | None) -> bool:
    """Whether a file is the version that was seen. Its time may have been set since: then its content says it."""
    found = identity_of(os.stat(name, dir_fd=folder, follow_symlinks=False))
    if identity is None or identity == str(found):
        return True
    if digest is None or identity.split(":")[1] != str(found.size):
        return False
    hashed = hashlib.sha256()
    with held.open_regular_in(folder, name) as file:
        while piece := file.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest() == digest


_CHANGED = "it changed meanwhile; its new version is a request of its own"


def _read_end(path: Path) -> bytes:
    try:
        return held.read_end(path, SHOWN_BYTES)
    except OSError:
        return b""


def _put(path: Path, data: bytes) -> None:
    """Write a file whole, durably and by rename."""
    with held.replacing(path) as file:
        file.write(data)


def _put_copy(path: Path, source: Path) -> None:
    with held.replacing(path) as file:
        try:
            with held.open_regular(source) as content:
                if not held.copy(content, file, MAX_ANSWER_BYTES):
                    file.write(
                        f"\n\n[cut at {MAX_ANSWER_BYTES // 1_000_000} MB; all of it is in {source}]\n".encode()
                    )
        except OSError:
            pass  # somebody removed or replaced it: the answer is empty, its record says how it ended


def _read_text(path: Path) -> str:
    """A file's text; empty where there is none."""
    try:
        with held.open_regular(path) as file:
            return file.read(MAX_ANSWER_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
