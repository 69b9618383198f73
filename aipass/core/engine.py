"""The engine: one loop with one queue and one heap of timers. `step` is deterministic; the loop only waits.

A step takes the facts that wait and records each one, with the actions that handlers return for it, in one transaction.
Side effects happen only after the commit, and their results come back through the same queue. Features have added all
actions, effects, verbs and timers to the `Core` of the engine.
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

from aipass.core.calling import Asking
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

# Items of one transaction: enough to make `PRAGMA synchronous = FULL` cheap in a storm of events, few enough that no item
# waits long for its commit.
MAX_BATCH = 2000
# Batches that wait for the engine. Beyond that, sources block (back pressure). The kernel's queue can then overflow, and
# a scan finds the changes that it dropped.
MAX_WAITING = 64
ROOM_PAUSE_S = 0.005
LEDGER_PAUSE_S = 1.0
# The functions that features run at the end of a step can emit facts, whose effect can need these functions again. After
# this number of rounds they are not called again in the step: two features could keep its transaction open without end.
MOST_ENDS = 10
# The result of a side effect is recorded with the next item, or after this time. It is not urgent, and a separate commit
# would compete for the disk with the start of a run.
DONE_WAIT_S = 0.02
# A timer whose step failed because of a bug in aipass is tried again, but rarely: each attempt writes a crash report.
BUG_PAUSE_S = 60.0
PRUNE_EVERY_S = 86400.0
PRUNE, HELD = "prune", "held"


class Engine:
    """The engine of one root. All methods run in the engine's thread, except `tell`, `tell_now` and `is_watching`."""

    def __init__(self, core: Core, router: Router) -> None:
        self.core, self.layout, self.ledger = core, core.layout, core.ledger
        self._clock, self._timers = core.clock, core.timers
        self._inbox: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        #: Items that the engine's thread itself has posted. They are taken before those of `_inbox`.
        self._own: deque[Any] = deque()
        #: The items of a step whose ledger could not be written. They are taken before all others.
        self._held: list[Any] = []
        self._ending = False
        #: Why this engine must end, because its `.aipass` folder is gone or replaced; None otherwise.
        self.gone: str | None = None
        self._notices = Notices(self._deliver)
        self._executor = Executor(core, self._own.append)
        self._view = HandlerView(core)
        self._asking = Asking(core, self._view, router)
        core.add_report(HomeGone, self._on_home_gone)
        core.add_timer(PRUNE, self._on_prune)
        core.add_timer(HELD, _nothing)
        core.connect(self._own.extend, self._executor.execute, self._executor.settle, self._take_router)
        # The functions for each kind of event, by kind: to match all patterns for each event would be slow in a storm.
        self._listeners: dict[str, tuple[Callable[[Step, Event], None], ...]] = {}
        self._filters: dict[str, tuple[Callable[[Step, Fact], Fact | None], ...]] = {}

    @property
    def config(self) -> Config:
        """The configuration that is in force."""
        return self.core.config()

    @property
    def router(self) -> Router:
        """The router of handlers under the configuration in force."""
        return self._asking.router

    # -- from outside ----------------------------------------------------------------------------------------------

    def tell(self, items: Iterable[Any]) -> None:
        """Queue facts, observations or reports. Thread-safe; blocks while MAX_WAITING batches wait (back pressure)."""
        # Not while the engine ends: `stop` waits for the source, which would wait for the engine.
        while self._inbox.qsize() >= MAX_WAITING and not self._ending:
            time.sleep(ROOM_PAUSE_S)
        self.tell_now(items)

    def tell_now(self, items: Iterable[Any]) -> None:
        """Queue items without blocking. Thread-safe; for sources with few items that a process waits for, as a supervisor's."""
        self._inbox.put(list(items))

    def start(self) -> None:
        """Restore the state of the last engine, redo pending effects, then start the sources.

        Raises AipassError if a source cannot start without which no engine is possible.
        """
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
        # After the transaction: a source can emit facts immediately, and they must find the restored state.
        for source in self.core.sources:
            self._start_source(source)
        for call in self.core.ready:
            call()
        for source in self.core.last_sources:
            self._start_source(source)

    def end_runs(self) -> None:
        """Stop all runs of this engine. For an engine whose ledger is gone: the results could not be recorded."""
        for end in self.core.when_gone:
            self._alone(end)

    def stop(self) -> None:
        """Stop sources, record what they still report, and end. Runs continue under their supervisor; the next engine adopts them."""
        self._ending = True
        for source in (*self.core.last_sources, *self.core.sources):
            self._stop_source(source.stop)
        # If the folder is gone, the ledger at this path can already belong to another engine.
        if self.gone is None:
            self.step()
            with self.ledger.transaction():
                self.ledger.record(Fact("engine.stopped", "engine"), self._clock.now())
        self._notices.stop()
        for stop in self.core.stops:
            self._alone(stop)
        self.core.remover.stop()

    def run(self, should_end: Callable[[Engine], bool], look_every: float | None = None) -> None:
        """Call `step` whenever an item waits or a timer is due, until `should_end` returns True.

        `look_every`: call `should_end` at least this often, in seconds. Without it the loop sleeps until the next item.
        """
        self._notices.start()
        while not should_end(self):
            if not self._held and all(isinstance(item, Settled) for item in self._own):
                due = self._timers.next()
                try:
                    wait = None if due is None else max(0.0, due - self._clock.now().mono)
                    # `is_idle` can become true without an item: a source finishes its first scan and has nothing to report.
                    if look_every is not None:
                        wait = look_every if wait is None else min(wait, look_every)
                    if self._own:
                        wait = DONE_WAIT_S if wait is None else min(wait, DONE_WAIT_S)
                    self._own.extend(self._inbox.get(timeout=wait))
                except queue.Empty:
                    pass
            self.step()
            if self._held:
                # The disk is full, and `step` does nothing until the timer HELD is due.
                time.sleep(LEDGER_PAUSE_S / 10)

    def is_watching(self) -> bool:
        """Whether the first scan of the tree has finished. Thread-safe."""
        return all(source.is_settled() for source in self.core.last_sources if hasattr(source, "is_settled"))

    def is_idle(self) -> bool:
        """Whether nothing is queued, running or due, and all sources have finished their first scan."""
        looking = [one for one in (*self.core.last_sources, *self.core.sources) if hasattr(one, "is_settled")]
        return (
            all(source.is_settled() for source in looking)
            and not self._own
            and not self._held
            and self._inbox.empty()
            and all(is_idle() for is_idle in self.core.idle_checks)
        )

    def next_due(self) -> float | None:
        """When the next timer is due, on the monotonic clock. While the disk is full this is the next attempt to write."""
        return self._timers.when(HELD) if self._held else self._timers.next()

    # -- one step --------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Run one step: record waiting items and due timers, call handlers, commit, then perform the effects.

        Returns whether there was anything to do. Does not wait. The items of a step are recorded all or none; after a
        ledger error they stay queued in their order.
        """
        step = Step(self._clock.now())
        if self._held and not self._timers.is_due(HELD, step.now.mono):
            return False  # the disk was full a moment ago; newer items must not overtake those that wait
        due = self._timers.take(step.now.mono)
        items = self._take_items()
        if not items and not due:
            return False
        try:
            self._commit(step, items, due)
        except LedgerError as exc:
            # Nothing is lost: the items wait until the ledger accepts them.
            logger.error("the ledger cannot be written; retrying", error=str(exc))
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
                logger.error("cannot find the process that locks the ledger", error=str(exc))

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
        """Run one step for each item. An item that fails is dropped, with a crash report.

        A bug in aipass must neither end the engine nor lose the other items of the batch.
        """
        report = None if items else write_report(self.layout.crashes, first, "engine step, timers")
        logger.error("a step failed; its items are retried one by one", error=repr(first), report=str(report))
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
                logger.error("a bug in aipass; one item was dropped", report=str(report), error=str(exc))
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
                # After each one, so that events keep the order of their causes, and each handler sees the state after the
                # item before it.
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
        """Record the waiting facts and apply the actions of handlers, which can add facts, until none is left."""
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
        """The fact after all filters, in the form to be recorded; None if a filter drops it."""
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

    # -- side effects, after the commit ----------------------------------------------------------------------------

    def _act(self, step: Step) -> None:
        """Perform the effects of a committed step, then call observers. One that fails does not keep others from running."""
        for call in (*step.before, *step.starts, *step.effects):
            try:
                call()
            except (OSError, AipassError) as exc:
                logger.error("an effect failed", error=str(exc))
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

    def _alone(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - the result of `call`
        """Call a function of a feature. If it raises, write a crash report and return None, so that others still run."""
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
            raise  # no supervisor or no spool: without them the engine could not work
        except Exception as exc:
            logger.exception("a source cannot start; the engine works without it", source=source.name)
            detail = {"error": f"{type(exc).__name__}: {exc}", "kind": "start"}
            self._own.append(Fact("handler.failed", "engine", ref=source.name, detail=detail))

    def _stop_source(self, stop: Callable[[], None]) -> None:
        """Stop a source in a thread, and run steps until it has stopped."""
        # The source can be blocked in `tell` until the engine takes its items: to wait for it here would be a deadlock.
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
        """Restore the in-memory state from the ledger, at the start and after a failed transaction. Idempotent."""
        self.core.take_back()
        for load in self.core.loads:
            load(now)


def _nothing(step: Step, rest: str) -> None:
    del step, rest


def _log(event: Event) -> None:
    """Log an event for people."""
    # Not events of files: a build makes thousands, which would hide the rest. `aipass events` shows them.
    if event.kind.startswith("file."):
        return
    shown: dict[str, Any] = {"id": event.id, "path": event.path, "ref": event.ref, "by": event.by}
    shown |= {name: event.detail.get(name) for name in ("agent", "dispatch", "state", "reason", "error")}
    logger.info(event.kind, **{name: value for name, value in shown.items() if value is not None})
