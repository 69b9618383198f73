"""The engine's side of runs: begins them, asks after them, and turns what supervisors report into facts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass.errors import AipassError
from aipass.event import Fact, iso, printable
from aipass.layout import CHECKS, MERGES
from aipass.sources.runs import Report
from aipass.trinity import sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aipass.authors import Authors
    from aipass.clock import Clock
    from aipass.dispatch.dispatcher import Dispatcher, Ended
    from aipass.dispatch.driver import Driver, Outcome
    from aipass.ledger import Ledger, Row
    from aipass.plans import Plans
    from aipass.sources.clock import Timers
    from aipass.step import Step
    from aipass.talk.postbox import Postbox
    from aipass.talk.talk import Talk
    from aipass.work import Work
    from aipass.world import World

logger = structlog.get_logger("aipass")

# A supervisor that cannot be reached, or an agent's lock that is not free yet, is tried again after this.
TRY_AGAIN_S = 0.5
START, ADOPT = "start:", "adopt"
# An agent that is refused so often in a row does not understand what it may do.
MANY_REFUSALS = 10
SOURCE = "runs"
#: Ends of a run that show that its driver's limit is over: the model has answered.
PROVES = frozenset(("succeeded", "failed", "blocked"))
#: And ends after which nobody can say that a model has read its prompt.
UNSEEN = frozenset(("start-failed", "lost", "limit", "overload", "afresh"))


class LiveRuns:
    """Runs that the ledger believes to live."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        world: World,
        timers: Timers,
        clock: Clock,
        drivers: Mapping[str, Driver],
        back: Callable[[Report], None],
        authors: Authors,
        plans: Plans,
        work: Work,
        talk: Talk,
        postbox: Postbox | None,
    ) -> None:
        self._ledger, self._dispatcher, self._world, self._timers = ledger, dispatcher, world, timers
        self._clock, self._drivers, self._back = clock, drivers, back
        self._authors, self._plans, self._work = authors, plans, work
        self._talk, self._postbox = talk, postbox
        #: Refusals in a row, and how long the journal was then.
        self._refused: dict[int, tuple[int, int]] = {}

    # -- in the world, after the commit ----------------------------------------------------------------------------

    def begin(self, run: int) -> None:
        """Have a recorded run started; once, however often this is called. One that was told to stop is not begun."""
        row = self._ledger.one("run", {"id": run})
        if row is not None and row["stop"] is not None:
            self._back(Report({"tell": "ended", "run": run, "outcome": "cancelled", "reason": row["stop"]}))
            return
        self._authors.follow(run)
        if self._postbox is not None:
            self._postbox.watch(run)  # before anybody can look into it
        try:
            ended = self._world.start(run, self._dispatcher.config, self._drivers)
        except (OSError, AipassError) as exc:
            # It is recorded, and begun when a supervisor can be reached.
            logger.error("a run cannot be started yet", run=run, error=str(exc))
            self._timers.set(f"{START}{run}", self._clock.now().mono + TRY_AGAIN_S)
            return
        if ended is not None:
            self._back(Report(ended))

    def recall(self) -> None:
        """Read what runs wrote that an engine before did not follow to the end, the oldest run first."""
        for row in self._ledger.all("unfollowed"):
            self._authors.follow(row["id"])
            if row["state"] == "ended":
                self._authors.ended(row["id"], row["finished"])
        self._authors.refresh()

    def adopt_all(self) -> None:
        """Have the supervisors say what became of every run that the ledger believes to live."""
        try:
            for row in self._ledger.all("live_runs"):
                self._authors.follow(row["id"])
                if self._postbox is not None:
                    self._postbox.watch(row["id"])
                self._world.adopt(row["id"], row["agent"])
                if row["stop"] is not None:
                    self._world.stop(row["id"], "cancelled", row["stop"])
            self._plans.adopt_checks()
            self._work.adopt()
        except (OSError, AipassError) as exc:
            logger.error("the supervisor cannot be asked yet", error=str(exc))
            self._timers.set(ADOPT, self._clock.now().mono + TRY_AGAIN_S)

    # -- inside the transaction ------------------------------------------------------------------------------------

    def due(self, step: Step, key: str) -> bool:
        """A timer came due; whether it was one of ours."""
        if key == ADOPT:
            step.effects.append(self.adopt_all)
        elif key.startswith(START):
            row = self._ledger.one("run", {"id": int(key.removeprefix(START))})
            if row is not None and row["state"] == "starting":
                step.effects.append(partial(self.begin, row["id"]))
        else:
            return False
        return True

    def take(self, step: Step, message: dict[str, Any]) -> None:
        """What a supervisor said, as facts. What is said of a run that ended is old news."""
        told = message.get("tell")
        if told == "gone":
            step.effects.append(self.adopt_all)
            return
        if told == "territory":
            return
        if message.get("run", 0) >= MERGES:
            self._work.take_check(message)
            return
        if message.get("run", 0) >= CHECKS:
            self._plans.take_check(step, message)
            return
        row = self._ledger.one("run", {"id": message.get("run", 0)})
        if row is None or row["state"] == "ended":
            return
        if message.get("pid") and told in {"started", "ended"}:
            # Its end may be the first that a new engine hears of a run.
            self._started(step, row, message)
        match told:
            case "stalled":
                step.facts.append(self._fact("run.stalled", row, quiet_s=message["quiet_s"]))
            case "lingering":
                step.facts.append(
                    self._fact(
                        "run.lingering", row, processes=message["processes"], allowed=message["allowed"]
                    )
                )
            case "denied":
                self._denied(step, row, message)
            case "unknown" if row["state"] == "starting":
                step.effects.append(partial(self.begin, row["id"]))
            case "unknown":
                self._ended(step, row, {"run": row["id"], "outcome": "lost", "reason": "its folder is gone"})
            case "kept":
                text = (
                    f"run {row['id']} of {row['agent']} had {printable(message['path'])} open when it was handed over, and "
                    f"it could not be taken away ({message['reason']}): the run is stopped, and what comes next waits for that"
                )
                step.notify(self._ledger, text)
            case "busy":
                logger.warning(
                    "a run cannot start yet", run=row["id"], agent=row["agent"], reason=message.get("reason")
                )
                self._timers.set(f"{START}{row['id']}", step.now.mono + TRY_AGAIN_S)
            case "ended":
                self._ended(step, row, message)

    def _denied(self, step: Step, row: Row, message: dict[str, Any]) -> None:
        """A write that the fence refused, or several of one path in a row."""
        about = {name: message[name] for name in ("operation", "reason", "owner", "count", "pid")}
        if message["path"] in getattr(self._drivers.get(row["driver"]), "habits", ()):
            # Nobody did anything wrong: it is logged, and no notice is given.
            step.facts.append(
                replace(self._fact("write.denied", row, **about, habit=True), path=message["path"])
            )
            return
        fact = self._fact("write.denied", row, **about)
        step.facts.append(replace(fact, path=message["path"]))
        # What it has written since begins a new row.
        wrote = self._authors.length(row["id"])
        before = self._refused.get(row["id"], (0, wrote))
        count = message["count"] + (before[0] if before[1] == wrote else 0)
        self._refused[row["id"]] = count, wrote
        if count - message["count"] < MANY_REFUSALS <= count:
            text = (
                f"run {row['id']} of {row['agent']} was refused {count} writes in a row, "
                f"the last at {printable(message['path'])}: {message['reason']}"
            )
            step.notify(self._ledger, text)

    def _started(self, step: Step, row: Row, message: dict[str, Any]) -> None:
        params = {"id": row["id"], "pid": message["pid"], "started": message["started"]}
        if self._ledger.run("run_started", params):
            step.facts.append(self._fact("run.started", row, pid=message["pid"]))
            self._talk.mail.opened(step, row["id"], row["agent"])
        if row["stop"] is not None and message["tell"] == "started":
            step.effects.append(partial(self._world.stop, row["id"], "cancelled", row["stop"]))

    def _ended(self, step: Step, row: Row, message: dict[str, Any]) -> None:
        self._refused.pop(row["id"], None)
        # An engine may hear of it long after; what a person changed meanwhile is the person's.
        finished = float(message.get("finished") or step.now.wall)
        for path in self._authors.ended(row["id"], finished):
            if self._plans.wants(row["id"], path):
                step.facts.append(Fact("phase.written", SOURCE, path=path, by=row["id"]))
        self._work.ended(step, row["id"], finished)
        files = self._authors.written_by(row["id"])
        verdict = self._world.verdict(row, message, self._dispatcher.config, self._drivers)
        clean = self._talk.keeper.clean
        verdict = replace(verdict, reason=None if verdict.reason is None else clean(verdict.reason))
        if verdict.state in UNSEEN or verdict.fault is not None:
            self._talk.mail.unopened(row["id"])
        # What a CLI ends with may be a question of its own.
        is_question = verdict.state == "blocked"
        asked = self._talk.questions.open_of(row["dispatch"])
        unheard = [] if asked else self._talk.questions.unheard(row, self._world.read_at_last(row["id"]))
        if verdict.state == "succeeded" and (asked or unheard):
            numbers = ", ".join(str(one["id"]) for one in asked or unheard)
            reason = f"it waits for an answer to question {numbers}"
            if unheard:
                reason = f"it goes on with the answer to question {numbers}, which came while it worked"
            verdict = replace(verdict, state="blocked", reason=reason)
        how = {"exit": message.get("exit"), "signal": message.get("signal")}
        ended = self._dispatcher.end(
            row,
            verdict.state,
            verdict.reason,
            step.now,
            again=not self._plans.is_done(row["dispatch"]),
            usage=verdict.usage,
            session=verdict.session,
            resets=verdict.resets,
            fault=verdict.fault,
            finished=finished,
            **how,
        )
        detail: dict[str, Any] = {
            "outcome": ended.outcome,
            "state": ended.state,
            **how,
            "reason": ended.reason,
        }
        detail |= {name: message[name] for name in ("left", "steps", "quarantined") if message.get(name)}
        if ended.retry_in is not None:
            detail["retry_in_s"] = round(ended.retry_in, 3)
        if ended.outcome == "lost":
            step.facts.append(
                self._fact(
                    "run.lost", row, left=message.get("left", []), reason=ended.reason or "nobody saw its end"
                )
            )
        said = clean(sessions.words(verdict.answer)) or ended.reason
        session = sessions.of(row, finished, ended.outcome, sessions.with_questions(said, asked), files)
        self._talk.keeper.ended(step, row, session)
        told = self._fact("run.finished", row, **detail)
        step.facts.append(told)
        if ended.state == "blocked" and is_question:
            self._talk.questions.unasked(step, row, ended.reason or "it does not say why it cannot go on")
        if ended.state == "queued":
            self._plans.hold_back(step, row["dispatch"], told.cause)
        elif ended.state != "blocked":
            step.facts.append(self._dispatcher.finished(row["dispatch"], run=row["id"], cause=told.cause))
        self._look_after(step, row, verdict, ended, told.cause)
        step.effects.append(partial(self._world.close_spool, row["id"]))
        if self._postbox is not None:
            step.effects.append(partial(self._postbox.watch, row["id"], lives=False))

    def _look_after(self, step: Step, row: Row, verdict: Outcome, ended: Ended, cause: int | None) -> None:
        """Pause a driver that has reached a limit, and an agent that fails of one thing again and again."""
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
            text = f"{row['agent']} is paused: its last dispatches all failed of the same: {fault}"
            text += f"; mend that, then `aipass resume {row['agent']}`"
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
