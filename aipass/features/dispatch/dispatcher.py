"""The rules of the dispatch (job) queue: accept, deduplicate, start, retry, finish and cancel.

Every method runs inside the engine's transaction and changes only the ledger and memory; it starts no process.
After a failed transaction the engine calls `load`, which rebuilds the memory from the ledger.
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

#: A short text of one line is its own deduplication key, so that people can read it; a longer text is hashed.
LONGEST_KEY_CHARS = 120
RETRY, RATE = "retry", "rate"
#: The key in the ledger's `meta` table for dispatches whose agent is no longer configured.
#: It tells them apart from dispatches that are blocked for another reason, such as an open question.
ORPHANS = "orphans"
#: An agent is paused after this many dispatches in a row that failed with the same fault (no API key, no program, no
#: such model).
ALIKE = 3
_WORD, _PLAIN = re.compile(r"[^\w-]+"), re.compile(r"[^0-9]+")
#: Outcomes of a run that was being stopped which count as `cancelled`: the stop itself may have caused them.
_NOT_AFTER_STOP = retry.RETRIED | {"killed", "blocked", "limit", "afresh"}
FINAL = frozenset(("succeeded", "failed", "cancelled"))


@dataclass(frozen=True, slots=True)
class Submitted:
    """The result of a request: the id of its dispatch, or a refusal with an exit code other than 0.

    `text` is for people.
    """

    text: str
    dispatch: int | None = None
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The outcome of an ended run and the new state of its dispatch. `retry_in`: seconds until the next attempt."""

    outcome: str
    state: str
    reason: str | None
    retry_in: float | None = None
    #: Whether this run was the first to meet its driver's limit, so that `driver.paused` is an event once per limit.
    limits: bool = False


@dataclass(frozen=True, slots=True)
class StartedRun:
    """A run that is recorded in state `starting` and that the engine starts after the commit."""

    run: int
    dispatch: int
    agent: str


class Dispatcher:
    """Applies the queue's rules to the ledger and keeps the waiting dispatches in memory.

    Used by the engine's thread only.
    """

    def __init__(self, core: Core) -> None:
        self._core, self._ledger, self._timers = core, core.ledger, core.timers
        self._queue = Queue()
        self._runs = Hourly()
        self.pauses = Pauses(core.ledger, core.timers)
        core.add_timer(RETRY, self._due)
        # Each step ends with `choose`: for these two it is enough that their timer makes a step happen.
        core.add_timer(RATE, _nothing)
        core.add_timer(LIMIT, _nothing)

    @property
    def config(self) -> Config:
        """The configuration in force now; a reload replaces it, so it must not be kept."""
        return self._core.config()

    def load(self, now: Instant) -> None:
        """Rebuild the queue, the hourly counters, the pauses and the retry timers from the ledger; idempotent."""
        self._timers.drop_all(RETRY)
        self._queue = Queue()
        self._runs.clear()
        for row in self._ledger.all("runs_since", {"since": now.wall - HOUR_S}):
            # A wall clock that was set back must not lengthen the hour.
            self._runs.add(row["agent"], now.mono - max(0.0, now.wall - row["created"]))
        self.pauses.load(now)
        for row in self._ledger.all("live_runs"):
            self._queue.begin(row["agent"], self._driver_of(row["agent"]))
        for row in self._ledger.all("queued"):
            # `not_before` is wall time: a clock that was set back must not make a retry wait longer than the longest
            # backoff.
            wait = min(row["not_before"] - now.wall, retry.LONGEST_S * (1 + retry.JITTER))
            if row["not_before"] and wait > 0:
                self._timers.set(f"{RETRY}:{row['id']}", now.mono + wait)
            else:
                self._queue.add(row["agent"], row["id"], row["priority"])

    # -- asking ----------------------------------------------------------------------------------------------------

    def submit(
        self, event: Event, handler: str, wish: Dispatch, now: Instant, hops: int | None = None
    ) -> Submitted:
        """Queue a requested dispatch, or join it to an open one with the same key (deduplication).

        Returns the dispatch's id, or a refusal; raises nothing. The work of a plan's phase never joins. `hops`: the length of
        the chain of causes; None: one more than that of the run that caused `event`.
        """
        if wish.agent not in self.config.agents:
            return Submitted(f"refused: there is no agent `{wish.agent}`", exit_code=EXIT_USAGE)
        settings = self.config.agents[wish.agent]
        until = self.pauses.until(settings.driver, now)
        # An agent with `on_limit = "fail"`, or a short `max_wait`, gets the refusal now: it would only fail in the queue.
        if until is not None and not self._may_wait(settings, None, until - now.wall):
            return Submitted(f"refused: {self.obstacle(wish.agent, now)}", exit_code=EXIT_REFUSED)
        if (wrong := self._wrong_reply(wish)) is not None:
            return Submitted(f"refused: {wrong}", exit_code=EXIT_FAILED)
        hops = self.hops(event.by) if hops is None else hops
        if hops > self.config.limits.hops:
            return Submitted(
                f"refused: a chain of {hops} agents that start each other is too long; limits.hops is {self.config.limits.hops}",
                exit_code=EXIT_REFUSED,
            )
        # A blocked dispatch waits for exactly this reply: its next attempt gets it in the same conversation.
        if wish.reply_to is not None and self._row(wish.reply_to)["state"] == "blocked":
            return self._go_on(wish.reply_to, event, wish, now, hops)
        key = key_of(wish)
        same = queued = None
        joins = self._ledger.all("open_of_key", {"agent": wish.agent, "key": key})
        if wish.plan is not None and joins:
            # A sender guessed the phase's key. The phase gets a key of its own: a foreign text must not enter its prompt.
            joins, key = [], f"{key} {event.id}.{len(joins)}"
        for row in joins:
            if row["state"] == "queued":
                queued = queued or row
            # The prompt of a started dispatch is fixed: only a sender who asks for the same can still share its answer.
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
        """Queue a blocked dispatch again with the reply it waited for.

        The chain length is that of the reply: an agent's reply makes the chain longer, a person's starts a new one.
        """
        self._add_sender(dispatch, event, wish, now)
        done = self.retry(dispatch)
        if done.exit_code:
            return done
        self._ledger.run("dispatch_hops", {"id": dispatch, "hops": hops})
        return replace(done, text=f"dispatch {dispatch} goes on")

    def _wrong_reply(self, wish: Dispatch) -> str | None:
        """The reason why `reply_to` is not usable; None if it is usable or not given."""
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
        """The length of the chain of causes (hops) for work that the run `by` caused; 0 if no known run caused it."""
        if by is None:
            return 0
        row = self._ledger.one("run_hops", {"run": by})
        return 0 if row is None else int(row["hops"]) + 1

    def _has_text(self, dispatch: int, wish: Dispatch, event: Event) -> bool:
        for row in self._ledger.all("senders", {"dispatch": dispatch}):
            # Two dropped files may have the same empty text: their content decides.
            content = json.loads(row["file"]).get("sha256") if row["file"] else None
            if row["text"] == wish.text and (wish.file is None or content == event.detail.get("sha256")):
                return True
        return False

    def _add_sender(self, dispatch: int, event: Event, wish: Dispatch, now: Instant) -> None:
        file = None
        if wish.file is not None:
            name = wish.file.rpartition("/")[2]
            # Several senders share the dispatch's folder, and their files may have one name: the later gets a number.
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
        """Cancel a dispatch; returns the answer, and the id of the run that the caller must stop (None: no run lives).

        A running dispatch becomes `cancelled` only when its run has ended. A finished one is refused.
        """
        row = self._ledger.one("dispatch", {"id": dispatch})
        if row is None:
            return Submitted(f"there is no dispatch {dispatch}", exit_code=EXIT_FAILED), None
        if row["state"] == "running":
            run = self._ledger.one("live_run_of", {"dispatch": dispatch})
            if run is not None:
                # Recorded, so that an engine that restarts now repeats the request to stop.
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
        """Queue a dispatch again, with all its senders and a fresh count of attempts.

        Refuses a running dispatch, the finished work of a phase, and one whose key another queued dispatch has.
        """
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
        # The ledger's unique index allows one queued dispatch without attempts per agent and key.
        if row["attempts"] == 0 and row["state"] != "queued" and self._queued_twin(row):
            return Submitted(
                f"dispatch {self._queued_twin(row)} is already queued under the same key",
                exit_code=EXIT_REFUSED,
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
        """The fact `dispatch.finished` for a dispatch in a final state.

        `run`: the run that ended it, `cause`: the event.
        """
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
        """Choose the dispatches that start now and record a run for each; the caller starts them after the commit.

        A crash between the commit and the start loses nothing: the next engine finds the run in state `starting`.
        """
        limits = self.config.limits
        if not len(self._queue):
            return []
        # A run that waits for another agent's answer uses no CPU. If it kept its place, `concurrency = 1` would deadlock.
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
        """The obstacle of an agent; without one, the agent counts as chosen: after a limit it becomes the trial run."""
        found = self.obstacle(agent, now, remember=True)
        if found is None:
            self.pauses.try_one(self._driver_of(agent), now)
        return found

    def obstacle(self, agent: str, now: Instant, *, remember: bool = False) -> str | None:
        """The reason why an agent must not start a run now, else None.

        `remember`: set a timer for the end of a rate limit.
        """
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
            return f"{limit} runs within the last hour (limits.runs_per_hour); the next may start in {show_duration(free_at - now.mono)}"
        return None

    def _due(self, step: Step, rest: str) -> None:
        del step
        row = self._ledger.one("dispatch", {"id": int(rest)})
        # It may have been cancelled in the same step in which its timer came due.
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
        """Record that a run's whole process tree has ended, and finish, block or requeue its dispatch.

        `again`: whether another attempt is allowed. `resets`: when a limit ends, in seconds since the epoch. Further columns of
        the ledger come as `facts`: `exit`, `signal`, `session`, `fault`, `finished`.
        """
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
            until, limits = self.pauses.limit(driver, reason or "the CLI does not name it", resets, now)
            wait = until - now.wall
            if again and self._may_wait(settings, dispatch, wait):
                self._ledger.run("dispatch_limited", {**kept, "wait": wait, "reason": reason})
                self._queue.add(run["agent"], dispatch["id"], dispatch["priority"])
                return Ended(outcome, "queued", reason, wait, limits)
            reason = _too_long(settings, reason or "a limit", until, now)
        # Only with a session: an attempt without one that reports `afresh` would repeat without end, for it costs no
        # attempt.
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
            # A failed start does not depend on the task, so it counts towards the pause of the agent.
            facts["fault"] = reason or outcome
        if outcome in retry.RETRIED and dispatch["tries"] > 1:
            reason = f"{reason or outcome} (after {dispatch['tries']} attempts)"
        self._finish(dispatch["id"], state, reason, now, usage=used, **facts)
        return Ended(outcome, state, reason, limits=limits)

    def _used(self, dispatch: Row, usage: Usage | None) -> str | None:
        """The dispatch's usage including this run, as JSON; None if no run reported any."""
        before = Usage(**json.loads(dispatch["usage"])) if dispatch["usage"] else None
        found = sum_usage(before, usage)
        return None if found is None else json.dumps(asdict(found))

    def fail_limited(self, driver: str, now: Instant) -> list[int]:
        """Fail the queued dispatches that must not wait for the end of a driver's limit (`on_limit`, `max_wait`).

        Returns their ids; does nothing if the driver is at no limit.
        """
        until, reason = self.pauses.until(driver, now), self.pauses.why("driver", driver)
        if until is None or reason is None:
            return []
        failed = []
        for row in self._ledger.all("queued"):
            settings = self.config.agents.get(row["agent"])
            if settings is None or settings.driver != driver:
                continue
            # A dispatch that met the limit itself was judged in `end`, where its wait was counted.
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
        """Whether a dispatch may wait `wait` more seconds for the end of a limit; earlier waits for limits count."""
        waited = (dispatch["limited"] or 0.0) if dispatch is not None else 0.0
        return settings.on_limit == "wait" and waited + wait <= settings.max_wait

    def alike(self, agent: str, now: Instant) -> str | None:
        """The common fault of the agent's last ALIKE dispatches, if all ended with it within an hour; else None."""
        rows = self._ledger.all("last_faults", {"agent": agent, "since": now.wall - HOUR_S, "limit": ALIKE})
        if len(rows) < ALIKE or any(row["fault"] is None for row in rows):
            return None
        # Words with digits are left out of the comparison: request ids and times differ in each message.
        faults = {tuple(word for word in _WORD.split(row["fault"]) if _PLAIN.fullmatch(word)) for row in rows}
        return None if len(faults) > 1 else str(rows[0]["fault"])

    def resume(self, name: str) -> list[str]:
        """End all pauses of a name; returns the kinds that were paused (`agent`, `driver`, `rule`, `handler`)."""
        # Otherwise the next failure would pause the agent again, together with two failures from before the repair.
        self._ledger.run("forget_faults", {"agent": name})
        return self.pauses.resume(name)

    def _finish(self, dispatch: int, state: str, reason: str | None, now: Instant, **facts: object) -> None:
        about = {name: facts.get(name) for name in ("exit", "session", "fault", "usage")}
        final = {"id": dispatch, "state": state, "now": now.wall, "reason": reason}
        self._ledger.run("dispatch_final", final | about)

    # -- configuration ----------------------------------------------------------------------------------

    def reconfigure(self) -> dict[str, list[int]]:
        """Adapt the queue to a new configuration: block dispatches of removed agents, requeue those of agents that are back.

        Returns the ids that were blocked, by agent. Idempotent.
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
        """Whether no dispatch is queued or running and no retry timer is set."""
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
    """Does nothing: the timer only has to cause a step, and each step ends with a look at the queue."""
    del step, rest


def _too_long(settings: Agent, reason: str, until: float, now: Instant) -> str:
    """The reason of a dispatch that fails instead of waiting for the end of a limit."""
    if settings.on_limit == "fail":
        return reason
    return f"{reason}; it ends at {show_moment(until, now.wall)}, which is later than max_wait allows"


def key_of(wish: Dispatch) -> str:
    """The deduplication key: the explicit key, else the subject, else the text (a long text as its SHA-256).

    Keys of replies have a prefix with the dispatch's id, so that a reply joins only replies to the same dispatch.
    """
    key = wish.key or wish.subject
    if wish.reply_to is not None:
        return f"reply to {wish.reply_to}: {key_of(replace(wish, reply_to=None))}"
    if not key and len(wish.text) <= LONGEST_KEY_CHARS and "\n" not in wish.text.strip():
        key = wish.text.strip()
    if key:
        # A subject or text that looks like an internal key is quoted: its sender must not join the work of a phase or a
        # question.
        return key if wish.key or not is_own_key(key) else f"“{key}”"
    return "sha256:" + hashlib.sha256(wish.text.encode("utf-8", "surrogateescape")).hexdigest()
