"""The engine: one loop, one queue, one heap of timers. `step` is deterministic; all else only waits for it.

A step takes whatever waits, records each fact with all that handlers want of it in one transaction, decides what
starts, commits, and only then lets the world be touched. What that led to comes back through the same queue.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import traceback
from collections import deque
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass import action as act
from aipass import advice, confine, ground, guarded
from aipass import config as configuration
from aipass.alarms import Alarms
from aipass.authors import SWEEP_S, Authors
from aipass.budget import Budget, cost
from aipass.carry import DELIVER, WAKE, Carrier
from aipass.config_quick import IN_FORCE
from aipass.crash import write_report
from aipass.dispatch.dispatcher import RETRY, Dispatcher
from aipass.dispatch.rate import HOUR_S, Hourly
from aipass.errors import EXIT_REFUSED, AipassError, ConfigError, LedgerError, PluginError
from aipass.event import Fact, printable
from aipass.foreign import Foreign
from aipass.git.desk import CheckAsked, GitDone, Sealed
from aipass.git.forge import LOCAL
from aipass.git.news import GitNews, GitSeen
from aipass.layout import CONFIG_NAME
from aipass.liveruns import ADOPT, START, LiveRuns
from aipass.notices import Notice, Notices
from aipass.plan.reserved import reserved
from aipass.plans import CHECK, Plans
from aipass.request import answer, known_as
from aipass.secret import Mask
from aipass.sources import intake
from aipass.sources.clock import Timers
from aipass.sources.home import HomeGone
from aipass.sources.ignore import Ignore
from aipass.sources.known import Known
from aipass.sources.observation import Configured, ScanEnd
from aipass.sources.runs import Report, Supervisors
from aipass.steering import Steering
from aipass.step import Done, PlanRead, Reloaded, Step
from aipass.talk.talk import Seen as SeenOfAgents
from aipass.talk.talk import Talk
from aipass.trinity.shelf import StateSaved
from aipass.unattended import Unattended
from aipass.units import count
from aipass.view import LedgerView
from aipass.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from aipass.clock import Clock, Instant
    from aipass.config import Config
    from aipass.event import Event
    from aipass.git.desk import Desk
    from aipass.layout import Layout
    from aipass.ledger import Ledger
    from aipass.plugins import Plugins
    from aipass.router import Handler, Router
    from aipass.sources import Source
    from aipass.sources.filesystem import Filesystem
    from aipass.talk.postbox import Postbox
    from aipass.trinity.learner import Learner
    from aipass.trinity.shelf import Shelf
    from aipass.world import World

logger = structlog.get_logger("aipass")

# Items of one transaction: enough to make FULL cheap in a storm, few enough that nothing waits long for its commit.
MAX_BATCH = 2000
# Batches that wait for the engine. Sources stand still beyond that; the kernel's queue may overflow, and a scan finds
# what it dropped.
MAX_WAITING = 64
ROOM_PAUSE_S = 0.005
DISABLE_AFTER_FAILURES = 5
HANDLER_SLOW_S = 1.0
LEDGER_PAUSE_S = 1.0
# That something was done in the world is recorded with whatever comes next, or after this: nobody waits for it, and a
# commit of its own would compete with the start that has just been asked for.
DONE_WAIT_S = 0.02
# A timer whose step failed for a bug of ours is tried again, not often.
BUG_PAUSE_S = 60.0
ABOUT_CONFIG = f"config {CONFIG_NAME}"
PRUNE_EVERY_S = 86400.0
#: So many notices of .gitignore files are given within so many seconds, and one that there is more.
MOST_OF_RULES, RULES_S = 5, 3600.0
PRUNE, HELD, SWEEP = "prune", "held", "sweep"


class Engine:
    """Everything of one root that runs in one thread."""

    def __init__(
        self,
        world: World,
        ledger: Ledger,
        plugins: Plugins,
        config: Config,
        clock: Clock,
        *,
        filesystem: Filesystem | None = None,
        sources: Sequence[Source] = (),
        desk: Desk | None = None,
        shelf: Shelf | None = None,
        postbox: Postbox | None = None,
        learner: Learner | None = None,
    ) -> None:
        self.layout, self.ledger, self.config = world.layout, ledger, config
        self._world, self._plugins, self._clock = world, plugins, clock
        self._filesystem = filesystem
        self._sources = (
            *sources,
            *(source for source in (desk, shelf, postbox, learner) if source is not None),
        )
        self._inbox: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._own: deque[Any] = deque()
        self._held: list[Any] = []
        self._failures: dict[str, int] = {}
        #: How much each run asks for.
        self._budget = Budget()
        self._unattended = Unattended(time.time())
        #: When a notice of .gitignore files was given, on the monotonic clock.
        self._told_of_rules: deque[float] = deque()
        self._ending = False
        #: Why there is nothing left that this engine could work on; None while there is.
        self.gone: str | None = None
        self._timers, self._fired = Timers(), Hourly()
        self._notices = Notices(self._notify)
        drivers = plugins.drivers()
        ground.check_outside(world.layout, config)
        check(config, plugins, world.layout.config)
        self._router = plugins.router(config)
        self._dispatcher = Dispatcher(ledger, self._timers, config)
        self._authors = Authors(world.layout)
        self._known, self._git = Known(ledger, self._authors), GitNews(ledger)
        self._foreign = Foreign(world.layout, ledger, self._dispatcher)
        self._plans = Plans(ledger, self._dispatcher, world, self._timers, clock, drivers, self._authors)
        self._work = Work(ledger, self._dispatcher, world, self._authors, self._plans, desk)
        mask = Mask(plugins.find_secrets)
        self._talk = Talk(ledger, self._dispatcher, world, mask, shelf, learner)
        self._steering = Steering(ledger, self._dispatcher, world, self._plans, self._own.append)
        self._view = LedgerView(ledger, self._dispatcher, self._fired, self._plans.views)
        self._alarms = Alarms(ledger, self._timers)
        self._carrier = Carrier(
            ledger,
            self._dispatcher,
            world,
            self._timers,
            self._fired,
            self._own.append,
            self._read_config,
            self._look_again,
            clock,
            self._plans,
            self._steering,
            self._work,
            self._talk,
        )
        self._runs = LiveRuns(
            ledger,
            self._dispatcher,
            world,
            self._timers,
            clock,
            drivers,
            self._own.append,
            self._authors,
            self._plans,
            self._work,
            self._talk,
            postbox,
        )

    # -- from outside ----------------------------------------------------------------------------------------------

    def tell(self, items: Iterable[Any]) -> None:
        """Hand over facts, observations or reports, from any thread; waits where the engine is far behind."""
        while self._inbox.qsize() >= MAX_WAITING and not self._ending:
            time.sleep(ROOM_PAUSE_S)
        self.tell_now(items)

    def tell_now(self, items: Iterable[Any]) -> None:
        """The same, without ever waiting: for what is few, and whose teller somebody waits for, such as a supervisor."""
        self._inbox.put(list(items))

    def start(self) -> None:
        """Take up where the last engine ended, then begin to observe."""
        now = self._clock.now()
        again = Step(now)
        self._talk.keeper.at(now.wall)
        with self.ledger.transaction():
            for row in self.ledger.all("pauses"):
                if row["kind"] == "handler":  # a new engine may have new code
                    self.ledger.run("drop_pause", {"name": row["name"], "kind": "handler"})
                    self._known.forget("inbox")
            for key, value in (("config.waiting", "[]"), ("config.error", ""), ("watch.limited", "")):
                self.ledger.run("set_meta", {"key": key, "value": value})
            self._load(now)
            self._dispatcher.reconfigure(self.config)
            self._talk.keeper.serve(again)
            self._talk.keeper.publish(again)
        self._alarms.set_crons(self.config, now)
        self._timers.set(PRUNE, now.mono)
        self._timers.set(SWEEP, now.mono + SWEEP_S)
        self.ledger.run("withdraw_notices", {"now": self._clock.now().wall, "about": ABOUT_CONFIG})
        self._own.append(Fact("engine.started", "engine", detail={"agents": len(self.config.agents)}))
        # What a request that is carried out again is made of.
        self._runs.recall()
        again.effects += [
            effect for row in self.ledger.all("pending_actions") if (effect := self._carrier.redo(row))
        ]
        again.effects += [self._world.tidy, self._talk.mail.redeliver]
        self._act(again)
        for source in self._sources:
            self._start_source(source)
        self._tell_territory(self.config)
        self._runs.adopt_all()
        self._work.start()
        if self._filesystem is not None:
            self._filesystem.start(self.tell)

    def end_runs(self) -> None:
        """Have every run ended, and the supervisors with them."""
        for source in self._sources:
            if isinstance(source, Supervisors):
                source.end()

    def stop(self) -> None:
        """End in good order. Runs go on under their supervisor; the next engine finds them."""
        self._ending = True
        for source in (self._filesystem, *self._sources):
            if source is not None:
                self._stop_source(source.stop)
        if self.gone is None:  # else its ledger is another engine's by now, or nobody's
            self.step()
            with self.ledger.transaction():
                self.ledger.record(Fact("engine.stopped", "engine"), self._clock.now())
        self._notices.stop()
        self._world.graves.stop()

    def run(self, should_end: Callable[[Engine], bool], look_every: float | None = None) -> None:
        """Step whenever something waits or comes due, until `should_end`.

        `look_every`: seconds after which that is asked though nothing came: a source may come to rest without anything to tell.
        """
        self._notices.start()
        while not should_end(self):
            if not self._held and all(isinstance(item, Done) for item in self._own):
                due = self._timers.next()
                try:
                    wait = None if due is None else max(0.0, due - self._clock.now().mono)
                    if look_every is not None:
                        wait = look_every if wait is None else min(wait, look_every)
                    if self._own:
                        wait = DONE_WAIT_S if wait is None else min(wait, DONE_WAIT_S)
                    self._own.extend(self._inbox.get(timeout=wait))
                except queue.Empty:
                    pass
            self.step()
            if self._held:
                time.sleep(LEDGER_PAUSE_S / 10)  # the disk is full; what waits is taken again by a timer

    def is_watching(self) -> bool:
        """Whether the tree was looked at as it was at the start. Asked from any thread."""
        return self._filesystem is None or self._filesystem.is_settled()

    def is_idle(self) -> bool:
        """Whether nothing is queued, running or due, and all that was there has been looked at."""
        looking: list[Any] = [s for s in (self._filesystem, *self._sources) if hasattr(s, "is_settled")]
        if (
            not all(source.is_settled() for source in looking)
            or self._own
            or self._held
            or not self._inbox.empty()
        ):
            return False
        return (
            not any(key.startswith((WAKE, DELIVER, START, ADOPT, CHECK)) for key in self._timers)
            and self._dispatcher.is_idle()
            and not self._plans.is_checking()
        )

    def next_due(self) -> float | None:
        """When the next timer is due, on the monotonic clock; while the disk is full nothing is, but the next try."""
        return self._timers.when(HELD) if self._held else self._timers.next()

    # -- one step --------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Record whatever waits and is due, decide, commit, act; whether there was anything. Does not wait."""
        step = Step(self._clock.now())
        if self._held and not self._timers.is_due(HELD, step.now.mono):
            return False  # the disk was full a moment ago; what waits keeps its order
        due = self._timers.take(step.now.mono)
        items = self._take_items()
        if not items and not due:
            return False
        try:
            self._commit(step, items, due)
        except LedgerError as exc:
            # Nothing is lost: the items wait until the disk takes them.
            logger.error("the ledger refuses", error=str(exc))
            self._held = items
            self._load(step.now)
            for key in (*due, HELD):
                self._timers.set(key, step.now.mono + LEDGER_PAUSE_S)
            if exc.locked:
                self._end_lockers()
        except Exception as exc:  # noqa: BLE001 - a bug becomes a report; see _one_by_one
            self._load(step.now)
            for key in due:
                self._timers.set(key, step.now.mono + BUG_PAUSE_S)
            self._one_by_one(items, exc)
        else:
            self._act(step)
        return True

    def _end_lockers(self) -> None:
        """Processes of runs that keep us from writing end, by the supervisor: it tells who they were."""
        try:
            self._world.end_lockers(self.ledger.files())
        except (OSError, AipassError) as exc:
            logger.error("nobody can be asked who has a lock on the ledger", error=str(exc))

    def _take_items(self) -> list[Any]:
        if self._held:
            items, self._held = self._held, []
            return items
        items = []
        while self._own and len(items) < MAX_BATCH:
            items.append(self._own.popleft())
        while len(items) < MAX_BATCH:
            try:
                items += self._inbox.get_nowait()
            except queue.Empty:
                break
        return items

    def _one_by_one(self, items: list[Any], first: Exception) -> None:
        """A bug of ours in one item must not end the engine, nor take the others with it."""
        report = None if items else write_report(self.layout.crashes, first, "engine step, timers")
        logger.error("a step failed; its items are taken one by one", error=repr(first), report=str(report))
        for position, item in enumerate(items):
            step = Step(self._clock.now())
            try:
                self._commit(step, [item], [])
            except LedgerError:
                self._held = items[position:]
                self._load(step.now)
                self._timers.set(HELD, step.now.mono + LEDGER_PAUSE_S)
                return
            except Exception as exc:  # noqa: BLE001 - the engine's own boundary: a bug becomes a report
                report = write_report(self.layout.crashes, exc, f"engine step, item {item!r:.500}")
                logger.error("a bug in aipass; one item was left out", report=str(report), error=str(exc))
                self._load(step.now)
            else:
                self._act(step)

    def _commit(self, step: Step, items: list[Any], due: list[str]) -> None:
        self._view.at(step.now)
        self._talk.keeper.at(step.now.wall)
        self._plans.look_again()
        with self.ledger.transaction():
            for key in due:
                self._on_due(step, key)
                self._settle(step)
            for item in items:
                self._on_item(step, item)
                self._settle(step)
                if isinstance(item, StateSaved):
                    self._talk.keeper.publish(step)
            for start in self._dispatcher.choose(step.now):
                if self._plans.begun(start.dispatch):
                    step.changes_territory = True
                    self._timers.set(SWEEP, step.now.mono + SWEEP_S)
                self._talk.keeper.begun(start.agent)
                self._talk.mail.enclose(start.run, start.agent, start.dispatch)
                step.starts.append(partial(self._runs.begin, start.run))
            self._talk.keeper.publish(step)
            for text in self._unattended.refused(self.ledger):
                step.notify(self.ledger, text)

    def _on_due(self, step: Step, key: str) -> None:
        if key == SWEEP:
            self._authors.refresh()
            for run, path in self._authors.sweep():
                if self._plans.wants(run, path):
                    step.facts.append(Fact("phase.written", "runs", path=path, by=run))
            if self._authors.has_open() or self._plans.awaits():
                self._timers.set(SWEEP, step.now.mono + SWEEP_S)
        elif key == PRUNE:
            self._timers.set(PRUNE, step.now.mono + PRUNE_EVERY_S)
            step.effects.append(partial(self._prune, step.now))
        else:
            dues = (self._dispatcher.due, partial(self._alarms.due, step), partial(self._carrier.due, step))
            any(due(key) for due in (*dues, partial(self._plans.due, step), partial(self._runs.due, step)))

    def _on_item(self, step: Step, item: Any) -> None:  # noqa: ANN401 - a fact, an observation, or what the engine told itself
        if isinstance(item, Fact):
            step.facts.append(item)
        elif isinstance(item, Report) and item.message["tell"] == "unlocked":
            for locker in item.message["ended"]:
                about = (
                    f"process {locker['pid']} of run {locker['run'] or '?'} ({printable(locker['command'])})"
                )
                text = f"{about} had a lock on the ledger, for which the engine had to wait; it was ended"
                step.facts.append(
                    Fact("ledger.locked", "engine", ref=locker["run"] or None, detail={"text": text})
                )
                step.notify(self.ledger, text)
        elif isinstance(item, Report):
            self._runs.take(step, item.message)
        elif isinstance(item, Done):
            self._carrier.settle(step, item)
        elif isinstance(item, PlanRead):
            self._steering.take(step, item, self._carrier.settle)
        elif isinstance(item, Reloaded):
            self._on_reloaded(step, item)
        elif isinstance(item, GitSeen):
            step.facts.extend(self._git.settle(item))
        elif isinstance(item, GitDone):
            self._work.take(step, item)
        elif isinstance(item, Sealed):
            self._work.sealed(item)
        elif isinstance(item, SeenOfAgents):
            self._talk.take(step, item)
        elif isinstance(item, Configured):
            # What git starts is nobody's to write.
            self.ledger.run("set_meta", {"key": guarded.INNER, "value": json.dumps(item.inner)})
            step.changes_territory = True
        elif isinstance(item, HomeGone):
            self.gone = item.reason
        elif isinstance(item, CheckAsked):
            step.effects.append(partial(self._work.check, item))
        else:
            if isinstance(item, ScanEnd) and item.reason == "start" and not item.top:
                self.ledger.run("set_meta", {"key": "baseline", "value": "1"})
                if not self._is_in_force():
                    # Saved between the reading of it and now: to the scan it was always like that.
                    step.facts.append(Fact("file.closed", "filesystem", path=CONFIG_NAME))
            self._read_journals(step)
            for fact in self._known.settle(item):
                step.facts.append(self._look_into(step, self._with_author(fact)))

    def _is_in_force(self) -> bool:
        try:
            return configuration.load(self.layout.config) == self.config
        except ConfigError:
            return False

    def _read_journals(self, step: Step) -> None:
        """Once for all that was seen in one step."""
        if not step.journals_read:
            step.journals_read = True
            self._authors.refresh()
            if self._authors.has_open():
                self._timers.set(SWEEP, step.now.mono + SWEEP_S)

    def _with_author(self, fact: Fact) -> Fact:
        """A fact of the filesystem with the run that did it, where one did."""
        if fact.path is None:
            return fact
        run = self._authors.by(fact.path)
        if run is None and fact.path.startswith("outbox/"):
            run = self._world.answered(fact.path)
        return fact if run is None else replace(fact, by=run)

    def _author_of_ignoring(self, path: str) -> int | None:
        """The run that wrote the .gitignore which ignores a path, where one did."""
        found = Ignore(self.layout.root, self.config.watch.ignore).hider(path)
        return None if found is None else self._authors.by(found)

    def _notify_of_rules(self, step: Step, text: str) -> None:
        """Who writes such files without end is told of a few times, and the events have the rest."""
        now = step.now.mono
        while self._told_of_rules and self._told_of_rules[0] < now - RULES_S:
            self._told_of_rules.popleft()
        if len(self._told_of_rules) < MOST_OF_RULES:
            step.notify(self.ledger, text)
        elif len(self._told_of_rules) == MOST_OF_RULES:
            step.notify(self.ledger, "more is told of .gitignore files: `aipass events --kind 'watch.*'`")
        if len(self._told_of_rules) <= MOST_OF_RULES:
            self._told_of_rules.append(now)

    def _look_into(self, step: Step, fact: Fact) -> Fact:
        """A fact of the filesystem with what must be known of it now: an inbox file's text, a limit's notice."""
        if intake.is_inbox(fact.path):
            if fact.kind == "file.deleted" and (other := intake.waits_for(str(fact.path))) is not None:
                # What it stood beside is finished; it is seen anew.
                self._known.forget_file(other)
                if self._filesystem is not None:
                    step.effects.append(partial(self._filesystem.scan, other.rpartition("/")[0], "asked"))
            found = intake.look_into(self.layout.root, fact, self.config.inbox.max_size)
            if found.detail.get("writing"):
                self._known.forget_file(str(fact.path))  # its next close is told, whatever it is then
            return found
        if fact.kind == "watch.unused":
            text = f"{printable(fact.path)} is not used to tell what is ignored: {fact.detail['reason']}"
            self._notify_of_rules(step, text)
        if fact.kind == "watch.hidden":
            fact = replace(fact, by=self._author_of_ignoring(str(fact.path)))
            if fact.by is not None:
                files = count(fact.detail["files"], "file")
                text = f"a .gitignore of run {fact.by} hides {files} that were watched, the first {printable(fact.path)}; `aipass why PATH` shows who wrote it"
                self._notify_of_rules(step, text)
        if fact.kind == "watch.limited":
            self.ledger.run("set_meta", {"key": "watch.limited", "value": json.dumps(fact.detail)})
            about = fact.detail
            text = f"{about['limit']} is reached: {about['polled']} folders are polled, not watched; {about['remedy']}"
            step.notify(self.ledger, text)
        return fact

    def _settle(self, step: Step) -> None:
        """Record the facts that wait, with what handlers want of them, until none is left."""
        while step.facts:
            fact = step.facts.popleft()
            if fact.kind == "request.received":
                if not self._is_new_request(step, fact):
                    continue
                fact = self._talk.without_secrets(step, fact)
            elif (
                fact.kind == "request.rejected"
                and fact.by is not None
                and self._against(fact.by, fact.detail, step.now.mono)
            ):
                step.effects.append(partial(self._world.consume, fact.detail["spool"], fact.by))
                continue
            event = self.ledger.record(fact, step.now)
            if not event.kind.startswith("file."):
                self._plans.look_again()
            step.told.append(event)
            if event.kind == "request.received":
                self.ledger.run(
                    "insert_request", {"id": known_as(str(event.ref), event.by), "event": event.id}
                )
            elif event.kind == "request.rejected":
                path, reason = event.detail["spool"], event.detail["reason"]
                step.effects.append(partial(self._world.set_aside, path, reason, event.id))
            self._foreign.look(step, event)
            self._talk.happened(step, event, partial(self._carrier.carry, step, "talk", event))
            if event.kind == "request.received" and event.detail.get("verb") == "deliver" and event.by:
                self._plans.catch_up(event.by)
            for handler in self._router.match(event):
                self._ask(step, handler, event)

    def _is_new_request(self, step: Step, fact: Fact) -> bool:
        """Whether a request is new; its file is removed in any case, once this is committed."""
        if "spool" in fact.detail:
            step.effects.append(partial(self._world.consume, fact.detail["spool"], fact.by))
        name = known_as(str(fact.ref), fact.by)
        if self.ledger.one("is_request", {"id": name}) is not None:
            return False
        if fact.by is None:
            self._unattended.note(name, str(fact.detail.get("verb")))
        words = None if fact.by is None else self._against(fact.by, fact.detail, step.now.mono)
        if words is None:
            return True
        self.ledger.run("insert_request", {"id": name, "event": 0})
        answer(self.ledger, name, EXIT_REFUSED, words)
        return False

    def _against(self, run: int, detail: Mapping[str, Any], now: float) -> str | None:
        """What is to be said against a request of a run that asks for more than anybody can need; told once."""
        words = self._budget.take(run, now, cost(detail))
        if words is not None and self._budget.is_first(run):
            row = self.ledger.one("run", {"id": run})
            whose = "?" if row is None else row["agent"]
            text = f"{whose} asks for {words} (run {run}); the rest is refused"
            self._own.append(
                Fact("request.flood", "engine", ref=str(run), by=run, detail={"agent": whose, "reason": text})
            )
        return None if words is None else f"{words}; ask again later"

    # -- handlers --------------------------------------------------------------------------------------------------

    def _ask(self, step: Step, handler: Handler, event: Event) -> None:
        name = handler.name
        if self._dispatcher.pauses.why("handler", name) is not None:
            self.ledger.add_outcome(event.id, name, "Skipped", "{}", "failed", "the handler is disabled")
            return
        began = time.perf_counter()
        try:
            actions = list(handler.handle(event, self._view) or ())
            for action in actions:
                if not isinstance(action, act.Action):
                    raise PluginError(f"it returned {action!r}, which is no action")
                action.payload()
        except Exception as exc:  # noqa: BLE001 - a third party's code; told, and the rest goes on
            self._on_failure(step, name, event, exc)
            return
        took = time.perf_counter() - began
        if took > HANDLER_SLOW_S:
            error = f"it was slow: {took:.1f} s, and everything waited for it"
            detail = {"error": error, "kind": event.kind}
            step.facts.append(Fact("handler.failed", "engine", ref=name, cause=event.id, detail=detail))
        self._failures.pop(name, None)
        for action in actions:
            self._carrier.carry(step, name, event, action)

    def _on_failure(self, step: Step, name: str, event: Event, exc: Exception) -> None:
        error = f"{type(exc).__name__}: {exc}"
        where = traceback.extract_tb(exc.__traceback__)[-1] if exc.__traceback__ else None
        self.ledger.add_outcome(event.id, name, "Failed", "{}", "failed", error)
        if event.kind.startswith("handler."):
            return  # a handler that fails on failures would never end
        count = self._failures[name] = self._failures.get(name, 0) + 1
        detail = {"error": error, "kind": event.kind, "in_a_row": count}
        detail["at"] = f"{where.filename}:{where.lineno}" if where else None
        step.facts.append(
            Fact("handler.failed", "engine", path=event.path, ref=name, cause=event.id, detail=detail)
        )
        if count >= DISABLE_AFTER_FAILURES and self._dispatcher.pauses.add("handler", name, error, step.now):
            del self._failures[name]  # resumed, it has as many tries again
            detail = {"error": error, "after": count}
            step.facts.append(Fact("handler.disabled", "engine", ref=name, cause=event.id, detail=detail))
            text = f"handler `{name}` failed {count} times in a row and is disabled: {error}; `aipass resume '{name}'` enables it"
            step.notify(self.ledger, text, event.id, f"handler {name}")

    # -- the world, after the commit -------------------------------------------------------------------------------

    def _act(self, step: Step) -> None:
        """Do what was recorded, then let observers know."""
        if step.changes_territory:
            step.before.append(partial(self._tell_territory, self.config))
        for effect in (*step.before, *step.starts, *step.effects):
            try:
                effect()
            except (OSError, AipassError) as exc:
                logger.error("could not be done", error=str(exc))
            except Exception as exc:  # noqa: BLE001 - the engine's own boundary: a bug becomes a report
                report = write_report(self.layout.crashes, exc, f"effect {effect!r:.300}")
                logger.error("a bug in aipass", report=str(report), error=str(exc))
        for event in step.told:
            _log(event)
            self._observe("after_event", event=event)
        for notice in step.notices:
            logger.warning("notice", text=notice.text)
            self._notices.tell(replace(notice, root=str(self.layout.root)))

    def _notify(self, notice: Notice) -> None:
        self._observe("after_notice", text=notice.text, notice=notice)

    def _observe(self, hook: str, **arguments: object) -> None:
        for implementation in getattr(self._plugins.hook, hook).get_hookimpls():
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception:
                logger.exception("an observer failed", hook=hook, plugin=implementation.plugin_name)

    def _prune(self, now: Instant) -> None:
        limits = self.config.limits
        before = now.wall - limits.keep
        dropped = self.ledger.prune(before, limits.keep_events)
        folders = self._world.prune(before)
        if dropped or folders:
            logger.info("pruned", events=dropped, run_folders=folders)

    def _start_source(self, source: Source) -> None:
        try:
            source.start(self.tell_now if getattr(source, "urgent", False) else self.tell)
        except AipassError:
            raise  # without a supervisor or a spool there is no engine
        except Exception as exc:
            logger.exception("a source was left out", source=source.name)
            detail = {"error": f"{type(exc).__name__}: {exc}", "kind": "start"}
            self._own.append(Fact("handler.failed", "engine", ref=source.name, detail=detail))

    def _stop_source(self, stop: Callable[[], None]) -> None:
        """A source may wait to hand something over; it is taken while the source ends."""
        ending = threading.Thread(target=stop, name="stopping", daemon=True)
        ending.start()
        while ending.is_alive():
            ending.join(0.02)
            if self.gone is None:
                self.step()

    # -- configuration ---------------------------------------------------------------------------------------------

    def _read_config(self, number: int, action: act.Reload) -> None:
        """Read aipass.toml; whether it is taken over is recorded in the next step."""
        try:
            new = configuration.load(self.layout.config)
            ground.check_outside(self.layout, new)
            check(new, self._plugins, self.layout.config)
            waiting: list[str] = []
            if not action.trusted:
                new, waiting = configuration.hold_back(self.config, new)
            router = self._plugins.router(new)
        except (ConfigError, PluginError) as exc:
            self._own.append(Reloaded(number, action.request, error=str(exc)))
            return
        self._own.append(Reloaded(number, action.request, new, router, tuple(waiting)))

    def _on_reloaded(self, step: Step, read: Reloaded) -> None:
        self.ledger.run("set_meta", {"key": "config.error", "value": read.error or ""})
        if read.config is None or read.router is None:
            error = str(read.error)
            self._carrier.settle(
                step,
                Done(
                    read.action,
                    f"aipass.toml is not valid and the old one stays in force: {error}",
                    failed=True,
                    request=read.request,
                    about=ABOUT_CONFIG,
                ),
            )
            answer(self.ledger, read.request, 2, error)
            step.facts.append(Fact("config.rejected", "engine", path=CONFIG_NAME, detail={"error": error}))
            return
        waiting = list(read.waiting)
        outcome = "taken over" + (f"; waiting for `aipass reload`: {', '.join(waiting)}" if waiting else "")
        self.ledger.run("set_meta", {"key": "config.waiting", "value": json.dumps(waiting)})
        step.withdraw(self.ledger, ABOUT_CONFIG)
        shared = advice.owned_twice(read.config)
        for key, value in (("config.shared", shared), (IN_FORCE, read.config.drivers())):
            self.ledger.run("set_meta", {"key": key, "value": json.dumps(value)})
        self._carrier.settle(step, Done(read.action, outcome))
        told = advice.of(self.layout, read.config)
        if later := confine.after_restart(self.config, read.config):
            told.append(
                f"the engine itself writes {' and '.join(later)} only after `aipass down` and `aipass up --detach`"
            )
        answer(self.ledger, read.request, 0, "; but ".join((f"aipass.toml is {outcome}", *told)))
        step.facts.append(Fact("config.changed", "engine", path=CONFIG_NAME, detail={"waiting": waiting}))
        if read.config != self.config:
            for agent, blocked in self._dispatcher.reconfigure(read.config).items():
                text = f"`{agent}` is not configured any more, and its dispatches wait: {', '.join(map(str, blocked))}"
                step.notify(self.ledger, text)
            # The rest only once this is committed: a commit that fails must leave the old one in force.
            step.before.append(partial(self._take_over, read.config, read.router, step.now))
            self._talk.keeper.serve(step)
            self._look_again(step)

    def _take_over(self, config: Config, router: Router, now: Instant) -> None:
        self.config, self._router = config, router
        self._tell_territory(config)
        self._alarms.set_crons(config, now)
        make_inboxes(self.layout, config)
        if self._filesystem is not None:
            self._filesystem.reconfigure(config.watch.ignore)

    def _tell_territory(self, config: Config) -> None:
        """Let the supervisors know who owns what from now on."""
        nested = [os.fsdecode(row["dir"]) for row in self.ledger.all("nested_roots")]
        self._foreign.forget()
        phases, handed = reserved(self.ledger)
        self._world.set_territory(
            ground.table(self.layout, config, phases, nested, guarded.inner(self.ledger)), handed
        )

    def _look_again(self, step: Step) -> None:
        """Have the inbox seen anew: what was rejected, or met a handler that was disabled, may be welcome now."""
        self._known.forget("inbox")
        if self._filesystem is not None:
            step.effects.append(partial(self._filesystem.scan, "inbox", "asked"))

    # -- memory ----------------------------------------------------------------------------------------------------

    def _load(self, now: Instant) -> None:
        """Bring all memory to what the ledger says: at the start, and after a transaction that failed."""
        kept = [(key, due) for key, due in self._timers.items() if not key.startswith((WAKE, RETRY))]
        self._timers.clear()
        for key, due in kept:
            self._timers.set(key, due)
        self._dispatcher.config = self.config
        self._dispatcher.load(now)
        self._plans.forget()
        self._known.forget_told()
        self._alarms.load(now)
        self._fired.clear()
        for row in self.ledger.all("firings_since", {"since": now.wall - HOUR_S}):
            if row["time"] <= float(self.ledger.meta(f"resumed.{row['handler']}") or 0):
                continue
            self._fired.add(row["handler"], now.mono - max(0.0, now.wall - row["time"]))


def check(config: Config, plugins: Plugins, path: Path) -> None:
    """Raise ConfigError where an agent's driver, the forge or a rule's event is of no plugin, or a layer is required that there is none of.

    `path`: the file that it was read from, for the lines.
    """
    ground.check_layers(config)
    names = sorted(plugins.drivers())
    for name, agent in config.agents.items():
        if agent.driver not in names:
            place = configuration.place(path, "agents", name, "driver")
            near = configuration.nearest(agent.driver, names)
            raise ConfigError(
                f'{place}there is no driver "{agent.driver}"{near}; installed are: {", ".join(names)}'
            )
    known = [LOCAL, *sorted(plugins.forges())]
    if config.pr.forge not in known:
        place = configuration.place(path, "pr", "forge")
        near = configuration.nearest(config.pr.forge, known)
        raise ConfigError(
            f'{place}there is no driver for the forge "{config.pr.forge}"{near}; installed are: {", ".join(known)}'
        )
    kinds = plugins.kinds()
    for number, rule in enumerate(config.on):
        if rule.event is not None and not any(fnmatchcase(kind, rule.event) for kind in kinds):
            place = configuration.place(path, "on", number, "event")
            near = configuration.nearest(rule.event, kinds)
            there = near or f"; there are: {', '.join(sorted(kinds))}"
            raise ConfigError(f"{place}there is no event `{rule.event}`{there}")


def make_inboxes(layout: Layout, config: Config) -> None:
    """`inbox/<agent>/` for every agent; raises ConfigError where one cannot be made."""
    try:
        for folder in (layout.inbox, *(layout.inbox / name for name in config.agents)):
            folder.mkdir(parents=True, exist_ok=True)
            if folder.is_symlink():
                raise ConfigError(
                    f"{folder}: is a symbolic link, and nobody watches what lies behind one; make it a folder"
                )
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename}: the inbox cannot be made ({exc.strerror}); move away what is in its place"
        ) from exc


def _log(event: Event) -> None:
    """Say it to people. Not each file: a storm would drown the rest, and `aipass events` has them all."""
    if event.kind.startswith("file."):
        return
    shown: dict[str, Any] = {"id": event.id, "path": event.path, "ref": event.ref, "by": event.by}
    shown |= {name: event.detail.get(name) for name in ("agent", "dispatch", "state", "reason", "error")}
    logger.info(event.kind, **{name: value for name, value in shown.items() if value is not None})
