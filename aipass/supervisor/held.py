"""Safe file access in folders that agents can change at any moment (TOCTOU-safe, link-free, with size limits).

The tree, a run's spool folder (request queue), an agent's home and its caches are written by agents. A path
there can mean something else from one call to the next. So every folder on the way is opened without
following a link and held open, and each action takes a name in that folder. The root itself is resolved once
(`Layout.root`); no component below it may be a link. `tests/supervisor/test_held.py` checks that our code
uses this module.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from aipass.supervisor import process
from aipass.supervisor.fence import kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    #: Called between the steps of a long removal; true stops it.
    GiveUp = Callable[[], bool]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: an agent may have put a FIFO there, and opening one would block the engine.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: An agent that creates files as fast as they are removed must not keep the caller in a loop.
MOST_ROUNDS = 8


class TooLargeError(OSError):
    """A file is larger than the limit of its reader."""

    def __init__(self, most: int, path: str) -> None:
        super().__init__(errno.EFBIG, f"larger than {most} bytes", path)


def open_at(path: Path | str, flags: int, mode: int = 0o600) -> int:
    """Open an absolute path without following a link in any component; returns a descriptor.

    Raises OSError: ELOOP or ENOTDIR where a component is a link.
    """
    if kernel.HAS_OPENAT2:
        resolve = kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
        try:
            # One call, so no component can be replaced between two look-ups.
            return kernel.open_file(os.fsencode(path), flags | os.O_CLOEXEC, mode, resolve)
        except OSError as exc:
            # The raw system call raises without a file name, and messages quote it.
            raise type(exc)(exc.errno, exc.strerror, str(path)) from None
    # Before Linux 5.6, on macOS, or in a sandbox without openat2: one component after the other.
    *above, name = os.path.normpath(path).strip("/").split("/")
    with folder("/", above) as handle:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=handle)


@contextmanager
def folder(
    top: Path | str,
    names: Iterable[str] = (),
    *,
    make: bool = False,
    mode: int = 0o700,
    across: bool = False,
) -> Iterator[int]:
    """Yield a descriptor of the folder `top`/names; with `make`, create the missing folders below `top`.

    Raises OSError where a component is a link or no folder. Raises EXDEV where a component is a mount point,
    unless `across`. A user can put an agent's home on another disk (`across`); any other mount below the root
    is not part of the tree.
    """
    handle = open_at(top, _FOLDER) if top != "/" else os.open("/", _FOLDER)
    try:
        mount = _mount(handle)
        for name in names:
            if make:
                try:
                    os.mkdir(name, mode, dir_fd=handle)
                except FileExistsError:
                    pass
            # Opened from its held parent: a rename further up cannot redirect it.
            inner = os.open(name, _FOLDER, dir_fd=handle)
            os.close(handle)
            handle = inner
            if top != "/" and not across and _mount(handle) != mount:
                raise OSError(errno.EXDEV, "another filesystem is mounted there", name)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def above(path: Path | str) -> Iterator[tuple[int, str]]:
    """Yield a descriptor of the parent folder of an absolute path, and the last name. Raises OSError as `open_at` does."""
    parent, name = os.path.split(os.path.normpath(path))
    handle = open_at(parent, _FOLDER)
    try:
        yield handle, name
    finally:
        os.close(handle)


def _mount(handle: int) -> int:
    """An identifier of the mount: its id, or the device where the system has no mount ids."""
    if kernel.HAS_OPENAT2:
        return kernel.status(handle).mount or os.fstat(handle).st_dev
    return os.fstat(handle).st_dev


# -- reading -----------------------------------------------------------------------------------------------------------


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file for reading. Never blocks; raises OSError for a link and for any other kind of file."""
    return _regular(open_at(path, _FILE), str(path))


def open_regular_in(handle: int, name: str) -> BinaryIO:
    """`open_regular` for a name in an open folder."""
    return _regular(os.open(name, _FILE, dir_fd=handle), name)


def _regular(handle: int, path: str) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return open(handle, "rb")


def read(path: Path | str, most: int) -> bytes:
    """Read a whole regular file. Raises TooLargeError beyond `most` bytes, without reading further."""
    with open_regular(path) as file:
        return _whole(file, most, str(path))


def read_begin(path: Path | str, most: int) -> bytes:
    """Read at most the first `most` bytes of a regular file."""
    with open_regular(path) as file:
        return file.read(most)


def read_in(handle: int, name: str, most: int) -> bytes:
    """`read` for a name in an open folder."""
    with open_regular_in(handle, name) as file:
        return _whole(file, most, name)


def _whole(file: BinaryIO, most: int, path: str) -> bytes:
    # By reading and not by its size: the file can grow between the two calls.
    data = file.read(most + 1)
    if len(data) > most:
        raise TooLargeError(most, path)
    return data


def read_end(path: Path | str, most: int) -> bytes:
    """Read at most the last `most` bytes of a regular file, even while it grows."""
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most)


def copy(source: BinaryIO, target: BinaryIO, most: int) -> bool:
    """Copy at most `most` bytes in pieces of 1 MiB; returns whether this was the whole source."""
    left = most
    # One byte more than the limit, to notice a source that is longer.
    while piece := source.read(min(left + 1, 1 << 20)):
        target.write(piece[:left])
        if len(piece) > left:
            return False
        left -= len(piece)
    return True


# -- writing -----------------------------------------------------------------------------------------------------------


def write_atomic(path: Path | str, text: str) -> None:
    """Write `text` to `path` by rename: readers see the old content or the whole new one.

    The temporary name is fixed, so the next writer replaces what a killed writer left. Callers must not write
    the same path concurrently. Raises OSError.
    """
    with above(path) as (handle, name):
        half = f".{name}.tmp"
        with open(_fresh(handle, half), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(half, name, src_dir_fd=handle, dst_dir_fd=handle)


def fresh(path: Path | str) -> int:
    """Create a new file at `path` and return its descriptor; removes a link, pipe or folder that an agent put there."""
    with above(path) as (handle, name):
        return _fresh(handle, name)


def _fresh(handle: int, name: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    # An agent can recreate the name after each removal: three attempts, then the error goes to the caller.
    for _ in range(3):
        try:
            return os.open(name, flags, 0o600, dir_fd=handle)
        except FileExistsError:
            remove(handle, name)
    return os.open(name, flags, 0o600, dir_fd=handle)


def make_folders(path: Path | str, below: Path | str, mode: int = 0o700) -> None:
    """Create a folder and its missing parents below an existing folder. Idempotent. Raises OSError."""
    names = os.path.relpath(path, below).split("/")
    with folder(below, () if names == ["."] else names, make=True, mode=mode):
        pass


@contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `path` when it is complete and synced to disk; on an error `path` is unchanged."""
    with above(path) as (handle, name):
        half = f".{name}.tmp"
        with open(_fresh(handle, half), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, name, src_dir_fd=handle, dst_dir_fd=handle)


def exists(handle: int, name: str) -> bool:
    """Whether the name exists in the folder; links are not followed."""
    try:
        os.stat(name, dir_fd=handle, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_folder(handle: int, name: str) -> bool:
    """Whether the name is a folder; links are not followed."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def move(handle: int, name: str, other: int, new: str) -> None:
    """Rename a file into another folder; across filesystems, copy its content, mode and times. Raises OSError."""
    try:
        os.rename(name, new, src_dir_fd=handle, dst_dir_fd=other)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        with open_regular_in(handle, name) as source, open(_fresh(other, new), "wb") as target:
            while piece := source.read(1 << 20):
                target.write(piece)
            target.flush()
            # Times after the last flush: a later write would set a new modification time.
            found = os.fstat(source.fileno())
            os.utime(target.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
            os.fchmod(target.fileno(), stat.S_IMODE(found.st_mode))
        os.unlink(name, dir_fd=handle)


def rename(handle: int, name: str, other: int, new: str, flags: int) -> bool:
    """renameat2(2) with these flags; False where the system or the filesystem has no such call. Raises OSError."""
    if not process.LINUX:
        return False
    try:
        kernel.rename(handle, os.fsencode(name), other, os.fsencode(new), flags)
    except OSError as exc:
        if exc.errno in {errno.EINVAL, errno.ENOSYS}:
            return False
        raise
    return True


def try_move(handle: int, name: str, other: int, new: str) -> bool:
    """`move` only where the new name is free; returns whether the file was moved. Never raises."""
    try:
        if rename(handle, name, other, new, kernel.RENAME_NOREPLACE):
            return True
    except FileExistsError:
        return False
    except OSError:
        pass  # another filesystem
    try:
        # link(2) fails on an existing name; a plain rename would overwrite it.
        os.link(name, new, src_dir_fd=handle, dst_dir_fd=other, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError:
        try:
            move(handle, name, other, new)  # a filesystem without links, or a folder
        except OSError:
            return False
        return True
    os.unlink(name, dir_fd=handle)
    return True


# -- removing ----------------------------------------------------------------------------------------------------------


def remove_at(path: Path | str, give_up: GiveUp | None = None) -> None:
    """Remove a path recursively. Idempotent: a missing path is no error. Raises OSError as `remove` does."""
    try:
        with above(path) as (handle, name):
            remove(handle, name, give_up)
    except FileNotFoundError:
        pass


def try_remove_at(path: Path | str, give_up: GiveUp | None = None) -> bool:
    """`remove_at` as far as possible; returns whether nothing is left. Never raises OSError."""
    try:
        remove_at(path, give_up)
    except OSError:
        return False
    return True


def remove(handle: int, name: str, give_up: GiveUp | None = None) -> None:
    """Remove a name in an open folder recursively, at any depth. Idempotent: a missing name is no error.

    Each folder is listed once, so the cost grows with the number of entries and not with their depth. Two
    descriptors are open at a time. Links are removed and not followed; a mount stays (EBUSY). `give_up` is
    called once per folder and stops the removal with InterruptedError. Raises OSError; ENOTEMPTY where
    another process creates files as fast as they are removed.
    """
    for _ in range(MOST_ROUNDS):
        try:
            os.unlink(name, dir_fd=handle)
            return
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            # macOS and POSIX answer EPERM for a folder, Linux EISDIR.
            try:
                if not stat.S_ISDIR(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
                    raise
            except FileNotFoundError:
                continue
        try:
            _remove_folder(handle, name, give_up)
            return
        except (FileNotFoundError, NotADirectoryError):
            continue  # an agent has just removed or replaced it
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise OSError(errno.ENOTEMPTY, "another process keeps creating files in it", name)


def _remove_folder(handle: int, name: str, give_up: GiveUp | None) -> None:
    """Depth first, back up through `..`.

    Climbing by `..` needs no open descriptor per level, so the depth is not limited by RLIMIT_NOFILE.
    """
    current = _open_to_empty(handle, name)
    try:
        mount = _mount(current)
        names, places, folders = [name], [_identity(current)], [_unlink_files(current)]
        while True:
            if give_up is not None and give_up():
                raise InterruptedError(
                    errno.EINTR, "the removal was interrupted; it will be continued later", name
                )
            if folders[-1]:
                inner = _open_to_empty(current, folders[-1][-1])
                os.close(current)
                current = inner
                # A mount below an agent's folder can be the user's own disk; removing must stop there.
                if _mount(current) != mount:
                    raise OSError(errno.EBUSY, "something is mounted there", folders[-1][-1])
                names.append(folders[-1].pop())
                places.append(_identity(current))
                folders.append(_unlink_files(current))
                continue
            done = names.pop()
            places.pop()
            folders.pop()
            if not names:
                break
            outer = os.open("..", _FOLDER, dir_fd=current)
            os.close(current)
            current = outer
            # An agent that moves a folder during the removal must not lead it into another folder.
            if _identity(current) != places[-1]:
                raise OSError(errno.ENOTEMPTY, "it was moved during the removal", done)
            os.rmdir(done, dir_fd=current)
    finally:
        os.close(current)
    os.rmdir(name, dir_fd=handle)


def _identity(handle: int) -> tuple[int, int]:
    found = os.fstat(handle)
    return found.st_dev, found.st_ino


def _unlink_files(handle: int) -> list[str]:
    """Remove everything but folders from a folder; returns the names of its folders."""
    folders = []
    with os.scandir(handle) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
                continue
            try:
                os.unlink(entry.name, dir_fd=handle)
            except FileNotFoundError:
                pass
            except (IsADirectoryError, PermissionError):
                if not is_folder(handle, entry.name):
                    raise
                folders.append(entry.name)  # replaced by a folder since the listing
    return folders


def _open_to_empty(handle: int, name: str) -> int:
    try:
        opened = os.open(name, _FOLDER, dir_fd=handle)
    except PermissionError:
        let_write(handle, name)
        return os.open(name, _FOLDER, dir_fd=handle)
    if stat.S_IMODE(os.fstat(opened).st_mode) & 0o700 != 0o700:
        os.fchmod(opened, 0o700)
    return opened


def let_write(handle: int, name: str) -> None:
    """Restore the owner's rwx mode of a folder, so that it can be emptied or moved. Acts on a descriptor, not on the name."""
    if not hasattr(os, "O_PATH"):
        return
    held = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
    try:
        if stat.S_IMODE(os.fstat(held).st_mode) & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{held}", 0o700)
    except (FileNotFoundError, PermissionError):
        pass  # no /proc, or another user's folder: the caller's next step raises the error
    finally:
        os.close(held)
