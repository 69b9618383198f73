"""The supervisor's interface to the fence: starts fenced runs, changes the ownership rules, and cleans up after a run."""

from __future__ import annotations

import errno
import os
import stat
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass.supervisor import held, wire
from aipass.supervisor.fence import kernel, program, wall, withdraw
from aipass.supervisor.fence.decide import Grant, Operation, Refused, decide
from aipass.supervisor.fence.fenced import Fenced
from aipass.supervisor.fence.glob import Globs
from aipass.supervisor.fence.permit import SHARED_TEMPORARY, identity_in
from aipass.supervisor.fence.serve import Fence
from aipass.supervisor.fence.start import RunStart
from aipass.supervisor.fence.territory import Territory

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.supervisor.spawn import Spec


class FenceController:
    """The fence of one root. Methods can be called from any thread; they queue work for the serving thread.

    `told` is called from the serving thread, once per message. `keep`: descriptors that `told` needs in that
    thread.
    """

    def __init__(self, root: str, told: Callable[[dict[str, Any]], None], keep: tuple[int, ...] = ()) -> None:
        self.root = root
        self._told = told
        self._fence = Fence(root, told, keep)
        self._runs: dict[int, Fenced] = {}
        self._territory = Territory()
        #: Why the ownership rules are unknown; empty where they are known. No run starts while they are unknown.
        self._lost_track = ""
        self._programs: dict[bool, bytes] = {}
        #: Number of active withdrawals; runs that keep a path which could not be taken from them; answers and starts that wait for both.
        self._busy = 0
        self._keeping: dict[int, list[str]] = {}
        self._answers: list[dict[str, Any]] = []
        self._later: list[Callable[[], None]] = []
        # umask(2) can only be read by setting it.
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._folds = _folds_case(root)
        self._fence.start()

    # -- who may write what -------------------------------------------------------------------------------------------

    def set_territory(self, message: dict[str, Any]) -> None:
        """Replace the ownership rules; asynchronous.

        Reported as `territory` when no descriptor from before can change a path that its run lost.
        """
        self._fence.call(partial(self._set_territory, message))

    def _set_territory(self, message: dict[str, Any]) -> None:
        serial = message["serial"]
        if (fast := self._fence.common.fast) is not None:
            fast.freeze(True)
        # Under the old rules until then; no run starts meanwhile.
        self._busy += 1
        self._fence.when_idle(partial(self._set_frozen, serial, message))

    def _set_frozen(self, serial: int, message: dict[str, Any]) -> None:
        self._busy -= 1
        try:
            self._change(message)
        except Exception as exc:
            # Possibly the format of a newer engine. The old rules would stay in force and can be wrong, so all runs are stopped.
            self._lost_track = f"this supervisor cannot follow a change of owners: {exc!r}"
            for run in self._runs:
                self._keep(run, None, self._lost_track)
            self._answer(serial, [])
            raise
        finally:
            if (fast := self._fence.common.fast) is not None:
                fast.freeze(False)

    def _change(self, message: dict[str, Any]) -> None:
        self._territory = Territory.of({**message["table"], "folds_case": self._folds})
        for handed in message.get("handed", ()):
            if (run := self._runs.get(handed["run"])) is not None:
                known = [globs.lines for globs in run.grant.withdrawn]
                if tuple(handed["owns"]) not in known:
                    run.grant.withdrawn.append(Globs(handed["owns"]))
        for run in self._runs.values():
            run.grant.territory = self._territory
        if self._fence.common.fast is not None:
            self._fence.common.fast.renew()
        self._lost_track = ""
        # From here on the new rules apply to every open, before anything is withdrawn.
        self._let_go()
        lost = [(run, path) for run in self._runs.values() for path in self._lost(run)]
        if lost:
            self._busy += 1
            self._fence.common.withdrawing.add(path for _, path in lost)
            # Copying a large file takes time; in a thread, so that only starts after this hand-over wait, and no running agent.
            work = partial(self._withdraw, message["serial"], lost)
            try:
                threading.Thread(target=work, name="fence-withdraw", daemon=True).start()
            except RuntimeError:
                work()  # no thread available: every run waits then
        else:
            self._answer(message["serial"], [])

    def _let_go(self) -> None:
        """Release all holds on paths that their run can no longer write."""
        holds = self._fence.common.holds
        for path, hold in holds.items():
            run = self._runs.get(hold.run)
            if run is None or isinstance(decide(run.grant, Operation.WRITE, (path,)), Refused):
                holds.let_go(path, hold.run, forced=True)

    def _lost(self, run: Fenced) -> list[str]:
        """Remove and return the paths that the run has open for writing but can no longer write."""
        found = [
            path
            for path in sorted(run.opened)
            if isinstance(decide(run.grant, Operation.WRITE, (path,)), Refused)
        ]
        run.opened.difference_update(found)
        return found

    def _withdraw(self, serial: int, lost: list[tuple[Fenced, str]]) -> None:
        """Replace the files that runs lost but have open. Runs in a thread of its own."""
        replaced: list[str] = []
        kept: list[tuple[int, str, str]] = []
        for run, path in lost:
            try:
                if withdraw.cut_off(self.root, path):
                    replaced.append(path)
            except Exception as exc:  # noqa: BLE001 - after any error the run can still write the file, so it is stopped
                reason = exc.strerror if isinstance(exc, OSError) else repr(exc)
                kept.append((run.grant.run, path, str(reason)))
        self._fence.call(partial(self._withdrawn, serial, [path for _, path in lost], replaced, kept))

    def _withdrawn(
        self, serial: int, lost: list[str], replaced: list[str], kept: list[tuple[int, str, str]]
    ) -> None:
        self._busy -= 1
        for run, path, reason in kept:
            if run in self._runs:
                lost.remove(path)
                self._keep(run, path, reason)
        self._fence.common.withdrawing.drop(lost)
        self._answer(serial, replaced)

    def _keep(self, run: int, path: str | None, reason: str) -> None:
        """Report that a run keeps a path that it lost; the supervisor then stops the run.

        Until it has ended, no run starts and no run can open the path.
        """
        self._keeping.setdefault(run, []).extend(() if path is None else (path,))
        self._told({"tell": "kept", "run": run, "path": path or ".", "reason": reason})

    def _answer(self, serial: int, replaced: list[str]) -> None:
        self._answers.append({"tell": "territory", "serial": serial, "replaced": replaced})
        self._go_on()

    def _go_on(self) -> None:
        """Send the waiting answers and begin the waiting starts, once no withdrawal is active."""
        if self._busy or self._keeping:
            return
        answers, self._answers = self._answers, []
        for answer in answers:
            self._told(answer)
        later, self._later = self._later, []
        for start in later:
            start()

    # -- runs ---------------------------------------------------------------------------------------------------------

    def start(
        self, spec: Spec, files_limit: int, done: Callable[[Spec, int, Exception | None], None]
    ) -> None:
        """Start a run; asynchronous. `done(spec, pid, error)` is called once from the serving thread."""
        self._fence.call(partial(self._start, spec, files_limit, done))

    def _start(
        self, spec: Spec, files_limit: int, done: Callable[[Spec, int, Exception | None], None]
    ) -> None:
        assert spec.ground is not None
        if self._busy or self._keeping:
            self._later.append(partial(self._start, spec, files_limit, done))
            return
        try:
            if self._lost_track:
                raise PermissionError(errno.EACCES, self._lost_track)
            own = _prepare(spec)
        except OSError as exc:
            done(spec, 0, exc)
            return
        fenced, walled = bool(spec.ground["fence"]), bool(spec.ground["wall"])
        if fenced:
            writable = [*own, *wall.DEVICES] if walled else []
        else:
            writable = [
                *own,
                *map(str, spec.ground["tree"]),
                *map(str, spec.ground["outside"]),
                *map(str, spec.ground.get("files", ())),
                *wall.DEVICES,
            ]
            # Without a fence nothing opens the run's own terminals for it, so all of /dev/pts is writable.
            writable += ["/dev/pts", *(f for f in SHARED_TEMPORARY if not self.root.startswith(f + "/"))]
        start = RunStart(spec, self._program(walled) if fenced else None, writable, self._umask, files_limit)
        start.begin(lambda: self._fence.call(partial(self._started, start, own, done)))

    def _started(
        self, start: RunStart, own: tuple[str, ...], done: Callable[[Spec, int, Exception | None], None]
    ) -> None:
        spec = start.spec
        assert spec.ground is not None
        run = None
        # Served before the gate opens: the program's first call already needs an answer.
        if start.error is None and start.listener >= 0:
            grant = Grant(
                spec.run,
                spec.agent,
                self._territory,
                self._fence.common.holds,
                spec.ground.get("plan"),
                spec.ground.get("phase"),
                extra=Globs(spec.ground.get("extra", ()), gitignore=True),
            )
            run = Fenced(
                grant,
                spec.folder,
                spec.root,
                own,
                tuple(map(str, spec.ground["outside"])),
                tuple(map(str, spec.ground["sockets"])),
                bool(spec.ground["wall"]),
                start.listener,
                start.pid,
                files=frozenset(map(str, spec.ground.get("files", ()))),
                outputs=frozenset(str(spec.folder / name) for name in (wire.STDOUT, wire.STDERR)),
            )
            self._runs[spec.run] = run
        try:
            if run is not None:
                self._fence.add(run)
            if self._lost_track:
                raise PermissionError(errno.EACCES, self._lost_track)
        except Exception as exc:  # noqa: BLE001 - it ends the start below, where the gate is closed too
            start.error = start.error or exc
        try:
            start.finish()
        except Exception as exc:  # noqa: BLE001 - a failed start is the run's outcome
            if (failed := self._runs.pop(spec.run, None)) is not None:
                failed.listener = -1  # RunStart.finish has closed it
                self._fence.drop(failed)
            done(spec, 0, exc)
            return
        done(spec, start.pid, None)

    def last_write(self, run: int) -> float:
        """Time of the run's last write in the repository, on the monotonic clock; 0 where there is none."""
        found = self._runs.get(run)
        if found is None:
            return 0.0
        return max(found.moved, 0.0 if found.fast is None else found.fast.last_write())

    def _program(self, walled: bool) -> bytes:
        if walled not in self._programs:
            self._programs[walled] = program.build(kernel.MACHINE, walled)
        return self._programs[walled]

    def finish(self, spec: Spec, done: Callable[[list[str]], None]) -> None:
        """Clean up after a run: unfinished temporary files go to quarantine, its temporary folder is removed.

        Asynchronous; `done(quarantined)` is called once from the serving thread, also after an error.
        """
        self._fence.call(partial(self._finish, spec, done))

    def _finish(self, spec: Spec, done: Callable[[list[str]], None]) -> None:
        run, finished = self._runs.get(spec.run), partial(self._finished, spec, done)
        if run is None or run.fast is None:
            finished()
            return
        run.fast.serve(False)
        self._fence.when_idle(finished, run)

    def _finished(self, spec: Spec, done: Callable[[list[str]], None]) -> None:
        left: list[str] = []
        try:
            run = self._runs.pop(spec.run, None)
            if run is not None:
                self._fence.drop(run)
                left = [path for path in sorted(run.grant.temps) if self._set_aside(spec, run, path)]
            if spec.ground is not None:
                _remove(spec.ground["tmp"])
        finally:
            done(left)
            self._fence.common.withdrawing.drop(self._keeping.pop(spec.run, ()))
            self._go_on()

    def _set_aside(self, spec: Spec, run: Fenced, path: str) -> bool:
        """Move an unfinished temporary file to quarantine; False where it is gone or another object has its name."""
        *above, name = path.split("/")
        kept = (".aipass", "quarantine", f"run-{spec.run}", *above)
        try:
            with held.folder(self.root, above) as folder, held.folder(self.root, kept, make=True) as target:
                identity = identity_in(folder, name)
                if identity is None or identity != run.temporary.get(path):
                    return False
                os.rename(name, name, src_dir_fd=folder, dst_dir_fd=target)
        except OSError:
            return False
        return True


def _prepare(spec: Spec) -> tuple[str, ...]:
    """Create the folders that belong to the run alone; returns their paths without links.

    Raises PermissionError where a folder of ours is a link or belongs to another user: it was planted there.
    """
    assert spec.ground is not None
    base = Path(spec.ground["tmp"]).parent
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(13, "it belongs to another user; remove it", str(base))
    if stat.S_IMODE(found.st_mode) != 0o700:
        base.chmod(0o700)
    _remove(spec.ground["tmp"])
    own = [spec.ground["tmp"], *spec.ground["own"]]
    real = []
    for folder in own:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        real.append(os.path.realpath(folder))
        ours = folder.startswith((f"{spec.root}/", f"{base}/"))
        if ours and (real[-1] != os.path.abspath(folder) or os.stat(folder).st_uid != os.geteuid()):
            raise PermissionError(
                13, "it was replaced by a link, or belongs to another user; remove it", folder
            )
    return tuple(real)


def _remove(folder: str) -> None:
    """Rename a folder away immediately and remove it in a thread: with many files this takes seconds."""
    if not os.path.lexists(folder):
        return
    aside = os.path.join(os.path.dirname(folder), f".gone-{os.urandom(6).hex()}")
    try:
        os.rename(folder, aside)
    except OSError:
        aside = folder
    # A thread and not `rm`: the supervisor would take a child process for an orphan of a run.
    work = partial(held.try_remove_at, aside)
    try:
        threading.Thread(target=work, name="fence-remove", daemon=True).start()
    except RuntimeError:
        work()  # no thread available: every run waits then


def _folds_case(root: str) -> bool:
    """Whether the filesystem of the root is case-insensitive, as some disks and most Macs' are."""
    state = os.path.join(root, ".aipass")
    try:
        return os.path.samefile(state, os.path.join(root, ".AIPASS"))
    except OSError:
        return False
