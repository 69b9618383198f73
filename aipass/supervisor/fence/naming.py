"""Performed calls that change names: create, link, rename and remove, relative to open folders."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from aipass.supervisor.fence import kernel
from aipass.supervisor.fence.decide import Operation, Refused
from aipass.supervisor.fence.fenced import ObjectId
from aipass.supervisor.fence.permit import Plain
from aipass.supervisor.fence.resolve import PATH_MAX, ResolvedPath, resolve

if TYPE_CHECKING:
    from aipass.supervisor.fence.permit import Answer, PermitCall

#: Larger folders cannot be moved as a whole: checking every entry would delay the calls of the other runs.
MAX_MOVED = 5000
_NODES = frozenset((0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK))


def _new(work: PermitCall, dirfd: int, address: int) -> ResolvedPath:
    place = resolve(work.caller, dirfd, work.caller.text(address), False)
    if place.handle is not None:
        raise OSError(errno.EEXIST, "exists")
    # The held folder can have been removed since; the kernel would answer ENOENT.
    if not kernel.status(place.folder).links:
        raise OSError(errno.ENOENT, "the folder was removed")
    return place


def mkdir(work: PermitCall, dirfd: int, address: int, mode: int) -> Answer:
    """Perform mkdir, mkdirat."""
    place = _new(work, dirfd, address)
    if work.goes_on(place):
        return Plain.CONTINUE
    took = work.permit((Operation.MAKE_FOLDER, place))
    # The serving thread has a umask of its own, so each performed call takes the caller's.
    os.umask(work.caller.umask())
    os.mkdir(place.name, mode & 0o7777, dir_fd=place.folder)
    took()
    work.made(place)
    return 0


#: Opening one of these blocks until another program opens the other end.
_WAITED_FOR = frozenset((stat.S_IFIFO, stat.S_IFSOCK))
#: Files that every git command reads, including the user's `git status`.
_READ_BY_GIT = frozenset((b".gitignore", b".gitattributes", b".gitmodules", b".mailmap"))


def _keep_readable(work: PermitCall, place: ResolvedPath) -> None:
    if place.name in _READ_BY_GIT and work.run.relative(place.path) is not None:
        raise work.refuse(
            Refused(place.path, "git reads files of this name, and would block on a pipe"), "make"
        )


def mknod(work: PermitCall, dirfd: int, address: int, mode: int) -> Answer:
    """Perform mknod, mknodat; the filter already refuses devices."""
    place = _new(work, dirfd, address)
    if place.slash:
        raise OSError(errno.ENOENT, "no folder")
    if stat.S_IFMT(mode & 0xFFFF) not in _NODES:
        raise OSError(errno.EPERM if stat.S_ISDIR(mode & 0xFFFF) else errno.EINVAL, "no such node")
    if not stat.S_ISREG(mode & 0xFFFF):
        _keep_readable(work, place)
    if work.goes_on(place):
        return Plain.CONTINUE
    took = work.permit((Operation.CREATE, place))
    os.umask(work.caller.umask())
    os.mknod(place.name, mode & 0xFFFF, dir_fd=place.folder)
    took()
    work.made(place)
    return 0


def symlink(work: PermitCall, target: int, dirfd: int, address: int) -> Answer:
    """Perform symlink, symlinkat."""
    text = work.caller.text(target)
    if not text:
        raise OSError(errno.ENOENT, "empty target")
    place = _new(work, dirfd, address)
    if place.slash:
        raise OSError(errno.ENOENT, "no folder")
    if work.goes_on(place):
        return Plain.CONTINUE
    took = work.permit((Operation.CREATE, place))
    os.symlink(text, place.name, dir_fd=place.folder)
    took()
    work.made(place)
    return 0


def unlink(work: PermitCall, dirfd: int, address: int, flags: int) -> Answer:
    """Perform unlink, unlinkat, rmdir."""
    if flags & ~kernel.AT_REMOVEDIR:
        raise OSError(errno.EINVAL, "flags")
    path = work.caller.text(address)
    place = resolve(work.caller, dirfd, path, False)
    folder = bool(flags & kernel.AT_REMOVEDIR)
    if not place.name:
        last = path.rstrip(b"/").rpartition(b"/")[2]
        dots = {b".": errno.EINVAL, b"..": errno.ENOTEMPTY}
        raise OSError(dots.get(last, errno.EBUSY) if folder else errno.EISDIR, "no name")
    if place.handle is None:
        raise OSError(errno.ENOENT, "nothing there")
    if not place.is_folder() and (folder or place.slash):
        raise OSError(errno.ENOTDIR, "no folder")
    if place.is_folder() and not folder:
        raise OSError(errno.EISDIR, "a folder")
    if work.goes_on(place):
        return Plain.CONTINUE
    took = work.permit((Operation.REMOVE_FOLDER if folder else Operation.REMOVE, place))
    if folder:
        os.rmdir(place.spelled, dir_fd=place.folder)
    else:
        os.unlink(place.spelled, dir_fd=place.folder)
    took()
    _gone(work, place)
    return 0


def rename(work: PermitCall, olddir: int, old: int, newdir: int, new: int, flags: int) -> Answer:
    """Perform rename, renameat, renameat2."""
    exchange = bool(flags & kernel.RENAME_EXCHANGE)
    if flags & ~(kernel.RENAME_NOREPLACE | kernel.RENAME_EXCHANGE) or flags == 3:
        raise OSError(errno.EINVAL, "flags")
    source = resolve(work.caller, olddir, work.caller.text(old), False)
    target = resolve(work.caller, newdir, work.caller.text(new), False)
    if not source.name or not target.name:
        exists = flags & kernel.RENAME_NOREPLACE and source.name
        raise OSError(errno.EEXIST if exists else errno.EBUSY, "no name")
    if source.handle is None or (exchange and target.handle is None):
        raise OSError(errno.ENOENT, "nothing there")
    if flags & kernel.RENAME_NOREPLACE and target.handle is not None:
        raise OSError(errno.EEXIST, "exists")
    # Errors that the kernel would give come before a refusal: programs rely on them.
    _check_kinds(source, target, exchange)
    for one, there in ((source, target), (target, source)) if exchange else ((source, target),):
        if one.status is not None and stat.S_IFMT(one.status.mode) in _WAITED_FOR:
            _keep_readable(work, there)
    if work.goes_on(source, target):
        return Plain.CONTINUE
    _keep_apart(work, source, target)
    _keep_in_place(work, source, target)
    with work.unmoved(source, target):
        took = work.permit(*_asked_by_rename(work, source, target, exchange))
        kernel.rename(source.folder, source.spelled, target.folder, target.spelled, flags)
        took()
        if _is_same(source, target):
            return 0  # two names of one file: rename(2) does nothing
        if exchange:
            _exchanged(work, source, target)
            return 0
        _unnamed(work, target)
        _renamed(work, source, target)
        work.made(target)
    return 0


def _is_same(one: ResolvedPath, other: ResolvedPath) -> bool:
    """Whether two places are the same object, under one name or two."""
    if one.status is None or other.status is None:
        return False
    return ObjectId.of(one.status) == ObjectId.of(other.status)


def _keep_apart(work: PermitCall, one: ResolvedPath, other: ResolvedPath) -> None:
    """Raise EXDEV for a move or link between the run's own folders, the repository, and the rest.

    EXDEV makes programs copy instead.
    """
    # The run changes its own folders without asking, also during this decision. And a second name there would still reach the
    # file after a hand-over.
    if work.run.is_own(one.path) is not work.run.is_own(other.path):
        raise OSError(errno.EXDEV, "own folders are as a filesystem of their own")
    if (work.run.relative(one.path) is None) is not (work.run.relative(other.path) is None):
        # Another program can have an outside file open or mapped, and would then write into the repository.
        raise OSError(errno.EXDEV, "the repository is as a filesystem of its own")


def _keep_in_place(work: PermitCall, *places: ResolvedPath) -> None:
    """Refuse to move, link or replace a file of which the run can change only the content: the next run is granted the same path."""
    for place in places:
        if place.path in work.run.files:
            raise work.refuse(
                Refused(
                    place.path, "only its content can be changed; it cannot be moved, linked or replaced"
                ),
                "move",
            )


def _check_kinds(source: ResolvedPath, target: ResolvedPath, exchange: bool) -> None:
    if source.slash and not source.is_folder():
        raise OSError(errno.ENOTDIR, "no folder")
    if target.slash and not (target.is_folder() if exchange else source.is_folder()):
        raise OSError(errno.ENOTDIR, "no folder")
    if target.handle is not None and not exchange and source.is_folder() is not target.is_folder():
        raise OSError(errno.ENOTDIR if source.is_folder() else errno.EISDIR, "of the other kind")


def _asked_by_rename(
    work: PermitCall, source: ResolvedPath, target: ResolvedPath, exchange: bool
) -> list[tuple[Operation, ResolvedPath]]:
    there = target.handle is not None
    asked: list[tuple[Operation, ResolvedPath]] = []
    for place, other in ((source, target), (target, source)) if exchange else ((source, target),):
        if place.is_folder():
            if there and not exchange:
                asked.append((Operation.REMOVE_FOLDER, other))
            asked += _tree(work, place, other)
        else:
            asked.append((Operation.REMOVE, place))
            asked.append((Operation.WRITE if there and not other.is_folder() else Operation.CREATE, other))
    return asked


def _tree(
    work: PermitCall, source: ResolvedPath, target: ResolvedPath
) -> list[tuple[Operation, ResolvedPath]]:
    """The operations of a folder's move: every entry must be allowed to leave the source and to enter the target."""
    assert source.handle is not None
    asked = [(Operation.REMOVE_FOLDER, source), (Operation.MAKE_FOLDER, target)]
    waiting = [("", source.handle)]
    while waiting:
        below, held = waiting.pop()
        handle = os.open(f"/proc/thread-self/fd/{held}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(handle) as entries:
                names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        finally:
            os.close(handle)
        if len(asked) + 2 * len(names) > 2 * MAX_MOVED or len(below) > PATH_MAX:
            raise work.refuse(
                Refused(
                    source.path,
                    f"it contains more than {MAX_MOVED} files, or is nested too deep; move its files one by one",
                ),
                "move",
            )
        for name, folder in names:
            inner = work.caller.keep(kernel.open_path(os.fsencode(name), held, os.O_NOFOLLOW))
            status = kernel.status(inner)
            at, to = f"{source.path}{below}", f"{target.path}{below}"
            old = ResolvedPath(held, at, os.fsencode(name), inner, status, False)
            new = ResolvedPath(target.folder, to, os.fsencode(name), None, None, False)
            asked.append((Operation.REMOVE_FOLDER if folder else Operation.REMOVE, old))
            asked.append((Operation.MAKE_FOLDER if folder else Operation.CREATE, new))
            if folder:
                waiting.append((f"{below}/{name}", inner))
    return asked


def _gone(work: PermitCall, place: ResolvedPath) -> None:
    """Forget what was recorded under a removed name."""
    relative = work.run.relative(place.path)
    if relative is not None:
        work.run.grant.temps.discard(relative)
        work.run.grant.made.discard(relative)
    _unnamed(work, place)


def _unnamed(work: PermitCall, place: ResolvedPath) -> None:
    """Record that an object has lost a name, possibly its last one."""
    if place.status is None:
        return
    if place.status.links == 1 and stat.S_ISREG(place.status.mode):
        work.remember_unnamed(place.status)
    if place.status.links > 1:
        work.run.links.get((place.status.dev, place.status.ino), set()).discard(place.path)
    else:
        work.common.made_outside.pop(ObjectId.of(place.status), None)


def _exchanged(work: PermitCall, source: ResolvedPath, target: ResolvedPath) -> None:
    """Record an exchange: a temporary name stays temporary, and refers to the other object."""
    for place, other in ((source, target), (target, source)):
        relative, status = work.run.relative(place.path), other.status
        if status is None or relative is None:
            continue
        if relative in work.run.grant.temps:
            work.run.temporary[relative] = ObjectId.of(status)
        if names := work.run.links.get((status.dev, status.ino)):
            names.discard(other.path)
            names.add(place.path)


def _renamed(work: PermitCall, source: ResolvedPath, target: ResolvedPath) -> None:
    old, new = work.run.relative(source.path), work.run.relative(target.path)
    grant = work.run.grant
    if source.status is not None and (names := work.run.links.get((source.status.dev, source.status.ino))):
        names.discard(source.path)
        names.add(target.path)
    if old is None:
        return
    grant.temps.discard(old)
    work.run.temporary.pop(old, None)
    if source.is_folder():
        if work.common.fast is not None and (grant.made or grant.temps):
            work.common.fast.renew()  # a verdict about the target does not know them
        for known in (grant.made, grant.temps):
            moved = {path for path in known if path == old or path.startswith(old + "/")}
            known -= moved
            if new is not None:
                known |= {new + path[len(old) :] for path in moved}


def link(work: PermitCall, olddir: int, old: int, newdir: int, new: int, flags: int) -> Answer:
    """Perform link, linkat. The source must be writable too, because the new name reaches the same bytes."""
    if flags & ~(kernel.AT_SYMLINK_FOLLOW | kernel.AT_EMPTY_PATH):
        raise OSError(errno.EINVAL, "flags")
    path = work.caller.text(old)
    if not path and flags & kernel.AT_EMPTY_PATH:
        source = work.by_descriptor(olddir)
    else:
        source = work.existing(olddir, path, bool(flags & kernel.AT_SYMLINK_FOLLOW))
    target = _new(work, newdir, new)
    if target.slash:
        raise OSError(errno.ENOENT, "no folder")
    if source.is_folder():
        raise OSError(errno.EPERM, "a folder")
    if source.status is not None and stat.S_IFMT(source.status.mode) in _WAITED_FOR:
        _keep_readable(work, target)
    if work.goes_on(source, target):
        return Plain.CONTINUE
    assert source.status is not None
    # Also for a file without a name (O_TMPFILE): the path of its descriptor is that of the folder where it was made.
    _keep_apart(work, source, target)
    _keep_in_place(work, source, target)
    took = work.permit((Operation.WRITE, source), (Operation.CREATE, target))
    os.link(
        f"/proc/thread-self/fd/{source.handle}",
        target.name,
        dst_dir_fd=target.folder,
        follow_symlinks=True,
    )
    took()
    # From here on its name decides who owns it.
    work.run.unnamed.discard(ObjectId.of(source.status))
    if source.status.links:
        names = work.run.links.setdefault((source.status.dev, source.status.ino), set())
        if source.status.links == 1:
            names.clear()
        names |= {source.path, target.path}
    work.made(target)
    return 0
