"""The engine: one loop, one queue, one heap of timers. `step` is deterministic; all else only waits for it.

A step takes whatever waits, records each fact with all that handlers want of it in one transaction, commits, and only then lets the
world be touched. What that led to comes back through the same queue. What it is made of, features have added to its `Core`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass.core.asking import Asking
from aipass.core.executor import Executor, Settled
from aipass.core.notices import Notice, Notices
from aipass.core.registry import by_kind
from aipass.core.step import Step
from aipass.core.view import HandlerView
from aipass.errors import AipassError, LedgerError
from aipass.event import Fact
from aipass.sources.home import HomeGone
from aipass.workspace.crash_report import write_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aipass.clock import Instant
    from aipass.config.model import Config
    from aipass.core.registry import Core
    from aipass.core.router import Router
    from aipass.event import Event
    from aipass.sources import Source

logger = structlog.get_logger("aipass")

# Items of one transaction: enough to make FULL cheap in a storm, few enough that nothing waits long for its commit.
MAX_BATCH = 2000
# Batches that wait for the engine. Sources stand still beyond that; the kernel's queue may overflow, and a scan finds
# what it dropped.
MAX_WAITING = 64
ROOM_PAUSE_S = 0.005
LEDGER_PAUSE_S = 1.0
# What features do at the end of a step may be events; so often they are asked once more.
MOST_ENDS = 10
# That something was done in the world is recorded with whatever comes next, or after this: nobody waits for it, and a
# commit of its own would compete with the start that has just been asked for.
DONE_WAIT_S = 0.02
# A timer whose step failed for a bug of ours is tried again, not often.
BUG_PAUSE_S = 60.0
PRUNE_EVERY_S = 86400.0
PRUNE, HELD = "prune", "held"


class Engine:
    """Everything of one root that runs in one thread."""

    def __init__(self, core: Core, router: Router) -> None:
        self.core, self.layout, self.ledger = core, core.layout, core.ledger
        self._clock, self._timers = core.clock, core.timers
        self._inbox: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._own: deque[Any] = deque()
        self._held: list[Any] = []
        self._ending = False
        #: Why there is nothing left that this engine could work on; None while there is.
        self.gone: str | None = None
        self._notices = Notices(self._deliver)
        self._executor = Executor(core, self._own.append)
        self._view = HandlerView(core)
        self._asking = Asking(core, self._view, router)
        core.add_report(HomeGone, self._on_home_gone)
        core.add_timer(PRUNE, self._on_prune)
        core.add_timer(HELD, _nothing)
        core.connect(self._own.extend, self._executor.execute, self._executor.settle, self._take_router)
        self._listeners: dict[str, tuple[Callable[[Step, Event], None], ...]] = {}
        self._filters: dict[str, tuple[Callable[[Step, Fact], Fact | None], ...]] = {}

    @property
    def config(self) -> Config:
        """The configuration that is in force."""
        return self.core.config()

    @property
    def router(self) -> Router:
        """Which handlers want which events, under the configuration that is in force."""
        return self._asking.router

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
        self._view.at(now)
        for begin in self.core.begins:
            begin(again)
        with self.ledger.transaction():
            self._load(now)
            for start in self.core.starts:
                start(again)
            self._settle(again)
        self._timers.set(PRUNE, now.mono)
        self._own.append(Fact("engine.started", "engine", detail={"agents": len(self.config.agents)}))
        self._executor.redo(again)
        again.effects.append(self.core.remover.sweep)
        self._act(again)
        for source in self.core.sources:
            self._start_source(source)
        for call in self.core.ready:
            call()
        for source in self.core.last_sources:
            self._start_source(source)

    def end_runs(self) -> None:
        """Have all ended that works for this engine: nobody could say what becomes of it."""
        for end in self.core.when_gone:
            self._alone(end)

    def stop(self) -> None:
        """End in good order. Runs go on under their supervisor; the next engine finds them."""
        self._ending = True
        for source in (*self.core.last_sources, *self.core.sources):
            self._stop_source(source.stop)
        if self.gone is None:  # else its ledger is another engine's by now, or nobody's
            self.step()
            with self.ledger.transaction():
                self.ledger.record(Fact("engine.stopped", "engine"), self._clock.now())
        self._notices.stop()
        for stop in self.core.stops:
            self._alone(stop)
        self.core.remover.stop()

    def run(self, should_end: Callable[[Engine], bool], look_every: float | None = None) -> None:
        """Step whenever something waits or comes due, until `should_end`.

        `look_every`: seconds after which that is asked though nothing came: a source may come to rest without anything to tell.
        """
        self._notices.start()
        while not should_end(self):
            if not self._held and all(isinstance(item, Settled) for item in self._own):
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
        return all(source.is_settled() for source in self.core.last_sources if hasattr(source, "is_settled"))

    def is_idle(self) -> bool:
        """Whether nothing is queued, running or due, and all that was there has been looked at."""
        looking = [one for one in (*self.core.last_sources, *self.core.sources) if hasattr(one, "is_settled")]
        return (
            all(source.is_settled() for source in looking)
            and not self._own
            and not self._held
            and self._inbox.empty()
            and all(is_idle() for is_idle in self.core.idle_checks)
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
                self._on_locked()
        except Exception as exc:  # noqa: BLE001 - a bug becomes a report; see _one_by_one
            self._load(step.now)
            for key in due:
                self._timers.set(key, step.now.mono + BUG_PAUSE_S)
            self._one_by_one(items, exc)
        else:
            self.core.keep()
            self._act(step)
        return True

    def _on_locked(self) -> None:
        for end_lockers in self.core.when_locked:
            try:
                end_lockers(self.ledger.files())
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
                self.core.keep()
                self._act(step)

    def _commit(self, step: Step, items: list[Any], due: list[str]) -> None:
        self._view.at(step.now)
        for begin in self.core.begins:
            begin(step)
        with self.ledger.transaction():
            for key in due:
                self._on_due(step, key)
                self._settle(step)
            for item in items:
                if isinstance(item, Fact):
                    step.facts.append(item)
                else:
                    self.core.reports[type(item)](step, item)
                self._settle(step)
            for _ in range(MOST_ENDS):
                for end in self.core.ends:
                    end(step)
                if not step.facts:
                    break
                self._settle(step)

    def _on_due(self, step: Step, key: str) -> None:
        prefix, _, rest = key.partition(":")
        if prefix in self.core.due:
            self.core.due[prefix](step, rest)

    def _settle(self, step: Step) -> None:
        """Record the facts that wait, with what handlers want of them, until none is left."""
        while step.facts:
            fact = self._filtered(step, step.facts.popleft())
            if fact is None:
                continue
            event = self.ledger.record(fact, step.now)
            step.told.append(event)
            for listen in self._of_kind(self._listeners, self.core.listeners, event.kind):
                listen(step, event)
            self._asking.ask(step, event)

    def _filtered(self, step: Step, fact: Fact) -> Fact | None:
        """A fact as it is to be recorded; None where it is not."""
        for change in self._of_kind(self._filters, self.core.fact_filters, fact.kind):
            changed = change(step, fact)
            if changed is None:
                return None
            fact = changed
        return fact

    @staticmethod
    def _of_kind(compiled: dict[str, Any], entries: Iterable[Any], kind: str) -> Any:  # noqa: ANN401 - listeners, or filters
        found = compiled.get(kind)
        if found is None:
            found = compiled[kind] = by_kind(entries, kind)
        return found

    # -- the world, after the commit -------------------------------------------------------------------------------

    def _act(self, step: Step) -> None:
        """Do what was recorded, then let observers know."""
        for call in (*step.before, *step.starts, *step.effects):
            try:
                call()
            except (OSError, AipassError) as exc:
                logger.error("could not be done", error=str(exc))
            except Exception as exc:  # noqa: BLE001 - the engine's own boundary: a bug becomes a report
                report = write_report(self.layout.crashes, exc, f"effect {call!r:.300}")
                logger.error("a bug in aipass", report=str(report), error=str(exc))
        for event in step.told:
            _log(event)
            self._observe("after_event", event=event)
        for notice in step.notices:
            logger.warning("notice", text=notice.text)
            self._notices.tell(replace(notice, root=str(self.layout.root)))

    def _deliver(self, notice: Notice) -> None:
        self._observe("after_notice", text=notice.text, notice=notice)

    def _observe(self, hook: str, **arguments: object) -> None:
        for name, implementation, wanted in self.core.observers(hook):
            try:
                implementation(*(arguments[argument] for argument in wanted))
            except Exception:
                logger.exception("an observer failed", hook=hook, plugin=name)

    def _on_prune(self, step: Step, rest: str) -> None:
        del rest
        self._timers.set(PRUNE, step.now.mono + PRUNE_EVERY_S)
        step.effects.append(partial(self._prune, step.now))

    def _prune(self, now: Instant) -> None:
        limits = self.config.limits
        before = now.wall - limits.keep
        dropped = self.ledger.prune(before, limits.keep_events)
        removed = sum(self._alone(partial(prune, before)) or 0 for prune in self.core.prunes)
        if dropped or removed:
            logger.info("pruned", events=dropped, removed=removed)

    def _alone(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it returns
        """Call something of a feature's; one that fails keeps no other from being called."""
        try:
            return call()
        except Exception as exc:  # noqa: BLE001 - the engine's own boundary: a bug becomes a report
            report = write_report(self.layout.crashes, exc, f"{call!r:.300}")
            logger.error("a feature failed", report=str(report), error=str(exc))
            return None

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

    # -- memory ----------------------------------------------------------------------------------------------------

    def _on_home_gone(self, step: Step, report: HomeGone) -> None:
        del step
        self.gone = report.reason

    def _take_router(self, router: Router) -> None:
        self._asking.router = router

    def _load(self, now: Instant) -> None:
        """Bring all memory to what the ledger says: at the start, and after a transaction that failed."""
        self.core.take_back()
        for load in self.core.loads:
            load(now)


def _nothing(step: Step, rest: str) -> None:
    del step, rest


def _log(event: Event) -> None:
    """Say it to people. Not each file: a storm would drown the rest, and `aipass events` has them all."""
    if event.kind.startswith("file."):
        return
    shown: dict[str, Any] = {"id": event.id, "path": event.path, "ref": event.ref, "by": event.by}
    shown |= {name: event.detail.get(name) for name in ("agent", "dispatch", "state", "reason", "error")}
    logger.info(event.kind, **{name: value for name, value in shown.items() if value is not None})
