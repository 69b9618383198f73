"""The engine's side of runs: starts them, adopts those of an earlier engine, and turns supervisor reports into facts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass.core.run_hook import RunEnd
from aipass.core.spool_files import SpoolFiles
from aipass.errors import AipassError
from aipass.event import Fact, iso, printable
from aipass.features.dispatch.supervisors import Report
from aipass.features.ownership.feature import OwnershipFeature
from aipass.text.secret import Secrets
from aipass.workspace.crash_report import write_report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.features.dispatch.dispatcher import Dispatcher, Ended
    from aipass.features.dispatch.driver import Driver, Outcome
    from aipass.features.dispatch.launcher import Launcher
    from aipass.ledger import Row

logger = structlog.get_logger("aipass")

# The pause before another try if a supervisor cannot be reached or an agent's lock is not free yet.
TRY_AGAIN_S = 0.5
# The pause after a bug, which another try would most likely meet again, with one crash report each.
BUG_PAUSE_S = 60.0
START, ADOPT = "start", "adopt"
# An agent with this many refused writes in a row does not understand what it may write: a person should know.
MANY_REFUSALS = 10
SOURCE = "runs"
#: Outcomes which show that a driver's limit is over, because the model has answered.
PROVES = frozenset(("succeeded", "failed", "blocked"))


class Runs:
    """Controls the live runs. `begin` and `adopt_all` act after the commit; reports are taken inside the transaction."""

    def __init__(
        self, core: Core, dispatcher: Dispatcher, launcher: Launcher, drivers: Mapping[str, Driver]
    ) -> None:
        self._core, self._ledger, self._timers = core, core.ledger, core.timers
        self._dispatcher, self._launcher, self._drivers = dispatcher, launcher, drivers
        self._spool_files, self._mask = core.need(SpoolFiles), core.need(Secrets).mask
        self._wrote = core.need(OwnershipFeature).authors.length
        #: By run: the number of refused writes in a row, and the length of its journal of writes at the last one.
        self._refused: dict[int, tuple[int, int]] = {}
        #: Features whose commands have ids from a number on, the largest number first.
        self._numbers: list[tuple[int, Callable[[Step, dict[str, Any]], None]]] = []
        core.add_report(Report, self._take)
        core.add_timer(START, self._due)
        core.add_timer(ADOPT, self._adopt_again)
        core.add_idle_check(self._is_idle)

    def add_numbers(self, first: int, take: Callable[[Step, dict[str, Any]], None]) -> None:
        """Pass supervisor messages about ids from `first` on to `take`, up to the next registered number."""
        self._numbers.append((first, take))
        self._numbers.sort(key=lambda one: -one[0])

    def _is_idle(self) -> bool:
        waits = any(key == ADOPT or key.startswith(f"{START}:") for key in self._timers)
        return self._dispatcher.is_idle() and not waits

    # -- in the world, after the commit ----------------------------------------------------------------------------

    def begin(self, run: int) -> None:
        """Start a recorded run; idempotent. A run that is to be stopped is not started, and ends as `cancelled`.

        Raises nothing: if no supervisor can be reached, a timer tries again.
        """
        row = self._ledger.one("run", {"id": run})
        if row is not None and row["stop"] is not None:
            told = {"tell": "ended", "run": run, "outcome": "cancelled", "reason": row["stop"]}
            self._core.post(Report(told))
            return
        try:
            for hook in self._core.run_hooks:
                hook.begins(run)
            ended = self._launcher.start(run)
        except Exception as exc:  # noqa: BLE001 - a plugin may raise anything; its run waits
            if not isinstance(exc, (OSError, AipassError)):
                report = write_report(self._core.layout.crashes, exc, f"run {run} begins")
                logger.error("a bug in aipass, or in a plugin; the run waits", run=run, report=str(report))
                self._timers.set(f"{START}:{run}", self._core.clock.now().mono + BUG_PAUSE_S)
                return
            # The run is in the ledger, so it only starts later.
            logger.error("a run cannot be started yet", run=run, error=str(exc))
            self._timers.set(f"{START}:{run}", self._core.clock.now().mono + TRY_AGAIN_S)
            return
        if ended is not None:
            self._core.post(Report(ended))

    def adopt_all(self) -> None:
        """Ask the supervisors for the state of every live run of the ledger.

        Called at the start, and when a connection ends.
        """
        try:
            for row in self._ledger.all("live_runs"):
                for hook in self._core.run_hooks:
                    hook.begins(row["id"])
                self._launcher.adopt(row["id"], row["agent"])
                # The earlier engine may have ended before its request to stop was sent.
                if row["stop"] is not None:
                    self._launcher.stop(row["id"], "cancelled", row["stop"])
            for hook in self._core.run_hooks:
                hook.adopt()
        except (OSError, AipassError) as exc:
            logger.error("the supervisor cannot be asked yet", error=str(exc))
            self._timers.set(ADOPT, self._core.clock.now().mono + TRY_AGAIN_S)

    # -- inside the transaction ------------------------------------------------------------------------------------

    def choose(self, step: Step) -> None:
        """Record the runs that start now, at the end of a step; their processes start after the commit."""
        for start in self._dispatcher.choose(step.now):
            row = self._ledger.one("run", {"id": start.run})
            assert row is not None
            for hook in self._core.run_hooks:
                hook.before_start(step, row)
            step.starts.append(partial(self.begin, start.run))

    def _due(self, step: Step, rest: str) -> None:
        row = self._ledger.one("run", {"id": int(rest)})
        # The supervisor may have reported it as started, or ended, since the timer was set.
        if row is not None and row["state"] == "starting":
            step.effects.append(partial(self.begin, row["id"]))

    def _adopt_again(self, step: Step, rest: str) -> None:
        del rest
        step.effects.append(self.adopt_all)

    def _take(self, step: Step, report: Report) -> None:
        """Turn a supervisor's message into facts. Messages for runs that have ended are ignored.

        Supervisors may repeat them.
        """
        message = report.message
        told = message.get("tell")
        if told == "unlocked":
            self._unlocked(step, message)
            return
        if told == "gone":
            step.effects.append(self.adopt_all)
            return
        # The confirmation of an ownership table concerns only `Supervisors`, which has handled it.
        if told == "territory":
            return
        for first, take in self._numbers:
            if message.get("run", 0) >= first:
                take(step, message)
                return
        row = self._ledger.one("run", {"id": message.get("run", 0)})
        if row is None or row["state"] == "ended":
            return
        if message.get("pid") and told in {"started", "ended"}:
            # A new engine may receive the end of a run whose start was never reported to an engine.
            self._started(step, row, message)
        match told:
            case "stalled":
                step.facts.append(self._fact("run.stalled", row, quiet_s=message["quiet_s"]))
            case "lingering":
                left = {"processes": message["processes"], "allowed": message["allowed"]}
                step.facts.append(self._fact("run.lingering", row, **left))
            case "denied":
                self._denied(step, row, message)
            # The earlier engine crashed between the commit and the start.
            case "unknown" if row["state"] == "starting":
                step.effects.append(partial(self.begin, row["id"]))
            case "unknown":
                self._ended(step, row, {"run": row["id"], "outcome": "lost", "reason": "its folder is gone"})
            case "kept":
                text = (
                    f"run {row['id']} of {row['agent']} had {printable(message['path'])} open when the file was handed over, and "
                    f"the run's access could not be removed ({message['reason']}): the run is stopped, and new runs wait for its end"
                )
                step.notify(self._ledger, text)
            case "busy":
                logger.warning(
                    "a run cannot start yet", run=row["id"], agent=row["agent"], reason=message.get("reason")
                )
                self._timers.set(f"{START}:{row['id']}", step.now.mono + TRY_AGAIN_S)
            case "ended":
                self._ended(step, row, message)

    def _unlocked(self, step: Step, message: dict[str, Any]) -> None:
        """Report processes of runs that were ended because they locked the ledger's file."""
        for locker in message["ended"]:
            about = f"process {locker['pid']} of run {locker['run'] or '?'} ({printable(locker['command'])})"
            text = f"{about} had a lock on the ledger and blocked the engine; the process was ended"
            detail = {"text": text}
            step.facts.append(Fact("ledger.locked", "engine", ref=locker["run"] or None, detail=detail))
            step.notify(self._ledger, text)

    def _denied(self, step: Step, row: Row, message: dict[str, Any]) -> None:
        """Report a write that the fence refused; `count` in the message: how often in a row for the same path."""
        about = {name: message[name] for name in ("operation", "reason", "owner", "count", "pid")}
        if message["path"] in getattr(self._drivers.get(row["driver"]), "habits", ()):
            # The CLI always tries this write and works without it, so it must not add to the row that ends in a notice.
            step.facts.append(
                replace(self._fact("write.denied", row, **about, habit=True), path=message["path"])
            )
            return
        fact = self._fact("write.denied", row, **about)
        step.facts.append(replace(fact, path=message["path"]))
        # A successful write in between ends the row: the agent has understood.
        wrote = self._wrote(row["id"])
        before = self._refused.get(row["id"], (0, wrote))
        count = message["count"] + (before[0] if before[1] == wrote else 0)
        self._refused[row["id"]] = count, wrote
        # One notice for each row, when its length passes the threshold.
        if count - message["count"] < MANY_REFUSALS <= count:
            text = (
                f"run {row['id']} of {row['agent']} was refused {count} writes in a row, "
                f"the last at {printable(message['path'])}: {message['reason']}"
            )
            step.notify(self._ledger, text)

    def _started(self, step: Step, row: Row, message: dict[str, Any]) -> None:
        params = {"id": row["id"], "pid": message["pid"], "started": message["started"]}
        # The statement changes only a run in state `starting`, so a repeated report makes no second event.
        if self._ledger.run("run_started", params):
            step.facts.append(self._fact("run.started", row, pid=message["pid"]))
            for hook in self._core.run_hooks:
                hook.started(step, row)
        # The request to stop may have come before the supervisor knew the run.
        if row["stop"] is not None and message["tell"] == "started":
            step.effects.append(partial(self._launcher.stop, row["id"], "cancelled", row["stop"]))

    def _ended(self, step: Step, row: Row, message: dict[str, Any]) -> None:
        self._refused.pop(row["id"], None)
        hooks = self._core.run_hooks
        # The report may come hours later, to the next engine; a person's changes since then must not count as the run's.
        finished = float(message.get("finished") or step.now.wall)
        # The order of the hooks' methods is a contract: `over` reads the last writes, on which `judge` and `ended` rely.
        for hook in hooks:
            hook.over(step, row, finished)
        verdict = outcome = self._launcher.verdict(row, message)
        for hook in hooks:
            outcome = hook.judge(step, row, outcome)
        if outcome.reason is not None:
            # The reason may quote the CLI's output, and it is stored in events and shown to other agents.
            outcome = replace(outcome, reason=self._mask(outcome.reason)[0])
        ended = self._record(step, row, message, outcome, finished)
        detail = {"outcome": ended.outcome, "state": ended.state, "exit": message.get("exit")}
        detail |= {"signal": message.get("signal"), "reason": ended.reason}
        detail |= {name: message[name] for name in ("left", "steps", "quarantined") if message.get(name)}
        if ended.retry_in is not None:
            detail["retry_in_s"] = round(ended.retry_in, 3)
        if ended.outcome == "lost":
            reason = ended.reason or "its end was not observed"
            step.facts.append(self._fact("run.lost", row, left=message.get("left", []), reason=reason))
        told = self._fact("run.finished", row, **detail)
        step.facts.append(told)
        about = (ended.state, ended.outcome, ended.reason, finished, told.cause)
        end = RunEnd(row, verdict, outcome, *about)
        for hook in hooks:
            hook.ended(step, end)
        if ended.state == "queued":
            for hook in hooks:
                hook.stays(step, end)
        elif ended.state != "blocked":
            step.facts.append(self._dispatcher.finished(row["dispatch"], run=row["id"], cause=told.cause))
        self._look_after(step, row, outcome, ended, told.cause)
        step.effects.append(partial(self._spool_files.close, row["id"]))

    def _record(
        self, step: Step, row: Row, message: dict[str, Any], outcome: Outcome, finished: float
    ) -> Ended:
        """Record the outcome of the run and the new state of its dispatch.

        Any hook's `may_retry` can forbid another attempt.
        """
        return self._dispatcher.end(
            row,
            outcome.state,
            outcome.reason,
            step.now,
            again=all(hook.may_retry(row) for hook in self._core.run_hooks),
            usage=outcome.usage,
            session=outcome.session,
            resets=outcome.resets,
            fault=outcome.fault,
            finished=finished,
            exit=message.get("exit"),
            signal=message.get("signal"),
        )

    def _look_after(self, step: Step, row: Row, verdict: Outcome, ended: Ended, cause: int | None) -> None:
        """Pause a driver that has reached a limit, and an agent whose dispatches fail repeatedly with one fault.

        End a limit that is over.
        """
        driver, now = row["driver"], step.now
        proves = verdict.state in PROVES
        if self._dispatcher.pauses.ended(driver, row["id"], now, proves=proves):
            step.facts.append(Fact("driver.resumed", "engine", ref=driver, cause=cause))
        if ended.limits:
            until = iso(self._dispatcher.pauses.until(driver, now))
            detail = {"reason": verdict.reason, "until": until}
            step.facts.append(Fact("driver.paused", "engine", ref=driver, cause=cause, detail=detail))
        for dispatch in self._dispatcher.fail_limited(driver, now):
            step.facts.append(self._dispatcher.finished(dispatch, cause=cause))
        if ended.state != "failed":
            return
        fault = self._dispatcher.alike(row["agent"], now)
        if fault is not None and self._dispatcher.pauses.add("agent", row["agent"], fault, now):
            detail = {"reason": fault}
            step.facts.append(Fact("agent.paused", "engine", ref=row["agent"], cause=cause, detail=detail))
            text = f"{row['agent']} is paused: its last dispatches all failed with the same fault: {fault}"
            text += f"; fix that, then `aipass resume {row['agent']}`"
            step.notify(
                self._ledger,
                text,
                about=f"agent {row['agent']}",
                agent=row["agent"],
                dispatch=row["dispatch"],
            )

    def _fact(self, kind: str, row: Row, **detail: object) -> Fact:
        dispatch = self._ledger.one("dispatch", {"id": row["dispatch"]})
        cause = None if dispatch is None else dispatch["cause"]
        about = {"agent": row["agent"], "dispatch": row["dispatch"], **detail}
        return Fact(kind, SOURCE, ref=str(row["id"]), by=row["id"], cause=cause, detail=about)
