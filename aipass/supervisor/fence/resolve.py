"""Where a path leads, as the kernel would go: from the caller's folders, through links, to a folder that is held open.

What is found is held by O_PATH descriptors; names are only read off those. So whatever is renamed, exchanged or linked
anew meanwhile, a decision is about what will be acted on.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import nullcontext
from typing import TYPE_CHECKING

from aipass.supervisor.fence import kernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from aipass.supervisor.fence.kernel import Status

#: Longest path, with its closing NUL, and how many links may be followed (linux/limits.h, fs/namei.c).
PATH_MAX, MAX_LINKS = 4096, 40
_FOLDER = os.O_PATH | os.O_DIRECTORY
_PROC_FOLDER = re.compile(r"/proc/([0-9]+)(/task/[0-9]+)?(/fd)?")


class InDoubtError(Exception):
    """A path that cannot be resolved with certainty: refused, with this reason. `path` as the caller wrote it."""

    path = "?"


class Caller:
    """The thread that waits for an answer: its memory and its folders. Valid as long as its call waits."""

    __slots__ = ("_group", "_status", "become", "handles", "is_valid", "tid")

    def __init__(self, tid: int) -> None:
        self.tid = tid
        #: Descriptors that are closed when the call has been answered.
        self.handles: list[int] = []
        #: Where the caller is another user: acts as ourselves with True, as the caller with False.
        self.become: Callable[[bool], None] | None = None
        #: Whether its call still waits, so that what was read of it was its own.
        self.is_valid: Callable[[], bool] | None = None
        self._group: int | None = None
        self._status: bytes | None = None

    def confirm(self) -> None:
        """Raise ESRCH where the caller is gone: another process may have had its id when its memory was read."""
        if self.is_valid is not None and not self.is_valid():
            raise OSError(errno.ESRCH, "the caller is gone")

    def ourselves(self) -> AbstractContextManager[None]:
        """Act as the supervisor for a moment, where the caller is another user: what is ours, and its memory, is not theirs."""
        return _SAME if self.become is None else _Ourselves(self.become)

    def keep(self, handle: int) -> int:
        """Close `handle` when the call has been answered."""
        self.handles.append(handle)
        return handle

    def close(self) -> None:
        """Close all that was kept."""
        for handle in self.handles:
            os.close(handle)
        self.handles.clear()

    def text(self, address: int) -> bytes:
        """The path at an address. Raises OSError EFAULT or ENAMETOOLONG, as the kernel would."""
        data = self.memory(address, PATH_MAX)
        end = data.find(b"\0")
        if end < 0:
            raise OSError(errno.ENAMETOOLONG if len(data) == PATH_MAX else errno.EFAULT, "path")
        return data[:end]

    def memory(self, address: int, length: int, *, exactly: bool = False) -> bytes:
        """Up to `length` bytes at an address, or exactly so many. Raises OSError EFAULT."""
        with self.ourselves():
            return (kernel.read_exactly if exactly else kernel.read_memory)(self.tid, address, length)

    def folder(self, dirfd: int) -> int:
        """The folder that relative paths begin at, held. Raises OSError EBADF or ENOTDIR."""
        if dirfd == kernel.AT_FDCWD:
            return self._own("cwd", _FOLDER)
        return self.descriptor(dirfd, os.O_DIRECTORY)

    def descriptor(self, number: int, flags: int = 0) -> int:
        """What one of the caller's descriptors leads to, held by O_PATH. Raises OSError EBADF."""
        if number < 0:
            raise OSError(errno.EBADF, "descriptor")
        try:
            return self._own(f"fd/{number}", os.O_PATH | flags)
        except FileNotFoundError:
            raise OSError(errno.EBADF, "descriptor") from None

    def _own(self, name: str, flags: int) -> int:
        """Something in the caller's folder in /proc, which is root's after a change of user."""
        with self.ourselves():
            return self.keep(os.open(f"/proc/{self.tid}/{name}", flags | os.O_CLOEXEC))

    def is_path_only(self, number: int) -> bool:
        """Whether one of the caller's descriptors was opened with O_PATH."""
        handle = os.open(f"/proc/{self.tid}/fdinfo/{number}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = os.read(handle, 512).split(b"flags:", 1)[1].split(b"\n", 1)[0]
        finally:
            os.close(handle)
        return bool(int(flags, 8) & os.O_PATH)

    def status(self, name: bytes) -> bytes:
        """A line of /proc/<tid>/status: umask, identity, signals."""
        if self._status is None:
            handle = os.open(f"/proc/{self.tid}/status", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._status = b"\n"
                # A process may be in 65,536 groups.
                while part := os.read(handle, 1 << 16):
                    self._status += part
            finally:
                os.close(handle)
        start = self._status.index(b"\n" + name + b":\t") + len(name) + 3
        return self._status[start : self._status.index(b"\n", start)]

    def umask(self) -> int:
        """The caller's umask now."""
        return int(self.status(b"Umask"), 8)

    def group(self) -> int:
        """The id of the caller's process."""
        if self._group is None:
            self._group = int(self.status(b"Tgid"))
        return self._group


class _Ourselves:
    """Ourselves within, the caller after."""

    def __init__(self, become: Callable[[bool], None]) -> None:
        self._become = become

    def __enter__(self) -> None:
        self._become(True)

    def __exit__(self, *_: object) -> None:
        self._become(False)


_SAME = nullcontext()


class ResolvedPath:
    """Where a path leads: a folder that is held, a name in it, and what stands there, if anything does.

    `name` is empty where the path is a folder or an object without a name to act on. `slash`: it was written with a closing `/`.
    """

    __slots__ = ("at", "folder", "handle", "name", "slash", "status")

    def __init__(
        self, folder: int, at: str, name: bytes, handle: int | None, status: Status | None, slash: bool
    ) -> None:
        self.folder, self.at, self.name, self.handle, self.status, self.slash = (
            folder,
            at,
            name,
            handle,
            status,
            slash,
        )

    @property
    def path(self) -> str:
        """The absolute path, without links."""
        if not self.name:
            return self.at
        return f"{'' if self.at == '/' else self.at}/{os.fsdecode(self.name)}"

    @property
    def spelled(self) -> bytes:
        """The name as the kernel is to be told it: a closing slash asks for a folder."""
        return self.name + b"/" if self.slash else self.name

    def is_folder(self) -> bool:
        """Whether a folder stands there."""
        return self.status is not None and stat.S_ISDIR(self.status.mode)

    def is_link(self) -> bool:
        """Whether a symbolic link stands there."""
        return self.status is not None and stat.S_ISLNK(self.status.mode)


def where(handle: int) -> str:
    """The path of what is held, as the kernel sees it now."""
    try:
        return os.readlink(f"/proc/thread-self/fd/{handle}")
    except OSError as exc:
        if exc.errno == errno.ENAMETOOLONG:
            raise InDoubtError("its path is longer than the kernel can tell") from None
        raise


def resolve(caller: Caller, dirfd: int, path: bytes, follow: bool) -> ResolvedPath:
    """Where `path` leads from `dirfd`. `follow`: through a symbolic link at its end.

    Raises OSError as the kernel would (ENOENT for a folder on the way that is not there, ENOTDIR, ELOOP, EBADF …), and
    InDoubtError. A path whose last name does not exist is a Place without a handle.
    """
    try:
        return _resolve(caller, dirfd, path, follow)
    except InDoubtError as exc:
        exc.path = os.fsdecode(path)
        raise


def _resolve(caller: Caller, dirfd: int, path: bytes, follow: bool) -> ResolvedPath:
    if not path:
        raise OSError(errno.ENOENT, "empty path")
    start = -1 if path.startswith(b"/") else caller.folder(dirfd)
    slash = False
    for _ in range(MAX_LINKS + 1):
        bare = path.rstrip(b"/")
        slash = slash or len(bare) < len(path)
        head, _, name = bare.rpartition(b"/")
        if path.startswith(b"/"):
            head = b"/" + head
        if name in (b"", b".", b".."):
            handle = _open_folder(caller, start, path)
            return ResolvedPath(handle, where(handle), b"", handle, kernel.status(handle), slash)
        folder = _open_folder(caller, start, head or b".")
        at = where(folder)
        if at.startswith("/proc/") or at == "/proc":
            # What `self` meant to us was us: look again as the caller.
            folder = _walk(caller, start, head or b".")
            return _in_proc(caller, folder, where(folder), name, slash, follow)
        try:
            handle = caller.keep(kernel.open_path(name, folder, os.O_NOFOLLOW))
        except FileNotFoundError:
            return ResolvedPath(folder, at, name, None, None, slash)
        status = kernel.status(handle)
        if not (follow and stat.S_ISLNK(status.mode)):
            return ResolvedPath(folder, at, name, handle, status, slash)
        path, start = os.readlink(b"", dir_fd=handle), folder
        if not path:
            raise OSError(errno.ENOENT, "empty link")
    raise OSError(errno.ELOOP, "too many links")


def _open_folder(caller: Caller, start: int, path: bytes) -> int:
    try:
        return caller.keep(kernel.open_path(path, start, _FOLDER))
    except OSError:
        # /proc/self on the way, perhaps, which to us was us; a real error shows again.
        return _walk(caller, start, path)


def _walk(caller: Caller, start: int, path: bytes) -> int:
    """One name after the other: /proc/self is the caller's, and its own descriptors and folders may be gone through."""
    links = 0
    here = caller.keep(kernel.open_path(b"/" if path.startswith(b"/") else b".", start, _FOLDER))
    names = [name for name in path.split(b"/")[::-1] if name]
    while names:
        name = names.pop()
        if name in (b".", b".."):
            here = caller.keep(kernel.open_path(name, here, _FOLDER))
            continue
        at = where(here)
        if at == "/proc" and name in (b"self", b"thread-self"):
            own = f"{caller.group()}" if name == b"self" else f"{caller.group()}/task/{caller.tid}"
            names += own.encode().split(b"/")[::-1]
            continue
        found = caller.keep(kernel.open_path(name, here, os.O_NOFOLLOW))
        if stat.S_ISLNK(kernel.status(found).mode):
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, "too many links")
            if kernel.filesystem(here) == kernel.PROC_SUPER_MAGIC:
                here = _through(caller, here, at, name)
                continue
            target = os.readlink(b"", dir_fd=found)
            if target.startswith(b"/"):
                here = caller.keep(kernel.open_path(b"/", -1, _FOLDER))
            names += [part for part in target.split(b"/")[::-1] if part]
            continue
        here = found
    if not stat.S_ISDIR(kernel.status(here).mode):
        raise OSError(errno.ENOTDIR, "not a folder")
    return here


def _through(caller: Caller, folder: int, at: str, name: bytes) -> int:
    """Through a link of /proc that leads to an object: only the caller's own process's."""
    match = _PROC_FOLDER.fullmatch(at)
    if match is None or int(match[1]) != caller.group():
        raise InDoubtError("it leads through another process")
    return caller.keep(os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=folder))


def _in_proc(caller: Caller, folder: int, at: str, name: bytes, slash: bool, follow: bool) -> ResolvedPath:
    """A path that ends in /proc."""
    try:
        handle = caller.keep(kernel.open_path(name, folder, os.O_NOFOLLOW))
    except FileNotFoundError:
        return ResolvedPath(folder, at, name, None, None, slash)
    status = kernel.status(handle)
    if follow and stat.S_ISLNK(status.mode):
        handle = _through(caller, folder, at, name)
        return ResolvedPath(folder, where(handle), b"", handle, kernel.status(handle), slash)
    return ResolvedPath(folder, at, name, handle, status, slash)
