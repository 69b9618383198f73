"""The thread that answers fenced runs: one loop for all of them, within a wall of its own.

It shares neither descriptors nor current folder nor umask with the rest of the supervisor, and no Python object of its
that would close a descriptor by itself: numbers mean something else in other threads.
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
from typing import TYPE_CHECKING, Any, TypeVar

from aipass.supervisor.fence import kernel, sysv, wall
from aipass.supervisor.fence.calls import CALLS, Treatment
from aipass.supervisor.fence.carried import CARRIED
from aipass.supervisor.fence.decide import Refused
from aipass.supervisor.fence.permit import Common, DescriptorReply, Later, PermitCall, Plain
from aipass.supervisor.fence.resolve import Caller, InDoubtError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.supervisor.fence.carried import Arguments
    from aipass.supervisor.fence.fenced import Fenced
    from aipass.supervisor.fence.permit import Answer

_T = TypeVar("_T")
#: How often a call that waits for something is asked again.
AGAIN_S, AGAIN_AT_MOST_S = 0.002, 0.05
#: What a caller's own bad descriptor is called by `resolve`, against one of ours.
OWN_EBADF = frozenset(("descriptor", "an O_PATH descriptor"))
#: Slow callers that are waited for aside at once.
MAX_ASIDE = 64
#: Calls of one run that may wait at once; what comes then is told to try again.
MAX_WAITING = 200
#: The kernel's own: begin the call anew, or end it with EINTR, as the signal's handler has it.
ERESTARTSYS = 512


@dataclass(slots=True, eq=False)
class _Call:
    """A call that is to be answered; one that has to wait is attempted again at `due`."""

    run: Fenced
    tid: int
    id: int
    begin: Callable[[Caller], Answer | None]
    due: float
    #: How it goes on, where it has begun to wait for something of its own; the kernel's wait for that ends with a signal.
    goes_on: Callable[[Caller], Answer | None] | None = None
    #: What the call holds open until it is answered.
    held: list[int] = field(default_factory=list)
    pause: float = AGAIN_S

    def attempt(self, caller: Caller) -> Answer | None:
        """What to answer; None: it waits on."""
        return (self.goes_on or self.begin)(caller)

    def close(self) -> None:
        """Let go of what was held."""
        for handle in self.held:
            os.close(handle)
        self.held.clear()


class Fence:
    """Answers the calls of fenced runs. All but `call` is the serving thread's own."""

    def __init__(self, root: str, told: Callable[[dict[str, Any]], None], keep: tuple[int, ...]) -> None:
        self._told, self._kept = told, keep
        self.common = Common(root, self._report, {}, {})
        self._runs: dict[int, Fenced] = {}
        self._own: dict[int, dict[str, int]] = {}
        self._names = {
            call.number(kernel.MACHINE): call.name
            for call in CALLS
            if any(rule.treatment is Treatment.CARRIED for rule in call.rules)
        }
        self._waiting: list[_Call] = []
        self._asked: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Not epoll: with SYNC_WAKE_UP a caller wakes a poller on its own processor, which halves the wait.
        self._poll = select.poll()
        self._question = bytearray(kernel.NOTIFICATION.size)
        #: Ours, where we are root and callers may be somebody else.
        self._identity: kernel.Credentials | None = None
        self._as_started: kernel.Credentials | None = None
        self._aside = 0
        self._thread = threading.Thread(target=self._run, name="fence", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def call(self, work: Callable[[], None]) -> None:
        """Have the serving thread call `work`; from any thread."""
        self._asked.append(work)
        try:
            os.eventfd_write(self._wake, 1)
        except BlockingIOError:
            pass  # it is awake

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._seclude()
        self._poll.register(self._wake, select.POLLIN)
        while True:
            try:
                self._round()
            except Exception:  # noqa: BLE001 - whoever asks must get an answer from the next round
                self._told({"tell": "fence-error", "text": traceback.format_exc(limit=-6)})

    def _round(self) -> None:
        pause = None
        if self._waiting:
            pause = max(0.0, min(w.due for w in self._waiting) - time.monotonic()) * 1000
        ready = self._poll.poll(pause)
        for handle, events in ready:
            if handle in self._runs:
                self._guarded(handle, events)
        # Last: a run that goes gives its listener's number to one that comes, and what was told of it is not the other's.
        if any(handle == self._wake for handle, _ in ready):
            self._obey()
        if self._waiting:
            self._ask_again()

    def _seclude(self) -> None:
        """Descriptors, folder and umask of our own; then the outer wall, inside which each run gets its own."""
        kernel.unshare(kernel.CLONE_FS | kernel.CLONE_FILES)
        keep = {0, 1, 2, self._wake, *self._kept}
        for name in os.listdir("/proc/thread-self/fd"):
            if int(name) not in keep:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the listing's own
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

    def _obey(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        while self._asked:
            work = self._asked.popleft()
            try:
                work()
            except Exception:  # noqa: BLE001 - one request's failure must not end the others
                self._told({"tell": "fence-error", "text": traceback.format_exc(limit=-4)})

    # -- runs -------------------------------------------------------------------------------------------------------

    def add(self, run: Fenced) -> None:
        """Serve a run from now on."""
        try:
            fcntl.ioctl(run.listener, kernel.NOTIF_SET_FLAGS, kernel.SYNC_WAKE_UP)
        except OSError:
            pass  # before 6.6
        self._runs[run.listener] = run
        self._own[run.listener] = {
            own: os.open(own, os.O_PATH | os.O_CLOEXEC) for own in run.own if os.path.isdir(own)
        }
        self._poll.register(run.listener, select.POLLIN | select.POLLHUP)

    def drop(self, run: Fenced) -> None:
        """A run is over: nobody is left to ask."""
        if self._runs.pop(run.listener, None) is not None:
            self._poll.unregister(run.listener)
            for handle in self._own.pop(run.listener).values():
                os.close(handle)
        for waiting in [waiting for waiting in self._waiting if waiting.run is run]:
            self._waiting.remove(waiting)
            waiting.close()
        for path in [path for path, hold in self.common.holds.items() if hold.run == run.grant.run]:
            del self.common.holds[path]
        for path in [path for path, other in self.common.temporary.items() if other is run]:
            del self.common.temporary[path]
        sysv.remove(run.objects)
        run.close()

    # -- one call ---------------------------------------------------------------------------------------------------

    def _guarded(self, listener: int, events: int) -> None:
        run = self._runs[listener]
        if not events & select.POLLIN:
            # The last process of the run has gone.
            self._poll.unregister(listener)
            self._runs.pop(listener)
            for handle in self._own.pop(listener).values():
                os.close(handle)
            self._told({"tell": "quiet", "run": run.grant.run})
            return
        question = self._question
        question[:] = bytes(len(question))
        try:
            fcntl.ioctl(listener, kernel.NOTIF_RECV, question)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                raise
            return  # the caller died between asking and being heard
        number, tid, _, call, _, _, *arguments = kernel.NOTIFICATION.unpack(question)
        caller = Caller(tid)
        caller.is_valid = lambda: _is_valid(listener, number)
        decide = partial(self._decide, run, call, tuple(arguments))
        self._settle(_Call(run, tid, number, decide, time.monotonic() + AGAIN_S), caller)
        caller.close()

    def _decide(self, run: Fenced, call: int, arguments: Arguments, caller: Caller) -> Answer:
        work = PermitCall(self.common, run, caller, self._own[run.listener])
        carried = CARRIED[self._names[call]]
        return self._as_caller(run, caller, lambda: carried(work, arguments))

    def _as_caller(self, run: Fenced, caller: Caller, work: Callable[[], _T]) -> _T:
        """Do it with the caller's accesses, and be ourselves afterwards whatever happens."""
        own = self._identity
        if own is None or run.is_ourselves:
            return work()
        identity = _identity_of(caller)
        # What a run is started without gives access to no file, but to attributes that marking.py refuses.
        ours = identity in (own, self._as_started)
        if run.is_ourselves is None:
            run.is_ourselves = ours
        if ours:
            return work()
        # A process of root's that became somebody else, or gave capabilities up, must not act as root.
        caller.become = lambda privileged: _become(own if privileged else identity)
        _become(identity)
        try:
            return work()
        finally:
            _become(own)

    def _settle(self, asked: _Call, caller: Caller) -> bool:
        """Answer a call by what `attempt` returns or raises, or have it wait; whether it was answered."""
        run, number = asked.run, asked.id
        try:
            try:
                answer = asked.attempt(caller)
            except OSError as exc:
                if exc.errno != errno.EBADF or exc.strerror in OWN_EBADF:
                    raise
                # A descriptor of ours went away meanwhile; that is told, and tried once more.
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
                # It goes on with what it holds now.
                asked.held, caller.handles = caller.handles, []
                asked.goes_on = lambda caller: self._as_caller(run, caller, again)
            return False
        except InDoubtError as exc:
            self._report(run, Refused(exc.path, str(exc)), "resolve", caller.tid)
            return self._reply(run, number, 0, errno.EACCES)
        except OSError as exc:
            return self._reply(run, number, 0, exc.errno or errno.EIO)
        except Exception:  # noqa: BLE001 - a bug here refuses, is told, and ends nothing
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
            pass  # the caller died meanwhile
        return True

    def _hand_over(self, run: Fenced, tid: int, number: int, opened: DescriptorReply) -> bool:
        """Put the descriptor into the caller's table; its number there is the call's result.

        The kernel waits until the caller itself runs for that. One that runs only when nothing else wants to would hold
        up everybody, so it is waited for aside.
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
        """In a thread of its own, when the caller runs: what it may do by then may have changed, so all else is done now."""
        listener = os.dup(run.listener)
        try:
            if opened.then is not None:
                if not _has_room(tid):
                    # It would get no descriptor, and must keep the content then.
                    raise OSError(errno.EMFILE, "no descriptor left")
                opened.then()
            work = partial(self._inject_aside, listener, number, replace(opened, then=None))
            self._aside += 1
            threading.Thread(target=work, name="fence-aside", daemon=True).start()
        except (OSError, RuntimeError) as exc:
            # It cannot be truncated after all, or there is no thread to be had.
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
            pass  # a full disk: the event says it as well
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
    """Whose accesses the caller's are."""
    return kernel.Credentials(
        int(caller.status(b"Uid").split()[3]),
        int(caller.status(b"Gid").split()[3]),
        tuple(map(int, caller.status(b"Groups").split())),
        int(caller.status(b"CapEff"), 16),
    )


def _become(identity: kernel.Credentials) -> None:
    try:
        kernel.act_as(identity)
    except OSError:
        # A thread that serves as the wrong user is worse than none: without it every write of every run fails.
        traceback.print_exc()
        os._exit(70)


def _inject(listener: int, number: int, opened: DescriptorReply) -> None:
    flags = os.O_CLOEXEC if opened.cloexec else 0
    send = 0 if opened.then is not None else kernel.ADDFD_SEND
    try:
        # As a bytearray: ioctl then returns the kernel's result, the descriptor's number there.
        request = bytearray(kernel.ADDFD.pack(number, send, opened.handle, 0, flags))
        given = fcntl.ioctl(listener, kernel.NOTIF_ADDFD, request)
        if opened.then is not None:
            opened.then()
            fcntl.ioctl(listener, kernel.NOTIF_SEND, kernel.RESPONSE.pack(number, given, 0, 0))
    except Exception as exc:  # noqa: BLE001 - whatever it was, the caller gets an answer
        error = (exc.errno if isinstance(exc, OSError) else None) or errno.EIO
        if error == errno.EMFILE and opened.undo is not None:
            try:
                opened.undo()
            except OSError:
                pass  # it is gone already
        try:
            fcntl.ioctl(listener, kernel.NOTIF_SEND, kernel.RESPONSE.pack(number, 0, -error, 0))
        except OSError:
            pass  # the caller died meanwhile
    finally:
        _close(opened)


def _is_valid(listener: int, number: int) -> bool:
    """Whether a call still waits: while it does, its caller's id is nobody else's."""
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
    """Whether a thread's process can have one more descriptor."""
    try:
        limit, _ = resource.prlimit(tid, resource.RLIMIT_NOFILE)
        return len([name for name in os.listdir(f"/proc/{tid}/fd") if int(name) < limit]) < limit
    except OSError:
        return True  # it is gone, and gets nothing


def _is_eager(tid: int) -> bool:
    """Whether a thread runs soon when it is woken: neither idle nor nice."""
    try:
        return os.sched_getscheduler(tid) != os.SCHED_IDLE and os.getpriority(os.PRIO_PROCESS, tid) <= 0
    except OSError:
        return True  # it is gone


def _is_interrupted(tid: int) -> bool:
    """Whether a signal that the caller has a handler for waits to be seen: the call then begins anew, or ends with EINTR.

    One that was sent to the whole process is the first thread's to see; to another thread the kernel would give our answer as
    it is, which programs do not know.
    """
    try:
        caller = Caller(tid)
        is_first = caller.group() == tid
        own, shared, blocked, caught = (
            int(caller.status(name), 16) for name in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigCgt")
        )
    except (OSError, ValueError):
        return False
    return bool((own | (shared if is_first else 0)) & ~blocked & caught)
