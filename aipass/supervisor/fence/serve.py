"""The serving thread of the fence: answers the system calls of all fenced runs in one loop, inside its own wall.

It does not share descriptors, current folder or umask with the rest of the supervisor. It uses no Python
object that closes a descriptor by itself, because a number refers to another file in other threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from aipass.supervisor.fence import kernel, mode, sysv, wall
from aipass.supervisor.fence.calls import CALLS, Treatment
from aipass.supervisor.fence.carried import CARRIED
from aipass.supervisor.fence.decide import Refused
from aipass.supervisor.fence.holds import HoldTable
from aipass.supervisor.fence.permit import QUICK_DEVICES, Common, DescriptorReply, Later, PermitCall, Plain
from aipass.supervisor.fence.resolve import Caller, InDoubtError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.supervisor.fence.carried import Arguments
    from aipass.supervisor.fence.fast import FastPath, FastRun
    from aipass.supervisor.fence.fenced import Fenced
    from aipass.supervisor.fence.permit import Answer

_T = TypeVar("_T")
#: Interval between attempts of a waiting call: the first one, and the maximum.
AGAIN_S, AGAIN_AT_MOST_S = 0.002, 0.05
#: Error texts of `resolve` for a bad descriptor of the caller; any other EBADF is one of ours, and a bug.
OWN_EBADF = frozenset(("descriptor", "an O_PATH descriptor"))
#: Limit of threads that wait for slow callers.
MAX_ASIDE = 64
#: Limit of waiting calls per run; further ones get EAGAIN.
MAX_WAITING = 200
#: Limit of calls that the fast path has left to Python and that are answered in one round.
FORWARDED_AT_ONCE = 64
#: Interval between looks at threads that something waits for.
IDLE_LOOK_S = 0.001
#: Kernel-internal errno (ERESTARTSYS): restart the call, or end it with EINTR, depending on the signal's handler.
ERESTARTSYS = 512


@dataclass(slots=True, eq=False)
class _Call:
    """A call that must be answered; a waiting one is attempted again at `due`."""

    run: Fenced
    tid: int
    id: int
    begin: Callable[[Caller], Answer | None]
    due: float
    #: How a call continues that has begun to block, for example on a pipe. A signal interrupts it, as in the kernel.
    goes_on: Callable[[Caller], Answer | None] | None = None
    #: Descriptors that stay open until the call is answered.
    held: list[int] = field(default_factory=list)
    pause: float = AGAIN_S

    def attempt(self, caller: Caller) -> Answer | None:
        """The answer, or None where the call must wait further."""
        return (self.goes_on or self.begin)(caller)

    def close(self) -> None:
        """Close the held descriptors. Idempotent."""
        for handle in self.held:
            os.close(handle)
        self.held.clear()


class Fence:
    """Answers the system calls of fenced runs. Only `start` and `call` can be used from other threads."""

    def __init__(self, root: str, told: Callable[[dict[str, Any]], None], keep: tuple[int, ...]) -> None:
        self._told, self._kept = told, keep
        self.common = Common(root, self._report, HoldTable(), {})
        self._runs: dict[int, Fenced] = {}
        self._own: dict[int, dict[str, int]] = {}
        self._names = {
            call.number(kernel.MACHINE): call.name
            for call in CALLS
            if any(rule.treatment is Treatment.CARRIED for rule in call.rules)
        }
        self._waiting: list[_Call] = []
        self._asked: deque[Callable[[], None]] = deque()
        self._fast: FastPath | None = None
        #: What is done when its threads, or one of them, have finished what they do.
        self._until_idle: list[tuple[FastPath | FastRun, Callable[[], None]]] = []
        #: The runs that the fast path serves, by their number.
        self._numbered: dict[int, Fenced] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # poll and not epoll: with SYNC_WAKE_UP a caller wakes a poller on its own processor, which halves the latency.
        self._poll = select.poll()
        self._question = bytearray(kernel.NOTIFICATION.size)
        #: The supervisor's identity where it is root, as callers can then have another one; else None.
        self._identity: kernel.Credentials | None = None
        self._as_started: kernel.Credentials | None = None
        self._aside = 0
        self._thread = threading.Thread(target=self._run, name="fence", daemon=True)

    def start(self) -> None:
        """Start the serving thread."""
        self._thread.start()

    def call(self, work: Callable[[], None]) -> None:
        """Queue `work` for the serving thread and wake it; from any thread. Calls keep their order."""
        self._asked.append(work)
        try:
            os.eventfd_write(self._wake, 1)
        except BlockingIOError:
            pass  # the counter is full: the thread is already woken

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._seclude()
        self._poll.register(self._wake, select.POLLIN)
        while True:
            try:
                self._round()
            except Exception:  # noqa: BLE001 - the thread must survive: without it every call of every run blocks
                self._told({"tell": "fence-error", "text": traceback.format_exc(limit=-6)})

    def _round(self) -> None:
        pause = None
        if self._waiting:
            pause = max(0.0, min(w.due for w in self._waiting) - time.monotonic()) * 1000
        if self._until_idle:
            pause = min(IDLE_LOOK_S * 1000, pause if pause is not None else IDLE_LOOK_S * 1000)
        ready = self._poll.poll(pause)
        for handle, events in ready:
            if handle in self._runs:
                self._guarded(handle, events)
        # Last: a new run can reuse the listener number of one that is dropped here, and the events of this poll are the old one's.
        if any(handle == self._wake for handle, _ in ready):
            self._obey()
        if self._fast is not None and any(handle == self._fast.wake for handle, _ in ready):
            self._serve_forwarded(self._fast)
        if self._waiting:
            self._ask_again()
        if self._until_idle:
            self._look_for_idle()

    def _seclude(self) -> None:
        """Unshare descriptors, folder and umask; then take on the outer wall."""
        kernel.unshare(kernel.CLONE_FS | kernel.CLONE_FILES)
        keep = {0, 1, 2, self._wake, *self._kept}
        for name in os.listdir("/proc/thread-self/fd"):
            if int(name) not in keep:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the descriptor of listdir itself
        os.chdir("/")
        if os.geteuid() == 0:
            self._identity = kernel.own_identity()
            self._as_started = self._identity._replace(
                capabilities=self._identity.capabilities & kernel.KEPT_CAPABILITIES
            )
        version = kernel.landlock_version()
        if version:
            wall.enclose(wall.keeper_ground(), version)
        self.common.look()
        if (chosen := mode.mode()) != "python":
            # Its threads inherit the wall, and begin with the descriptors of this thread.
            try:
                from aipass.supervisor.fence.fast import FastPath  # it needs the compiled part

                self._fast = self.common.fast = FastPath(self.common, mixed=chosen == "mixed")
            except (ImportError, OSError) as exc:
                self._told({"tell": "fence-error", "text": f"no fast path: {exc!r}"})
                return
            self.common.holds = self._fast.holds
            self._poll.register(self._fast.wake, select.POLLIN)

    def _serve_forwarded(self, path: FastPath) -> None:
        """Answer the calls that the fast path has left to Python."""
        try:
            os.eventfd_read(path.wake)
        except BlockingIOError:
            pass
        waiting = list(islice(path.next(), FORWARDED_AT_ONCE))
        for number, question in waiting:
            # None where it was dropped meanwhile.
            if (run := self._numbered.get(number)) is not None:
                self._do(
                    partial(self._hung_up, run) if question is None else partial(self._answer, run, question)
                )
        if len(waiting) == FORWARDED_AT_ONCE:
            # There may be more; but a run that asks all the time must not keep starts and changes of rights waiting.
            os.eventfd_write(path.wake, 1)

    def _obey(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        while self._asked:
            self._do(self._asked.popleft())

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # noqa: BLE001 - one request's failure must not end the others
            self._told({"tell": "fence-error", "text": traceback.format_exc(limit=-4)})

    def when_idle(self, work: Callable[[], None], run: Fenced | None = None) -> None:
        """Call `work` once what was changed is in force in the threads of the fast path, or in that of one run."""
        busy = run.fast if run is not None else self._fast
        if busy is None or (busy.is_idle() and not self._until_idle):
            work()
        else:
            self._until_idle.append((busy, work))

    def _look_for_idle(self) -> None:
        """Do what has waited. In the order of asking for each that is waited for: no change of rights overtakes an earlier one."""
        blocked: list[FastPath | FastRun] = []
        waiting, self._until_idle = self._until_idle, []
        for busy, work in waiting:
            if busy in blocked or not busy.is_idle():
                blocked.append(busy)
                self._until_idle.append((busy, work))
            else:
                self._do(work)

    # -- runs -------------------------------------------------------------------------------------------------------

    def add(self, run: Fenced) -> None:
        """Serve a run from now on."""
        try:
            fcntl.ioctl(run.listener, kernel.NOTIF_SET_FLAGS, kernel.SYNC_WAKE_UP)
        except OSError:
            pass  # before Linux 6.6: only slower
        self._runs[run.listener] = run
        self._own[run.listener] = {
            own: os.open(own, os.O_PATH | os.O_CLOEXEC) for own in run.own if os.path.isdir(own)
        }
        if self._fast is not None:
            try:
                run.fast = self._fast.add(run, self._own[run.listener], QUICK_DEVICES)
            except OSError as exc:
                self._told({"tell": "fence-error", "text": f"no fast path for run {run.grant.run}: {exc}"})
        if run.fast is None:
            self._poll.register(run.listener, select.POLLIN | select.POLLHUP)
            return
        self._numbered[run.grant.run] = run
        # A run of root's must prove that it has this identity still: see _as_caller.
        run.fast.serve(self._identity is None)

    def drop(self, run: Fenced) -> None:
        """Stop serving a run that has ended, and release everything that is recorded for it. Idempotent."""
        # By the run: after a failed start its listener is closed already.
        for listener in [listener for listener, served in self._runs.items() if served is run]:
            self._forget(listener)
        if self._fast is not None:
            self._numbered.pop(run.grant.run, None)
            self._fast.end(run.grant.run)
            run.fast = None
        for waiting in [waiting for waiting in self._waiting if waiting.run is run]:
            self._waiting.remove(waiting)
            waiting.close()
        self.common.holds.end(run.grant.run)
        for path in [path for path, other in self.common.temporary.items() if other is run]:
            del self.common.temporary[path]
        sysv.remove(run.objects)
        run.close()

    def _forget(self, listener: int) -> None:
        if self._runs.pop(listener).fast is None:
            self._poll.unregister(listener)
        for handle in self._own.pop(listener).values():
            os.close(handle)

    def _hung_up(self, run: Fenced) -> None:
        """The last process with the run's filter has ended."""
        if run.listener in self._runs:
            self._forget(run.listener)
            self._told({"tell": "quiet", "run": run.grant.run})

    # -- one call ---------------------------------------------------------------------------------------------------

    def _guarded(self, listener: int, events: int) -> None:
        run = self._runs[listener]
        if not events & select.POLLIN:
            self._hung_up(run)
            return
        question = self._question
        # The kernel rejects a buffer that is not zeroed (EINVAL).
        question[:] = bytes(len(question))
        try:
            fcntl.ioctl(listener, kernel.NOTIF_RECV, question)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                raise
            return  # the caller died before its call was received
        self._answer(run, question)

    def _answer(self, run: Fenced, question: bytes | bytearray) -> None:
        listener = run.listener
        number, tid, _, call, _, _, *arguments = kernel.NOTIFICATION.unpack(question)
        caller = Caller(tid)
        caller.is_valid = lambda: _is_valid(listener, number)
        decide = partial(self._decide, run, call, tuple(arguments))
        self._settle(_Call(run, tid, number, decide, time.monotonic() + AGAIN_S), caller)
        caller.close()

    def _decide(self, run: Fenced, call: int, arguments: Arguments, caller: Caller) -> Answer:
        work = PermitCall(self.common, run, caller, self._own[run.listener])
        carried = CARRIED[self._names[call]]
        try:
            return self._as_caller(run, caller, lambda: carried(work, arguments))
        finally:
            work.close()

    def _as_caller(self, run: Fenced, caller: Caller, work: Callable[[], _T]) -> _T:
        """Run `work` with the caller's identity; the thread has the supervisor's identity again afterwards, also after an error."""
        own = self._identity
        if own is None or run.is_ourselves:
            return work()
        identity = _identity_of(caller)
        # The capabilities that a run starts without give access to no file, only to attributes that marking.py refuses.
        ours = identity in (own, self._as_started)
        if run.is_ourselves is None:
            run.is_ourselves = ours
            if ours and run.fast is not None:
                run.fast.serve(True)
        if ours:
            return work()
        # A process that root started and that has changed its user, or dropped capabilities, must not act as root.
        caller.become = lambda privileged: _become(own if privileged else identity)
        _become(identity)
        try:
            return work()
        finally:
            _become(own)

    def _settle(self, asked: _Call, caller: Caller) -> bool:
        """Attempt a call and answer it, or queue it to wait; returns whether it was answered."""
        run, number = asked.run, asked.id
        try:
            try:
                answer = asked.attempt(caller)
            except OSError as exc:
                if exc.errno != errno.EBADF or exc.strerror in OWN_EBADF:
                    raise
                # A descriptor of the supervisor was closed by a bug; report it, and attempt the call once more.
                self._told({"tell": "fence-error", "text": traceback.format_exc(limit=-6)})
                answer = asked.attempt(caller)
            if answer is None:
                return False
        except Later as later:
            if asked not in self._waiting:
                if sum(waiting.run is run for waiting in self._waiting) >= MAX_WAITING:
                    return self._reply(run, number, 0, errno.EAGAIN)
                self._waiting.append(asked)
            asked.close()
            asked.goes_on = None
            if (again := later.again) is not None:
                # It continues with the descriptors that it holds now.
                asked.held, caller.handles = caller.handles, []
                asked.goes_on = lambda caller: self._as_caller(run, caller, again)
            return False
        except InDoubtError as exc:
            self._report(run, Refused(exc.path, str(exc)), "resolve", caller.tid)
            return self._reply(run, number, 0, errno.EACCES)
        except OSError as exc:
            return self._reply(run, number, 0, exc.errno or errno.EIO)
        except Exception:  # noqa: BLE001 - a bug refuses the call (fails closed), is reported, and must not end the thread
            self._told({"tell": "fence-error", "text": traceback.format_exc(limit=-6)})
            return self._reply(run, number, 0, errno.EACCES)
        if answer is Plain.CONTINUE:
            return self._reply(run, number, 0, 0, kernel.USER_NOTIF_CONTINUE)
        if isinstance(answer, DescriptorReply):
            return self._hand_over(run, caller.tid, number, answer)
        assert isinstance(answer, int)
        return self._reply(run, number, answer, 0)

    def _reply(self, run: Fenced, number: int, value: int, error: int, flags: int = 0) -> bool:
        try:
            fcntl.ioctl(run.listener, kernel.NOTIF_SEND, kernel.RESPONSE.pack(number, value, -error, flags))
        except OSError:
            pass  # the caller died before the answer
        return True

    def _hand_over(self, run: Fenced, tid: int, number: int, opened: DescriptorReply) -> bool:
        """Install the descriptor in the caller's table; its number there is the result of the call.

        The kernel blocks until the caller itself runs. A caller with low priority would delay every other
        run, so a thread waits for it.
        """
        if _is_eager(tid):
            _inject(run.listener, number, opened)
        elif self._aside < MAX_ASIDE:
            self._inject_in_time(run, tid, number, opened)
        else:
            _close(opened)
            self._reply(run, number, 0, errno.EAGAIN)
        return True

    def _inject_in_time(self, run: Fenced, tid: int, number: int, opened: DescriptorReply) -> None:
        """Install the descriptor from a new thread. Rights can change until then, so every other effect happens now."""
        listener = os.dup(run.listener)
        try:
            if opened.then is not None:
                if not _has_room(tid):
                    # The open will fail for lack of a descriptor, so the file must not be truncated.
                    raise OSError(errno.EMFILE, "no descriptor left")
                opened.then()
            work = partial(self._inject_aside, listener, number, replace(opened, then=None))
            self._aside += 1
            threading.Thread(target=work, name="fence-aside", daemon=True).start()
        except (OSError, RuntimeError) as exc:
            # The truncation failed, or no thread is available.
            self._aside -= isinstance(exc, RuntimeError)
            os.close(listener)
            _close(opened)
            self._reply(run, number, 0, (exc.errno if isinstance(exc, OSError) else None) or errno.EAGAIN)

    def _inject_aside(self, listener: int, number: int, opened: DescriptorReply) -> None:
        try:
            _inject(listener, number, opened)
        finally:
            os.close(listener)
            self._aside -= 1

    def _ask_again(self) -> None:
        now = time.monotonic()
        for waiting in [w for w in self._waiting if w.due <= now]:
            if not self._is_waiting(waiting):
                answered = True
            elif waiting.goes_on is not None and _is_interrupted(waiting.tid):
                answered = self._reply(waiting.run, waiting.id, 0, ERESTARTSYS)
            else:
                caller = Caller(waiting.tid)
                caller.is_valid = partial(self._is_waiting, waiting)
                answered = self._settle(waiting, caller)
                caller.close()
            if answered:
                self._waiting.remove(waiting)
                waiting.close()
            else:
                waiting.pause = min(waiting.pause * 1.5, AGAIN_AT_MOST_S)
                waiting.due = now + waiting.pause

    def _is_waiting(self, waiting: _Call) -> bool:
        return _is_valid(waiting.run.listener, waiting.id)

    def _report(self, run: Fenced, refused: Refused, operation: str, tid: int) -> None:
        relative = run.relative(refused.path)
        path = refused.path if relative is None else relative or "."
        told = Refused(path, refused.reason, refused.owner, refused.since)
        try:
            run.explain(told, operation)
        except OSError:
            pass  # a full disk: the `denied` event reports the refusal as well
        self._told(
            {
                "tell": "denied",
                "run": run.grant.run,
                "path": path,
                "operation": operation,
                "reason": refused.reason,
                "owner": refused.owner,
                "since": refused.since,
                "pid": tid,
            }
        )


def _identity_of(caller: Caller) -> kernel.Credentials:
    """The identity for file access of the caller's thread. Raises OSError or ValueError."""
    return kernel.Credentials(
        # The fourth number is the filesystem id, which decides about file access.
        int(caller.status(b"Uid").split()[3]),
        int(caller.status(b"Gid").split()[3]),
        tuple(map(int, caller.status(b"Groups").split())),
        int(caller.status(b"CapEff"), 16),
    )


def _become(identity: kernel.Credentials) -> None:
    try:
        kernel.act_as(identity)
    except OSError:
        # Fail closed: a thread with the wrong identity is worse than none. Without it every write of every run fails.
        traceback.print_exc()
        os._exit(70)


def _inject(listener: int, number: int, opened: DescriptorReply) -> None:
    flags = os.O_CLOEXEC if opened.cloexec else 0
    send = 0 if opened.then is not None else kernel.ADDFD_SEND
    try:
        # A bytearray, so that ioctl returns the kernel's result: the descriptor's number in the caller.
        request = bytearray(kernel.ADDFD.pack(number, send, opened.handle, 0, flags))
        given = fcntl.ioctl(listener, kernel.NOTIF_ADDFD, request)
        if opened.then is not None:
            opened.then()
            fcntl.ioctl(listener, kernel.NOTIF_SEND, kernel.RESPONSE.pack(number, given, 0, 0))
    except Exception as exc:  # noqa: BLE001 - the caller must get an answer after any error
        error = (exc.errno if isinstance(exc, OSError) else None) or errno.EIO
        if error == errno.EMFILE and opened.undo is not None:
            try:
                opened.undo()
            except OSError:
                pass  # the file is already gone
        try:
            fcntl.ioctl(listener, kernel.NOTIF_SEND, kernel.RESPONSE.pack(number, 0, -error, 0))
        except OSError:
            pass  # the caller died before the answer
    finally:
        _close(opened)


def _is_valid(listener: int, number: int) -> bool:
    """Whether a call still waits. While it does, its caller's id cannot be reused."""
    try:
        fcntl.ioctl(listener, kernel.NOTIF_ID_VALID, number.to_bytes(8, "little"))
    except OSError:
        return False
    return True


def _close(opened: DescriptorReply) -> None:
    os.close(opened.handle)
    if opened.folder >= 0:
        os.close(opened.folder)


def _has_room(tid: int) -> bool:
    """Whether a thread's process can open one more descriptor."""
    try:
        limit, _ = resource.prlimit(tid, resource.RLIMIT_NOFILE)
        return len([name for name in os.listdir(f"/proc/{tid}/fd") if int(name) < limit]) < limit
    except OSError:
        return True  # the process has ended, so the answer does not matter


def _is_eager(tid: int) -> bool:
    """Whether a woken thread runs soon: not in the idle scheduling class, and not niced."""
    try:
        return os.sched_getscheduler(tid) != os.SCHED_IDLE and os.getpriority(os.PRIO_PROCESS, tid) <= 0
    except OSError:
        return True  # the thread has ended


def _is_interrupted(tid: int) -> bool:
    """Whether a signal with a handler is pending for the caller: the call is then restarted, or ends with EINTR."""
    try:
        caller = Caller(tid)
        # A signal to the whole process is delivered to the first thread. Another thread would receive our ERESTARTSYS as it
        # is, and programs do not know that error.
        is_first = caller.group() == tid
        own, shared, blocked, caught = (
            int(caller.status(name), 16) for name in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigCgt")
        )
    except (OSError, ValueError):
        return False
    return bool((own | (shared if is_first else 0)) & ~blocked & caught)
