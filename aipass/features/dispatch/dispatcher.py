"""The dispatcher: turns wishes into queued work, joins what belongs together, and decides what starts when.

Everything here happens inside the engine's transaction; nothing is started. After a transaction that failed, `load`
brings the memory back to what the ledger says.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from aipass.errors import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE
from aipass.event import Fact
from aipass.features.dispatch import retry
from aipass.features.dispatch.driver import Usage, sum_usage
from aipass.features.dispatch.keys import is_own_key
from aipass.features.dispatch.pauses import LIMIT, Pauses
from aipass.features.dispatch.queue import Capacity, Queue
from aipass.features.dispatch.rate import HOUR_S, Hourly
from aipass.text.units import show_duration, show_moment, wait_until

if TYPE_CHECKING:
    from aipass.action import Dispatch
    from aipass.clock import Instant
    from aipass.config.model import Agent, Config
    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.event import Event
    from aipass.ledger import Row

#: A text that is short and one line is its own key, for people's eyes; any other is known by its hash.
LONGEST_KEY_CHARS = 120
RETRY, RATE = "retry", "rate"
#: The key under which the ledger knows which dispatches wait for an agent that is not configured any more.
ORPHANS = "orphans"
#: An agent whose last dispatches, this many, failed of the same thing (no key, no program, no such model) is paused.
ALIKE = 3
_WORD, _PLAIN = re.compile(r"[^\w-]+"), re.compile(r"[^0-9]+")
#: Ends of a run that had been told to stop, which make no more of it than that.
_NOT_AFTER_STOP = retry.RETRIED | {"killed", "blocked", "limit", "afresh"}
FINAL = frozenset(("succeeded", "failed", "cancelled"))


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a wish: the dispatch it is part of, or why it is refused (then with an exit code)."""

    text: str
    dispatch: int | None = None
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended, and what its dispatch is now."""

    outcome: str
    state: str
    reason: str | None
    retry_in: float | None = None
    #: Whether a limit began with it.
    limits: bool = False


@dataclass(frozen=True, slots=True)
class StartedRun:
    """A run that is recorded and now to be started."""

    run: int
    dispatch: int
    agent: str


class Dispatcher:
    """The queue's rules over the ledger."""

    def __init__(self, core: Core) -> None:
        self._core, self._ledger, self._timers = core, core.ledger, core.timers
        self._queue = Queue()
        self._runs = Hourly()
        self.pauses = Pauses(core.ledger, core.timers)
        core.add_timer(RETRY, self._due)
        core.add_timer(RATE, _nothing)
        core.add_timer(LIMIT, _nothing)

    @property
    def config(self) -> Config:
        """The configuration that is in force."""
        return self._core.config()

    def load(self, now: Instant) -> None:
        """Remember what the ledger knows."""
        self._timers.drop_all(RETRY)
        self._queue = Queue()
        self._runs.clear()
        for row in self._ledger.all("runs_since", {"since": now.wall - HOUR_S}):
            # A clock that was set back must not make an hour longer.
            self._runs.add(row["agent"], now.mono - max(0.0, now.wall - row["created"]))
        self.pauses.load(now)
        for row in self._ledger.all("live_runs"):
            self._queue.begin(row["agent"], self._driver_of(row["agent"]))
        for row in self._ledger.all("queued"):
            wait = min(row["not_before"] - now.wall, retry.LONGEST_S * (1 + retry.JITTER))
            if row["not_before"] and wait > 0:
                self._timers.set(f"{RETRY}:{row['id']}", now.mono + wait)
            else:
                self._queue.add(row["agent"], row["id"], row["priority"])

    # -- asking ----------------------------------------------------------------------------------------------------

    def submit(
        self, event: Event, handler: str, wish: Dispatch, now: Instant, hops: int | None = None
    ) -> Submitted:
        """Queue a wish, or let it join what is open under its key; the work of a phase joins nothing.

        `hops`: how long the chain is, where it is not one more than that of the run that wrote the event.
        """
        if wish.agent not in self.config.agents:
            return Submitted(f"refused: there is no agent `{wish.agent}`", exit_code=EXIT_USAGE)
        settings = self.config.agents[wish.agent]
        until = self.pauses.until(settings.driver, now)
        if until is not None and not self._may_wait(settings, None, until - now.wall):
            return Submitted(f"refused: {self.obstacle(wish.agent, now)}", exit_code=EXIT_REFUSED)
        if (wrong := self._wrong_reply(wish)) is not None:
            return Submitted(f"refused: {wrong}", exit_code=EXIT_FAILED)
        hops = self.hops(event.by) if hops is None else hops
        if hops > self.config.limits.hops:
            return Submitted(
                f"refused: a chain of {hops} agents waking agents, and limits.hops is {self.config.limits.hops}",
                exit_code=EXIT_REFUSED,
            )
        if wish.reply_to is not None and self._row(wish.reply_to)["state"] == "blocked":
            return self._go_on(wish.reply_to, event, wish, now, hops)
        key = key_of(wish)
        same = queued = None
        joins = self._ledger.all("open_of_key", {"agent": wish.agent, "key": key})
        if wish.plan is not None and joins:
            joins, key = [], f"{key} {event.id}.{len(joins)}"  # somebody guessed the key
        for row in joins:
            if row["state"] == "queued":
                queued = queued or row
            elif same is None and self._has_text(row["id"], wish, event):
                same = row
        known = same or queued
        if known is not None:
            self._add_sender(known["id"], event, wish, now)
            if known["state"] == "queued":
                self._ledger.run("raise_priority", {"id": known["id"], "priority": wish.priority})
                row = self._row(known["id"])
                if self._queue.is_waiting(row["id"]):
                    self._queue.add(wish.agent, row["id"], row["priority"])
            return Submitted(
                f"joined {known['id']}, which is {known['state']} under the same key", known["id"]
            )
        about: dict[str, Any] = {"agent": wish.agent, "key": key, "subject": wish.subject}
        about["priority"] = wish.priority
        about |= {"hops": hops, "created": now.wall, "cause": event.id, "handler": handler}
        dispatch = self._ledger.run("insert_dispatch", about | {"reply_to": wish.reply_to})
        self._add_sender(dispatch, event, wish, now)
        self._queue.add(wish.agent, dispatch, wish.priority)
        return Submitted(f"dispatch {dispatch}", dispatch)

    def _go_on(self, dispatch: int, event: Event, wish: Dispatch, now: Instant, hops: int) -> Submitted:
        """What waits for an answer has one. A chain of agents grows by it, and ends with a person's."""
        self._add_sender(dispatch, event, wish, now)
        done = self.retry(dispatch)
        if done.exit_code:
            return done
        self._ledger.run("dispatch_hops", {"id": dispatch, "hops": hops})
        return replace(done, text=f"dispatch {dispatch} goes on")

    def _wrong_reply(self, wish: Dispatch) -> str | None:
        """Why a wish cannot go on with what it replies to; None where it can, or replies to nothing."""
        if wish.reply_to is None:
            return None
        before = self._ledger.one("dispatch", {"id": wish.reply_to})
        if before is None:
            return f"there is no dispatch {wish.reply_to} to reply to"
        if before["agent"] != wish.agent:
            return (
                f"dispatch {wish.reply_to} was {before['agent']}'s; a reply to it goes to {before['agent']}"
            )
        return None

    def hops(self, by: int | None) -> int:
        """How long a chain is that goes on with what this run did; 0 where nobody known did it."""
        if by is None:
            return 0
        row = self._ledger.one("run_hops", {"run": by})
        return 0 if row is None else int(row["hops"]) + 1

    def _has_text(self, dispatch: int, wish: Dispatch, event: Event) -> bool:
        for row in self._ledger.all("senders", {"dispatch": dispatch}):
            content = json.loads(row["file"]).get("sha256") if row["file"] else None
            if row["text"] == wish.text and (wish.file is None or content == event.detail.get("sha256")):
                return True
        return False

    def _add_sender(self, dispatch: int, event: Event, wish: Dispatch, now: Instant) -> None:
        file = None
        if wish.file is not None:
            name = wish.file.rpartition("/")[2]
            taken = {
                json.loads(row["file"])["path"].rpartition("/")[2]
                for row in self._ledger.all("senders", {"dispatch": dispatch})
                if row["file"]
            }
            kept, number = name, 1
            while kept in taken:
                number += 1
                kept = f"{number}-{name}"
            about = {
                "path": f".aipass/dispatches/{dispatch}/{kept}",
                "type": event.detail.get("mime", "unknown"),
                "size": event.detail.get("size", 0),
            }
            file = json.dumps(
                {**about, "prompt": "text" in event.detail, "sha256": event.detail.get("sha256")}
            )
        self._ledger.run(
            "insert_sender",
            {
                "dispatch": dispatch,
                "sender": wish.sender,
                "stem": wish.stem,
                "text": wish.text,
                "file": file,
                "wake": wish.wake,
                "event": event.id,
                "waiter": None if wish.waits is None else event.by,
                "waits": wait_until(now.wall, wish.waits),
            },
        )

    def cancel(self, dispatch: int, reason: str, now: Instant) -> tuple[Submitted, int | None]:
        """End a dispatch; also the run that must be stopped for it."""
        row = self._ledger.one("dispatch", {"id": dispatch})
        if row is None:
            return Submitted(f"there is no dispatch {dispatch}", exit_code=EXIT_FAILED), None
        if row["state"] == "running":
            run = self._ledger.one("live_run_of", {"dispatch": dispatch})
            if run is not None:
                self._ledger.run("run_stopping", {"id": run["id"], "reason": reason})
                return Submitted(f"dispatch {dispatch} is being stopped", dispatch), int(run["id"])
        if row["state"] in FINAL:
            return Submitted(
                f"dispatch {dispatch} {'is' if row['state'] == 'cancelled' else 'has'} {row['state']} already",
                exit_code=EXIT_FAILED,
            ), None
        self._queue.remove(dispatch)
        self._timers.drop(f"{RETRY}:{dispatch}")
        self._finish(dispatch, "cancelled", reason, now)
        return Submitted(f"dispatch {dispatch} is cancelled", dispatch), None

    def retry(self, dispatch: int) -> Submitted:
        """Queue a dispatch again, with all its senders."""
        row = self._ledger.one("dispatch", {"id": dispatch})
        if row is None:
            return Submitted(f"there is no dispatch {dispatch}", exit_code=EXIT_FAILED)
        if row["state"] == "running":
            return Submitted(f"dispatch {dispatch} is running; cancel it first", exit_code=EXIT_FAILED)
        if row["plan"] is not None and row["state"] in FINAL:
            return Submitted(
                f"dispatch {dispatch} was the work of phase {row['phase']}; `aipass plan resume {row['plan']}` tries that again",
                exit_code=EXIT_REFUSED,
            )
        if row["agent"] not in self.config.agents:
            return Submitted(f"its agent `{row['agent']}` is no longer configured", exit_code=EXIT_USAGE)
        if row["attempts"] == 0 and row["state"] != "queued" and self._queued_twin(row):
            return Submitted(
                f"dispatch {self._queued_twin(row)} waits under the same key already", exit_code=EXIT_REFUSED
            )
        self._timers.drop(f"{RETRY}:{dispatch}")
        self._ledger.run("dispatch_reopened", {"id": dispatch})
        self._queue.add(row["agent"], dispatch, row["priority"])
        return Submitted(f"dispatch {dispatch} is queued again", dispatch)

    def _queued_twin(self, row: Row) -> int | None:
        for other in self._ledger.all("open_of_key", {"agent": row["agent"], "key": row["key"]}):
            if other["state"] == "queued" and other["attempts"] == 0:
                return int(other["id"])
        return None

    def finished(self, dispatch: int, *, run: int | None = None, cause: int | None = None) -> Fact:
        """The fact that a dispatch has reached its end."""
        row = self._row(dispatch)
        detail = {
            "dispatch": dispatch,
            "agent": row["agent"],
            "state": row["state"],
            "subject": row["subject"],
            "reason": row["reason"],
        }
        return Fact("dispatch.finished", "engine", ref=str(dispatch), by=run, cause=cause, detail=detail)

    # -- starting --------------------------------------------------------------------------------------------------

    def choose(self, now: Instant) -> list[StartedRun]:
        """What starts now: each with its run recorded, before anything is done in the world."""
        limits = self.config.limits
        if not len(self._queue):
            return []
        # Who waits for another does nothing, and the other may need the place.
        waiting = {row["agent"] for row in self._ledger.all("waiting_agents", {"now": now.wall})}
        chosen = self._queue.choose(
            Capacity(limits.concurrency, dict(limits.per_driver)),
            self._driver_of,
            lambda agent: self._claim(agent, now),
            waiting,
        )
        starts = []
        for agent, dispatch in chosen:
            self._ledger.run("dispatch_running", {"id": dispatch, "now": now.wall})
            driver = self._driver_of(agent)
            about = {"dispatch": dispatch, "agent": agent, "now": now.wall, "driver": driver}
            run = self._ledger.run("insert_run", about)
            self.pauses.begun(driver, run)
            self._runs.add(agent, now.mono)
            starts.append(StartedRun(run, dispatch, agent))
        return starts

    def _claim(self, agent: str, now: Instant) -> str | None:
        """Why an agent may not start now; where it may, it does."""
        found = self.obstacle(agent, now, remember=True)
        if found is None:
            self.pauses.try_one(self._driver_of(agent), now)
        return found

    def obstacle(self, agent: str, now: Instant, *, remember: bool = False) -> str | None:
        """Why an agent may not start anything now; `remember`: look again when a limit allows."""
        if agent not in self.config.agents:
            return f"agent `{agent}` is not configured any more"
        driver = self._driver_of(agent)
        for kind, name in (("agent", agent), ("driver", driver)):
            found = self.pauses.obstacle(kind, name, now)
            if found is not None:
                return found
        limit = self.config.limits.runs_per_hour
        free_at = self._runs.free_at(agent, limit, now.mono)
        if free_at is not None:
            if remember:
                self._timers.set(f"{RATE}:{agent}", free_at)
            return f"{limit} runs within the last hour (limits.runs_per_hour); the next in {show_duration(free_at - now.mono)}"
        return None

    def _due(self, step: Step, rest: str) -> None:
        del step
        row = self._ledger.one("dispatch", {"id": int(rest)})
        if row is not None and row["state"] == "queued":
            self._queue.add(row["agent"], row["id"], row["priority"])

    # -- ending ----------------------------------------------------------------------------------------------------

    def end(
        self,
        run: Row,
        outcome: str,
        reason: str | None,
        now: Instant,
        *,
        again: bool = True,
        resets: float | None = None,
        usage: Usage | None = None,
        **facts: object,
    ) -> Ended:
        """A run's whole tree is gone: its dispatch is finished, or, where `again`, waits for another attempt."""
        dispatch = self._row(run["dispatch"])
        self._queue.end(run["agent"])
        if run["stop"] is not None and outcome in _NOT_AFTER_STOP:
            outcome, reason = "cancelled", run["stop"]
        ended = {"exit": facts.get("exit"), "signal": facts.get("signal"), "outcome": outcome}
        self._ledger.run("run_ended", {"id": run["id"], "finished": facts.get("finished", now.wall), **ended})
        settings = self.config.agents.get(run["agent"])
        used = self._used(dispatch, usage)
        kept = {"id": dispatch["id"], "session": facts.get("session"), "usage": used}
        limits = False
        if outcome == "limit" and settings is not None:
            driver = run["driver"] or settings.driver
            until, limits = self.pauses.limit(driver, reason or "it does not say which", resets, now)
            wait = until - now.wall
            if again and self._may_wait(settings, dispatch, wait):
                self._ledger.run("dispatch_limited", {**kept, "wait": wait, "reason": reason})
                self._queue.add(run["agent"], dispatch["id"], dispatch["priority"])
                return Ended(outcome, "queued", reason, wait, limits)
            reason = _too_long(settings, reason or "a limit", until, now)
        if outcome == "afresh" and again and settings is not None and dispatch["session"] is not None:
            self._ledger.run("dispatch_afresh", {"id": dispatch["id"], "reason": reason, "usage": used})
            self._queue.add(run["agent"], dispatch["id"], dispatch["priority"])
            return Ended(outcome, "queued", reason, 0.0)
        if again and settings is not None and retry.is_retried(outcome, dispatch["tries"], settings.retries):
            wait = retry.delay_s(dispatch["id"], dispatch["tries"], outcome)
            self._ledger.run("dispatch_again", {**kept, "not_before": now.wall + wait, "reason": reason})
            self._timers.set(f"{RETRY}:{dispatch['id']}", now.mono + wait)
            return Ended(outcome, "queued", reason, wait)
        if outcome == "blocked":
            self._ledger.run("dispatch_blocked", {**kept, "reason": reason})
            return Ended(outcome, "blocked", reason)
        state = {"succeeded": "succeeded", "cancelled": "cancelled", "killed": "cancelled"}.get(
            outcome, "failed"
        )
        if outcome == "start-failed":
            facts["fault"] = reason or outcome
        if outcome in retry.RETRIED and dispatch["tries"] > 1:
            reason = f"{reason or outcome} (after {dispatch['tries']} attempts)"
        self._finish(dispatch["id"], state, reason, now, usage=used, **facts)
        return Ended(outcome, state, reason, limits=limits)

    def _used(self, dispatch: Row, usage: Usage | None) -> str | None:
        """What a dispatch has used with this run, as JSON."""
        before = Usage(**json.loads(dispatch["usage"])) if dispatch["usage"] else None
        found = sum_usage(before, usage)
        return None if found is None else json.dumps(asdict(found))

    def fail_limited(self, driver: str, now: Instant) -> list[int]:
        """Fail what waits for a driver at its limit, of agents that would rather fail; returns what."""
        until, reason = self.pauses.until(driver, now), self.pauses.why("driver", driver)
        if until is None or reason is None:
            return []
        failed = []
        for row in self._ledger.all("queued"):
            settings = self.config.agents.get(row["agent"])
            if settings is None or settings.driver != driver:
                continue
            # What has met the limit itself has its wait counted already.
            if self._may_wait(settings, None, until - now.wall) or (
                settings.on_limit == "wait" and self._row(row["id"])["limited"]
            ):
                continue
            self._queue.remove(row["id"])
            self._timers.drop(f"{RETRY}:{row['id']}")
            self._finish(row["id"], "failed", _too_long(settings, reason, until, now), now)
            failed.append(int(row["id"]))
        return failed

    @staticmethod
    def _may_wait(settings: Agent, dispatch: Row | None, wait: float) -> bool:
        """Whether a dispatch may wait so long for the end of a limit, on top of what it has waited for limits."""
        waited = (dispatch["limited"] or 0.0) if dispatch is not None else 0.0
        return settings.on_limit == "wait" and waited + wait <= settings.max_wait

    def alike(self, agent: str, now: Instant) -> str | None:
        """What the agent's last dispatches failed of, if of the same and within an hour; else None."""
        rows = self._ledger.all("last_faults", {"agent": agent, "since": now.wall - HOUR_S, "limit": ALIKE})
        if len(rows) < ALIKE or any(row["fault"] is None for row in rows):
            return None
        # Ids of requests and moments differ each time.
        faults = {tuple(word for word in _WORD.split(row["fault"]) if _PLAIN.fullmatch(word)) for row in rows}
        return None if len(faults) > 1 else str(rows[0]["fault"])

    def resume(self, name: str) -> list[str]:
        """Start under a name again; returns the kinds that were paused under it."""
        self._ledger.run("forget_faults", {"agent": name})
        return self.pauses.resume(name)

    def _finish(self, dispatch: int, state: str, reason: str | None, now: Instant, **facts: object) -> None:
        about = {name: facts.get(name) for name in ("exit", "session", "fault", "usage")}
        final = {"id": dispatch, "state": state, "now": now.wall, "reason": reason}
        self._ledger.run("dispatch_final", final | about)

    # -- configuration ----------------------------------------------------------------------------------

    def reconfigure(self) -> dict[str, list[int]]:
        """Another configuration is in force: dispatches of agents that are gone are blocked, of those that are back go on.

        Returns what was blocked, by agent.
        """
        config = self.config
        blocked: dict[str, list[int]] = {}
        orphans = set(json.loads(self._ledger.meta(ORPHANS) or "[]"))
        for row in self._ledger.all("queued"):
            if row["agent"] not in config.agents:
                self._queue.remove(row["id"])
                self._timers.drop(f"{RETRY}:{row['id']}")
                blocked.setdefault(row["agent"], []).append(row["id"])
                orphans.add(row["id"])
                self._ledger.run(
                    "dispatch_blocked",
                    {
                        "id": row["id"],
                        "reason": "its agent is not configured any more; configure it again, or cancel this",
                        "session": None,
                        "usage": None,
                    },
                )
        for row in self._ledger.all("find_dispatches", {"agent": None, "state": "blocked", "key": None}):
            whole = self._row(row["id"])
            if row["agent"] in config.agents and row["id"] in orphans:
                orphans.remove(row["id"])
                self._ledger.run(
                    "dispatch_again",
                    {"id": row["id"], "not_before": 0, "reason": None, "session": None, "usage": None},
                )
                self._queue.add(row["agent"], row["id"], whole["priority"])
        self._ledger.run("set_meta", {"key": ORPHANS, "value": json.dumps(sorted(orphans))})
        return blocked

    def is_idle(self) -> bool:
        """Whether nothing is queued, running or due."""
        return (
            not len(self._queue)
            and not self._queue.busy()
            and not any(key.startswith(f"{RETRY}:") for key in self._timers)
        )

    def _driver_of(self, agent: str) -> str:
        settings = self.config.agents.get(agent)
        return settings.driver if settings else "?"

    def _row(self, dispatch: int) -> Row:
        row = self._ledger.one("dispatch", {"id": dispatch})
        assert row is not None
        return row


def _nothing(step: Step, rest: str) -> None:
    """That it came due is enough: the step looks at what may start."""
    del step, rest


def _too_long(settings: Agent, reason: str, until: float, now: Instant) -> str:
    """Why a dispatch does not wait for the end of a limit."""
    if settings.on_limit == "fail":
        return reason
    return f"{reason}; it ends at {show_moment(until, now.wall)}, which is later than max_wait allows"


def key_of(wish: Dispatch) -> str:
    """The explicit key, else the subject, else the text (a long one by its hash). Replies are apart from all else."""
    key = wish.key or wish.subject
    if wish.reply_to is not None:
        return f"reply to {wish.reply_to}: {key_of(replace(wish, reply_to=None))}"
    if not key and len(wish.text) <= LONGEST_KEY_CHARS and "\n" not in wish.text.strip():
        key = wish.text.strip()
    if key:
        # Words of somebody's are never a key of ours: work for a question, or for a phase, is nobody else's to join.
        return key if wish.key or not is_own_key(key) else f"“{key}”"
    return "sha256:" + hashlib.sha256(wish.text.encode("utf-8", "surrogateescape")).hexdigest()
