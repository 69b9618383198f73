"""Path resolution as the kernel does it: from the caller's folders, through links, to a folder that is held open.

Results are held by O_PATH descriptors, and names are only read from those. So a rename, exchange or new link
during the call cannot change which object a decision is about (no TOCTOU race).
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

#: Maximum path length with its closing NUL, and number of links in a path (linux/limits.h, fs/namei.c).
PATH_MAX, MAX_LINKS = 4096, 40
_FOLDER = os.O_PATH | os.O_DIRECTORY
_PROC_FOLDER = re.compile(r"/proc/([0-9]+)(/task/[0-9]+)?(/fd)?")


class InDoubtError(Exception):
    """A path that cannot be resolved with certainty; it is refused with this reason. `path` as the caller wrote it."""

    path = "?"


class Caller:
    """The thread that waits for an answer: its memory, folders and descriptors. Valid only while its call waits."""

    __slots__ = ("_group", "_status", "become", "handles", "is_valid", "tid")

    def __init__(self, tid: int) -> None:
        self.tid = tid
        #: Descriptors to close when the call has been answered.
        self.handles: list[int] = []
        #: Set where the caller has another identity: True switches the thread to the supervisor's identity, False to the caller's.
        self.become: Callable[[bool], None] | None = None
        #: Whether its call still waits, which proves that the memory that was read was its own.
        self.is_valid: Callable[[], bool] | None = None
        self._group: int | None = None
        self._status: bytes | None = None

    def confirm(self) -> None:
        """Raise ESRCH where the caller has ended: another process can have reused its id while its memory was read."""
        if self.is_valid is not None and not self.is_valid():
            raise OSError(errno.ESRCH, "the caller is gone")

    def ourselves(self) -> AbstractContextManager[None]:
        """A context with the supervisor's identity, where the caller has another: needed for our files and the caller's memory."""
        return _SAME if self.become is None else _Ourselves(self.become)

    def keep(self, handle: int) -> int:
        """Close `handle` when the call has been answered; returns it."""
        self.handles.append(handle)
        return handle

    def close(self) -> None:
        """Close all kept descriptors. Idempotent."""
        for handle in self.handles:
            os.close(handle)
        self.handles.clear()

    def text(self, address: int) -> bytes:
        """The string at an address. Raises OSError EFAULT or ENAMETOOLONG, as the kernel would."""
        data = self.memory(address, PATH_MAX)
        end = data.find(b"\0")
        if end < 0:
            raise OSError(errno.ENAMETOOLONG if len(data) == PATH_MAX else errno.EFAULT, "path")
        return data[:end]

    def memory(self, address: int, length: int, *, exactly: bool = False) -> bytes:
        """Up to `length` bytes at an address, or exactly `length` with `exactly`. Raises OSError EFAULT."""
        with self.ourselves():
            return (kernel.read_exactly if exactly else kernel.read_memory)(self.tid, address, length)

    def folder(self, dirfd: int) -> int:
        """An O_PATH descriptor of the folder where relative paths begin. Raises OSError EBADF or ENOTDIR."""
        if dirfd == kernel.AT_FDCWD:
            return self._own("cwd", _FOLDER)
        return self.descriptor(dirfd, os.O_DIRECTORY)

    def descriptor(self, number: int, flags: int = 0) -> int:
        """An O_PATH descriptor of the object of one of the caller's descriptors. Raises OSError EBADF."""
        if number < 0:
            raise OSError(errno.EBADF, "descriptor")
        try:
            return self._own(f"fd/{number}", os.O_PATH | flags)
        except FileNotFoundError:
            raise OSError(errno.EBADF, "descriptor") from None

    def _own(self, name: str, flags: int) -> int:
        """Open an entry of the caller's /proc folder, which belongs to root after a change of user."""
        with self.ourselves():
            return self.keep(os.open(f"/proc/{self.tid}/{name}", flags | os.O_CLOEXEC))

    def is_path_only(self, number: int) -> bool:
        """Whether one of the caller's descriptors was opened with O_PATH. Raises OSError."""
        handle = os.open(f"/proc/{self.tid}/fdinfo/{number}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = os.read(handle, 512).split(b"flags:", 1)[1].split(b"\n", 1)[0]
        finally:
            os.close(handle)
        return bool(int(flags, 8) & os.O_PATH)

    def status(self, name: bytes) -> bytes:
        """A field of /proc/<tid>/status: umask, identity, signals. Read once per call. Raises OSError or ValueError."""
        if self._status is None:
            handle = os.open(f"/proc/{self.tid}/status", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._status = b"\n"
                # A process can be in 65,536 groups, so the file can be long.
                while part := os.read(handle, 1 << 16):
                    self._status += part
            finally:
                os.close(handle)
        start = self._status.index(b"\n" + name + b":\t") + len(name) + 3
        return self._status[start : self._status.index(b"\n", start)]

    def umask(self) -> int:
        """The caller's umask."""
        return int(self.status(b"Umask"), 8)

    def group(self) -> int:
        """The id of the caller's process (thread group)."""
        if self._group is None:
            self._group = int(self.status(b"Tgid"))
        return self._group


class _Ourselves:
    """The supervisor's identity inside the context, the caller's after it."""

    def __init__(self, become: Callable[[bool], None]) -> None:
        self._become = become

    def __enter__(self) -> None:
        self._become(True)

    def __exit__(self, *_: object) -> None:
        self._become(False)


_SAME = nullcontext()


class ResolvedPath:
    """The result of a resolution: an open folder, a name in it, and the object of that name, if it exists.

    `name` is empty where the path is a folder, or an object without a name. `slash`: the path ended in `/`.
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
        """The name as it must be passed to the kernel: a closing slash requires a folder."""
        return self.name + b"/" if self.slash else self.name

    def is_folder(self) -> bool:
        """Whether the object exists and is a folder."""
        return self.status is not None and stat.S_ISDIR(self.status.mode)


def where(handle: int) -> str:
    """The current path of an open object, as the kernel reports it. Raises InDoubtError where it is too long, or OSError."""
    try:
        return os.readlink(f"/proc/thread-self/fd/{handle}")
    except OSError as exc:
        if exc.errno == errno.ENAMETOOLONG:
            raise InDoubtError("its path is longer than the kernel can report") from None
        raise


def resolve(caller: Caller, dirfd: int, path: bytes, follow: bool) -> ResolvedPath:
    """Resolve `path` from `dirfd`. `follow`: also follow a symbolic link at the end.

    Returns a ResolvedPath, without a handle where the last name does not exist. Raises OSError as the kernel
    would (ENOENT for a missing folder on the way, ENOTDIR, ELOOP, EBADF …), and InDoubtError.
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
            # /proc/self was resolved as the supervisor's: resolve again, name by name, as the caller.
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
        # Possibly /proc/self on the way, which means the supervisor here. A real error occurs again.
        return _walk(caller, start, path)


def _walk(caller: Caller, start: int, path: bytes) -> int:
    """Resolve name by name: /proc/self is the caller's, and links to its own descriptors and folders are followed."""
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
    """Follow a magic link of /proc that leads to an object; only of the caller's own process, else InDoubtError."""
    match = _PROC_FOLDER.fullmatch(at)
    if match is None or int(match[1]) != caller.group():
        raise InDoubtError("it leads through another process (a link in /proc)")
    return caller.keep(os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=folder))


def _in_proc(caller: Caller, folder: int, at: str, name: bytes, slash: bool, follow: bool) -> ResolvedPath:
    """Resolve the last name of a path that ends in /proc."""
    try:
        handle = caller.keep(kernel.open_path(name, folder, os.O_NOFOLLOW))
    except FileNotFoundError:
        return ResolvedPath(folder, at, name, None, None, slash)
    status = kernel.status(handle)
    if follow and stat.S_ISLNK(status.mode):
        handle = _through(caller, folder, at, name)
        return ResolvedPath(folder, where(handle), b"", handle, kernel.status(handle), slash)
    return ResolvedPath(folder, at, name, handle, status, slash)
