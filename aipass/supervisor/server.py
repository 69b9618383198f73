"""The supervisor's event loop: starts, reaps and stops runs, and reports to the engines that are connected."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass.supervisor import held, hold, lockers, mark, process, wire
from aipass.supervisor.fence import kernel
from aipass.supervisor.fence.keeper import FenceController
from aipass.supervisor.refusals import Refusals, Unheard
from aipass.supervisor.run import Run
from aipass.supervisor.spawn import Spec, explain, spawn
from aipass.supervisor.strays import Strays, folder_of
from aipass.supervisor.timers import Schedule
from aipass.supervisor.trees import Trees

if TYPE_CHECKING:
    from collections.abc import Callable

# Concurrent starts: more threads would only wait for each other.
MAX_SPAWNING = 4
# Processes that an agent leaves behind can finish by themselves for this long before they are stopped.
LINGER_GRACE_S = 2.0
# Without an engine and without a run the supervisor exits after this.
IDLE_EXIT_S = 10.0
STEPS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
# After this many KILLs a process hangs in the kernel. An unfenced run is then reported as ended; a fenced one waits further.
MAX_KILLS = 20
#: Interval of further KILLs for a process that KILL does not end (it waits for a disk).
UNKILLABLE_S = 10.0
# Interval of retries where `exit` cannot be written (full disk).
WRITE_AGAIN_S = 1.0
# Interval of checks for a run whose first process has ended and whose other processes are no children of ours (no SIGCHLD).
LOOK_AGAIN_S = 0.05
# After an unassigned process with a run's mark has ended, it may have forked another one: the run is not over for this long.
SEEN_S = 0.2
# With a fence, the automatic garbage collector is off (see `_fence`) and this thread collects at this interval.
COLLECT_EVERY_S = 30.0
# The quarantine of temporary files must not delay the end of a run for longer, on a disk that hangs.
TIDY_S = 30.0
# Limit of messages that are kept while no engine is connected; the oldest is dropped beyond it.
MAX_UNHEARD = 10_000

# Only an engine sends these. `aipass down --kill` connects as well, but must not receive the kept messages.
_WORDS_OF_AN_ENGINE = frozenset(("territory", "adopt", "start"))


class Supervisor:
    """Runs by id, connections, and timers. All methods run in the main thread unless they say otherwise."""

    def __init__(self, state: Path, version: str) -> None:
        self.state, self.version = state, version
        self._keeper: FenceController | None = None
        self._territory: dict[str, Any] | None = None
        self._fence_said: deque[dict[str, Any]] = deque()
        self._unheard = Unheard(MAX_UNHEARD)
        #: Connections of engines. Other clients (`down --kill`) receive messages too, but not those kept for the next engine.
        self._listening: set[socket.socket] = set()
        self._runs: dict[int, Run] = {}
        self._leaders: dict[int, Run] = {}
        self._owner: dict[int, Run] = {}
        # Wait statuses of children that ended before their start was reported, by process id.
        self._early: dict[int, int] = {}
        self._waiting: deque[Spec] = deque()
        self._spawning = 0
        self._spawned: deque[tuple[Spec, int, str | None]] = deque()
        self._strays: dict[int, Strays] = {}
        self._timers = Schedule()
        self._refusals = Refusals(self._timers, self._tell_event)
        self._selector = selectors.DefaultSelector()
        self._engines: dict[socket.socket, wire.MessageReader] = {}
        self._idle_since: float | None = time.monotonic()
        self._ending = False
        # Signal handlers and other threads write here to wake the loop (self-pipe).
        self._wake_in, self._wake_out = os.pipe()
        self._files_limit = _raise_files_limit()
        self._own_command_line = process.command_line(os.getpid())
        self._told_to_end = False
        self._trees = Trees()
        (state / "locks").mkdir(mode=0o700, exist_ok=True)

    # -- the loop --------------------------------------------------------------------------------------------------

    def serve(self, listener: socket.socket) -> None:
        """Serve until no run and no engine is left for IDLE_EXIT_S, or until the end was requested and all runs have ended."""
        self._catch_signals()
        process.adopt_orphans()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_in, selectors.EVENT_READ, self._woken)
        collected = time.monotonic()
        while not self._is_done():
            due = self._timers.next()
            idle = None if self._idle_since is None else self._idle_since + IDLE_EXIT_S
            when = min((t for t in (due, idle) if t is not None), default=None)
            for key, _ in self._selector.select(None if when is None else max(0.0, when - time.monotonic())):
                self._guarded(key.data, key.fileobj)
            self._guarded(self._timers.fire, time.monotonic())
            if not gc.isenabled() and time.monotonic() - collected > COLLECT_EVERY_S:
                collected = time.monotonic()
                gc.collect()
        for engine in list(self._engines):
            self._drop(engine)

    def _guarded(self, call: Callable[[Any], None], argument: Any) -> None:  # noqa: ANN401 - a socket, or a moment
        """Call, and log any exception: a failure of one run must not end the others."""
        try:
            call(argument)
        except Exception as exc:  # noqa: BLE001 - the loop's boundary
            _say(f"unexpected error (a bug, or a broken disk): {exc!r} in {call!r}")

    def _is_done(self) -> bool:
        busy = bool(self._runs or self._strays or self._waiting or self._spawning)
        if busy or (self._engines and not self._ending):
            self._idle_since = None
            return False
        if self._ending:
            return True
        if self._idle_since is None:
            self._idle_since = time.monotonic()
        return time.monotonic() - self._idle_since >= IDLE_EXIT_S

    def _catch_signals(self) -> None:
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        signal.set_wakeup_fd(self._wake_out, warn_on_full_buffer=False)
        # No-op handlers instead of SIG_IGN, which agents would inherit across exec.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: object) -> None:
        self._told_to_end = True

    def _woken(self, pipe: int) -> None:
        try:
            while os.read(pipe, 4096):
                pass
        except BlockingIOError:
            pass
        while self._spawned:
            self._on_spawned(*self._spawned.popleft())
        while self._fence_said:
            self._on_fence(self._fence_said.popleft())
        self._reap()
        if self._told_to_end and not self._ending:
            # A shutdown of the machine or a `kill`: the work was not cancelled, so the outcome `lost` lets the engine retry it.
            self._end("lost")

    # -- the engine ------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if not wire.is_own_user(connection):
            connection.close()
            return
        connection.setblocking(False)
        self._engines[connection] = wire.MessageReader()
        self._selector.register(connection, selectors.EVENT_READ, self._receive)
        self._tell({"tell": "hello", "pid": os.getpid(), "version": self.version})

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        try:
            messages = self._engines[connection].feed(data)
        except ValueError as exc:
            _say(f"closed a connection with a malformed message: {exc}")
            self._drop(connection)
            return
        for message in messages:
            if connection not in self._listening and message.get("do") in _WORDS_OF_AN_ENGINE:
                self._listening.add(connection)
                while self._unheard and self._listening:
                    self._tell(self._unheard.popleft())
            try:
                self._obey(message)
            except (KeyError, TypeError, ValueError) as exc:
                _say(f"ignored a malformed message {str(message)[:300]}: {exc!r}")

    def _drop(self, connection: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection)
        self._engines.pop(connection, None)
        self._listening.discard(connection)
        connection.close()

    def _tell(self, message: dict[str, Any]) -> None:
        """Send to every connection. Without a connection nothing is lost: run results are in the run folders."""
        data = wire.pack(message)
        for connection in list(self._engines):
            try:
                connection.setblocking(True)
                # A client that does not read for 5 s is disconnected: it must not block the loop.
                connection.settimeout(5.0)
                connection.sendall(data)
                connection.setblocking(False)
            except OSError:
                self._drop(connection)

    def _tell_event(self, message: dict[str, Any]) -> None:
        """Send a message that is in no file; without an engine, keep it for the next one."""
        if self._listening:
            self._tell(message)
        else:
            self._unheard.append(message)

    def _obey(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "unlock":
                ended = lockers.end_of_runs(*map(Path, message["files"]))
                self._tell({"tell": "unlocked", "ended": [one._asdict() for one in ended]})
            case "territory":
                self._territory = message
                if self._keeper is None:
                    self._tell({"tell": "territory", "serial": message["serial"], "replaced": []})
                else:
                    self._keeper.set_territory(message)
            case "start":
                self._start(Spec.of(message))
            case "stop":
                self._stop_known(int(message["run"]), str(message["why"]), str(message["reason"]))
            case "adopt":
                self._adopt(
                    int(message["run"]), str(message["agent"]), Path(message["folder"]), str(message["root"])
                )
            case "end":
                self._end()
            case other:
                raise ValueError(f"unknown word {other!r}")

    def _stop_known(self, number: int, why: str, reason: str) -> None:
        """Stop a run; one that waits for its start is removed and reported as ended."""
        if (run := self._runs.get(number)) is not None:
            self._stop(run, why, reason)
        elif any(spec.run == number for spec in self._waiting):
            self._waiting = deque(spec for spec in self._waiting if spec.run != number)
            self._tell({"tell": "ended", "run": number, "outcome": why, "reason": reason})

    def _end(self, why: str = "killed") -> None:
        """Stop all runs; the loop exits when they have ended."""
        self._ending = True
        reason = (
            "ended by `aipass down --kill`" if why == "killed" else "its supervisor was stopped (SIGTERM)"
        )
        while self._waiting:
            self._tell(
                {"tell": "ended", "run": self._waiting.popleft().run, "outcome": why, "reason": reason}
            )
        for run in list(self._runs.values()):
            self._stop(run, why, reason)

    # -- starting --------------------------------------------------------------------------------------------------

    def _start(self, spec: Spec) -> None:
        # Idempotent: an engine that restarted sends `start` again for runs of which it has no result.
        if self._tell_known(spec.run, spec.folder) or any(
            spec.run == waiting.run for waiting in self._waiting
        ):
            return
        if self._ending:
            self._tell({"tell": "busy", "run": spec.run, "reason": "the supervisor is ending"})
            return
        self._waiting.append(spec)
        self._spawn_next()

    def _tell_known(self, run: int, folder: Path) -> bool:
        """Report the state of a run that was started before; False where there was no such run."""
        known = self._runs.get(run)
        if known is not None:
            if known.leader is not None:
                self._tell(_started(known))
            return True
        if (record := wire.read_exit(folder)) is not None:
            self._tell({"tell": "ended", **record})
            return True
        return False

    def _spawn_next(self) -> None:
        while self._waiting and self._spawning < MAX_SPAWNING and not self._ending:
            spec = self._waiting.popleft()
            lock = None
            try:
                lock = self._lock_agent(spec.agent)
                if lock is None:
                    self._tell(
                        {
                            "tell": "busy",
                            "run": spec.run,
                            "reason": f"another run of {spec.agent} still holds its lock",
                        }
                    )
                    continue
                # From here on another supervisor regards the run as started, even if this one is killed: no run starts twice.
                (spec.folder / wire.CLAIM).touch()
            except OSError as exc:
                if lock is not None:
                    lock.release()
                self._tell(
                    {
                        "tell": "busy",
                        "run": spec.run,
                        "reason": f"{exc.filename or spec.folder}: {exc.strerror}",
                    }
                )
                continue
            run = self._runs[spec.run] = Run(spec, lock)
            run.quiet = not run.is_fenced
            self._spawning += 1
            if spec.ground is None:
                spawn(spec, self._files_limit, self._report_spawned)
            else:
                self._fence().start(spec, self._files_limit, self._report_spawned)

    def _report_spawned(self, spec: Spec, pid: int, error: Exception | None) -> None:
        """Queue the result of a start and wake the loop. Called from the starting thread."""
        self._spawned.append((spec, pid, None if error is None else explain(spec, error)))
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_out, b"s")

    def _on_spawned(self, spec: Spec, pid: int, error: str | None) -> None:
        self._spawning -= 1
        run = self._runs[spec.run]
        if error is not None:
            run.why, run.reason = "start-failed", error
            self._finish(run)
        else:
            now = time.monotonic()
            run.leader = process.look(pid) or process.Process(pid, os.getpid(), pid, 0, "?")
            run.started, run.heard = time.time(), now
            self._leaders[pid] = run
            # `_claim_orphans` may have taken it for an orphan before its start was reported.
            run.orphans.discard(pid)
            self._owner.pop(pid, None)
            with contextlib.suppress(OSError):
                # Best effort: a later supervisor also finds the processes by their marks.
                noted = {
                    "pid": pid,
                    "start": run.leader.start,
                    "mark": run.mark,
                    "folder": folder_of(spec.folder),
                }
                held.write_atomic(spec.folder / wire.STARTED, json.dumps(noted))
            self._tell(_started(run))
            if spec.timeout_s:
                self._timers.at(
                    now + spec.timeout_s,
                    lambda _: self._stop(run, "timeout", "it took longer than its timeout"),
                )
            if spec.stall_s:
                self._timers.at(now + spec.stall_s, lambda now: self._look_for_stall(run, now))
            if pid in self._early:
                del self._leaders[pid]
                run.end(self._early.pop(pid))
                self._settle_anew(run)
            if run.stage is not None:
                self._signal(run, time.monotonic())
        if not self._spawning:
            self._early.clear()
        self._spawn_next()

    def _fence(self) -> FenceController:
        """The fence, created for the first run that needs it."""
        if self._keeper is None:
            # The fence's thread has its own descriptor table, so one number means different files in two threads. The garbage
            # collector could close a file object in the wrong thread.
            gc.disable()
            # Agents run as the same user: they must not trace the supervisor or open its memory.
            kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
            self._keeper = FenceController(str(self.state.parent), self._say_from_fence, (self._wake_out,))
            if self._territory is not None:
                self._keeper.set_territory(self._territory)
        return self._keeper

    def _say_from_fence(self, message: dict[str, Any]) -> None:
        """Queue a message and wake the loop. Called from the fence's thread."""
        self._fence_said.append(message)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_out, b"f")

    def _on_fence(self, message: dict[str, Any]) -> None:
        match message["tell"]:
            case "fence-error":
                _say(f"internal error in the fence; the call was refused: {message['text']}")
            case "denied":
                self._refusals.add(message)
            case "territory":
                self._tell(message)
            case "kept":
                self._tell_event(message)
                if (run := self._runs.get(message["run"])) is not None:
                    reason = f"{message['path']} was handed over and could not be taken from it: {message['reason']}"
                    self._stop(run, "cancelled", reason)
            case "quiet":
                if (run := self._runs.get(message["run"])) is not None:
                    run.quiet = True
                    self._settle_if_gone(run)
            case "tidied":
                if (run := self._runs.get(message["run"])) is not None:
                    run.quarantined = message["left"]
                    run.tidied = True
                    self._finish(run)

    def _lock_agent(self, agent: str) -> hold.ProcessLock | None:
        """Take the agent's process lock: at most one run per agent, across all engines and supervisors. None where it is held."""
        return hold.take(self.state / "locks" / f"{agent}.lock")

    # -- ending ----------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Reap all ended children, then check once for orphans: a thousand runs that are stopped end together."""
        ended: list[Run] = []
        pid = _ended_child()
        if not pid:
            return
        while pid:
            # Before waitpid: afterwards the process and its mark are gone from /proc.
            number = None if pid in self._leaders or pid in self._owner else mark.read(pid)
            _, status = os.waitpid(pid, 0)
            if (run := self._leaders.pop(pid, None)) is not None:
                run.end(status)
                ended.append(run)
            elif (owner := self._owner.pop(pid, None)) is not None:
                owner.orphans.discard(pid)
                owner.seen = time.monotonic()
            elif self._spawning:
                # It can be the first process of a run whose starting thread has not reported yet.
                self._early[pid] = status
            if number is not None:
                # A process that forks and exits immediately is never seen alive, only reaped.
                for run in self._runs.values():
                    if run.mark == number:
                        run.seen = time.monotonic()
            pid = _ended_child()
        just_now = set(ended)
        ended += [
            run
            for run in self._runs.values()
            if run.leader and run.status is not None and run not in just_now
        ]
        self._claim_orphans(ended)
        for run in ended:
            self._settle(run)

    def _look_again(self, run: Run) -> None:
        run.is_looked_at = False
        self._settle_anew(run)

    def _settle_anew(self, run: Run) -> None:
        """Check again for remaining processes of a run whose first process has ended."""
        self._claim_orphans([run])
        self._settle(run)

    def _settle(self, run: Run) -> None:
        """Finish a run whose first process has ended; report and later stop processes that it left behind."""
        if run.id not in self._runs:
            return
        if not run.orphans and run.quiet and run.is_fenced:
            self._finish(run)
            return
        if not run.orphans and run.is_looked_at:
            return
        # A remaining process need not be our child: its parent can live in another run's tree or outside of all runs.
        left = run.orphans or self._trees.remains(run)
        if not left and run.quiet and time.monotonic() - run.seen > SEEN_S:
            self._finish(run)
            return
        if not run.orphans:
            # No SIGCHLD will report its end.
            run.is_looked_at = True
            self._timers.at(time.monotonic() + LOOK_AGAIN_S, lambda _: self._look_again(run))
        if left and not run.told_orphans:
            run.told_orphans = True
            run.left = [f"{pid} {process.command_line(pid)}" for pid in sorted(left)]
            self._tell(
                {"tell": "lingering", "run": run.id, "processes": run.left, "allowed": run.spec.linger}
            )
            if not run.spec.linger and run.stage is None:
                self._timers.at(time.monotonic() + LINGER_GRACE_S, lambda _: self._stop(run, "exited", None))

    def _claim_orphans(self, ended: list[Run]) -> None:
        """Assign new children of the supervisor (orphans) to their runs.

        `ended`: runs whose first process has ended, the most recent one first.
        """
        if not any(run.id in self._runs for run in ended):
            return
        for pid in process.own_children() - self._leaders.keys() - self._owner.keys() - self._early.keys():
            found = process.look(pid)
            if found is None or found.state in "ZX":
                continue
            if self._spawning and process.command_line(pid) == self._own_command_line:
                continue  # a starting run between vfork and exec
            owner = self._owner_of(pid, found.session) or self._only_possible(found, ended)
            if owner is None or owner.leader is None:
                continue
            owner.orphans.add(pid)
            self._owner[pid] = owner

    def _only_possible(self, orphan: process.Process, ended: list[Run]) -> Run | None:
        """A run that just ended, for an orphan without any mark; None if it can belong to another living run.

        Then it stays unassigned until those runs have ended.
        """
        others = (
            run for run in self._runs.values() if run not in ended and run.leader and run.status is None
        )
        return None if any(run.leader.start <= orphan.start for run in others if run.leader) else ended[0]

    def _owner_of(self, pid: int, session: int) -> Run | None:
        if (number := mark.read(pid)) is not None:
            # A fenced process cannot change its mark, so the mark decides, also against the environment.
            return next((run for run in self._runs.values() if run.mark == number), None)
        environment = process.environment(pid)
        named = environment.get(wire.MARK_RUN, "")
        # The agent can have written anything there, non-ASCII digits included.
        run = self._runs.get(int(named)) if named.isascii() and named.isdigit() and len(named) < 19 else None
        if run is not None and environment.get(wire.MARK_ROOT) == run.spec.root:
            return run
        return next((run for run in self._runs.values() if run.leader and run.leader.pid == session), None)

    def _finish(self, run: Run) -> None:
        """Record the end of a run, release its agent's lock, and report it, in this order.

        Idempotent. Where the record cannot be written, the run stays known and the call is repeated.
        """
        if run.id not in self._runs:
            return  # scheduled more than once while the disk was full
        self._refusals.flush(run.id)
        if not run.tidied and self._keeper is not None:
            if not run.tidying:
                run.tidying = True
                self._keeper.finish(run.spec, lambda left: self._say_from_fence(_tidied(run, left)))
                # A disk that hangs must not keep the run from ending.
                self._timers.at(time.monotonic() + TIDY_S, lambda _: self._on_fence(_tidied(run, [])))
            return
        try:
            record = run.write_exit()
        except OSError as exc:
            # A full disk. The run stays known: an engine that asks in between must not conclude that it was lost.
            _say(f"run {run.id}: cannot write its result, retrying: {exc}")
            self._timers.at(time.monotonic() + WRITE_AGAIN_S, lambda _: self._finish(run))
            return
        del self._runs[run.id]
        run.lock.release()
        self._tell({"tell": "ended", **record})

    def _stop(self, run: Run, why: str, reason: str | None) -> None:
        """Begin the stop sequence (INT, TERM, KILL) for the whole process tree. Idempotent: the first caller's reason counts."""
        if run.id not in self._runs or run.stage is not None:
            return
        run.stage = 0
        if why != "exited":
            run.why, run.reason = why, reason
        if run.leader is not None:
            self._signal(run, time.monotonic())

    def _signal(self, run: Run, now: float) -> None:
        if run.id not in self._runs or run.stage is None:
            return
        number = STEPS[min(run.stage, 2)]
        try:
            reached = self._trees.signal(run, number, self._due_with(run, now))
        except OSError as exc:
            # The next step follows all the same.
            _say(f"run {run.id}: {number.name} could not be sent: {exc}")
            reached = []
        run.steps.append({"signal": number.name, "time": time.time(), "pids": reached[:50]})
        wait = run.spec.waits[min(run.stage, 2)]
        run.stage += 1
        if run.stage > MAX_KILLS and not run.quiet:
            # A fenced process is still alive. Its files must not pass to another run before it has ended.
            if run.stage == MAX_KILLS + 1:
                _say(
                    f"run {run.id}: processes {reached} do not end; the run stays active until they have ended"
                )
            wait = max(wait, UNKILLABLE_S)
        elif run.stage > MAX_KILLS:
            run.reason = f"{run.reason or 'it was stopped'}; processes {reached} cannot be killed"
            run.orphans.clear()
            if run.status is None:
                run.end(9)
            self._leaders.pop(run.leader.pid if run.leader else 0, None)
            self._finish(run)
            return
        run.due = now + wait
        self._timers.at(run.due, lambda now: self._signal(run, now))
        self._settle_if_gone(run)

    def _due_with(self, run: Run, now: float) -> list[Run]:
        """All runs that get the same signal now, this one included."""
        return [
            one for one in self._runs.values() if one is run or (one.stage == run.stage and one.due <= now)
        ]

    def _settle_if_gone(self, run: Run) -> None:
        if run.status is not None:
            self._settle_anew(run)

    def _look_for_stall(self, run: Run, now: float) -> None:
        if run.id not in self._runs or run.status is not None:
            return
        try:
            size = tuple(os.stat(run.spec.folder / name).st_size for name in (wire.STDOUT, wire.STDERR))
        except OSError:
            size = run.output
        wrote = self._keeper.last_write(run.id) if self._keeper is not None else 0.0
        if size != run.output:
            run.output, run.heard = (size[0], size[1]), now
        elif wrote > run.heard:
            run.heard = wrote
        elif now - run.heard >= run.spec.stall_s:
            self._tell({"tell": "stalled", "run": run.id, "quiet_s": round(now - run.heard, 3)})
            run.heard = now
        self._timers.at(run.heard + run.spec.stall_s, lambda now: self._look_for_stall(run, now))

    # -- what an earlier supervisor left ---------------------------------------------------------------------------

    def _adopt(self, run: int, agent: str, folder: Path, root: str) -> None:
        """Report the state of a run that the ledger lists as active; end its processes where its supervisor was killed."""
        if self._tell_known(run, folder) or run in self._strays:
            return
        lock = self._lock_agent(agent)
        if lock is None:
            return  # a supervisor of another version is running it and will report
        if not (folder / wire.CLAIM).exists():
            lock.release()
            self._tell({"tell": "unknown", "run": run})
            return
        strays = Strays(run, folder, root, lock)
        self._strays[run] = strays
        self._end_strays(strays, time.monotonic())

    def _end_strays(self, strays: Strays, now: float) -> None:
        wait = strays.step()
        if wait is not None:
            self._timers.at(now + wait, lambda now: self._end_strays(strays, now))
            return
        try:
            record = strays.write_exit()
        except OSError as exc:
            _say(f"run {strays.run}: cannot write that it was lost, retrying: {exc}")
            self._timers.at(now + WRITE_AGAIN_S, lambda now: self._end_strays(strays, now))
            return
        del self._strays[strays.run]
        strays.lock.release()
        self._tell({"tell": "ended", **record})


def _ended_child() -> int:
    """Id of a child that has ended and is not yet reaped; 0 where there is none."""
    try:
        # WNOWAIT: the child stays a zombie, so that its mark can still be read from /proc.
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return 0 if found is None else found.si_pid


def _tidied(run: Run, left: list[str]) -> dict[str, Any]:
    return {"tell": "tidied", "run": run.id, "left": left}


def _started(run: Run) -> dict[str, Any]:
    return {
        "tell": "started",
        "run": run.id,
        "pid": run.leader.pid if run.leader else 0,
        "started": run.started,
    }


def _raise_files_limit() -> int:
    """Raise the limit of open files to the maximum (a run needs one); returns the old limit, for the agents."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the log's disk may be the full one
        print(
            f"{time.strftime('%Y-%m-%dT%H:%M:%S')} supervisor {os.getpid()}: {text}",
            file=sys.stderr,
            flush=True,
        )


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path` that only this user can open. Raises OSError with the remedy where the filesystem has none."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        listener.bind(wire.address(path))
        listener.listen(8)
    except OSError as exc:
        listener.close()
        if exc.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO}:
            raise
        # exFAT, FAT, and most mounts of Docker Desktop, WSL and network servers have only files and folders.
        text = (
            f"cannot create a UNIX socket in {path.parent} ({exc.strerror}): its file system does not support sockets; "
            "move the repository to a local file system (ext4, btrfs, xfs, zfs, tmpfs)"
        )
        raise OSError(exc.errno, text) from exc
    finally:
        os.umask(old)
    return listener


def main(arguments: list[str]) -> int:
    """Serve the state folder `arguments[0]` as version `arguments[1]`; return the exit status.

    Writes `ready` to descriptor `arguments[2]`, or the reason why it cannot serve. Exit status 3: another
    supervisor of this version already serves the folder. Raises OSError where the socket or the lock cannot
    be made.
    """
    state, version, ready = Path(arguments[0]), arguments[1], int(arguments[2])
    socket_name, lock_name = wire.names(version)
    try:
        served = hold.take(state / lock_name)
        if served is None:
            return 3
        path = state / socket_name
        # The lock is held, so a socket there was left by a supervisor that was killed.
        path.unlink(missing_ok=True)
        listener = _listen(path)
        supervisor = Supervisor(state, version)
    except OSError as exc:
        os.write(ready, (exc.strerror or str(exc)).encode("utf-8", "replace")[:4000])
        raise
    os.write(ready, b"ready")
    os.close(ready)
    try:
        supervisor.serve(listener)
    finally:
        path.unlink(missing_ok=True)
        listener.close()
        served.release()
    return 0
