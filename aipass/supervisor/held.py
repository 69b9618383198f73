"""Files that somebody else may change at any moment: reached through folders held open, never through a link, read with limits.

The tree, a run's spool folder, an agent's home and caches are written by agents. A path there means something else from one call to the
next, so nothing is done by path: every folder on the way is opened without following a link and held, and the act is on a name in
it. The root itself is resolved once (`Layout.root`); no component behind it may be a link. `tests/supervisor/test_held.py` holds our code to it.
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

    #: Asked now and then by what takes long: whether it is to stop.
    GiveUp = Callable[[], bool]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Somebody who makes files as fast as they are removed is not waited for.
MOST_ROUNDS = 8


class TooLargeError(OSError):
    """A file that is larger than its reader takes."""

    def __init__(self, most: int, path: str) -> None:
        super().__init__(errno.EFBIG, f"larger than {most} bytes", path)


def open_at(path: Path | str, flags: int, mode: int = 0o600) -> int:
    """Open an absolute path, no component of which may be a link. Raises OSError: ELOOP or ENOTDIR where one is."""
    if kernel.HAS_OPENAT2:
        resolve = kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
        try:
            return kernel.open_file(os.fsencode(path), flags | os.O_CLOEXEC, mode, resolve)
        except OSError as exc:
            raise type(exc)(exc.errno, exc.strerror, str(path)) from None
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
    """A descriptor of the folder `top`/names, made where it is missing and `make` says so.

    Raises OSError where something else is in its way, and EXDEV where a mount is, unless `across`: a person may have put an agent's
    home on another disk; whatever else is mounted below is not the tree's.
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
    """The folder that an absolute path lies in, held, and its last name. Raises OSError as `open_at` does."""
    parent, name = os.path.split(os.path.normpath(path))
    handle = open_at(parent, _FOLDER)
    try:
        yield handle, name
    finally:
        os.close(handle)


def _mount(handle: int) -> int:
    """What tells one mount from another: its id, or where the system has none, the device."""
    if kernel.HAS_OPENAT2:
        return kernel.status(handle).mount or os.fstat(handle).st_dev
    return os.fstat(handle).st_dev


# -- reading -----------------------------------------------------------------------------------------------------------


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file for reading; raises OSError unless it is a regular file that no link leads to, and never waits."""
    return _regular(open_at(path, _FILE), str(path))


def open_regular_in(handle: int, name: str) -> BinaryIO:
    """The same, by a name in a folder that is held."""
    return _regular(os.open(name, _FILE, dir_fd=handle), name)


def _regular(handle: int, path: str) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return open(handle, "rb")


def read(path: Path | str, most: int) -> bytes:
    """All of a regular file of at most so many bytes; raises TooLargeError beyond, without reading on."""
    with open_regular(path) as file:
        return _whole(file, most, str(path))


def read_begin(path: Path | str, most: int) -> bytes:
    """The first bytes of a regular file, at most so many."""
    with open_regular(path) as file:
        return file.read(most)


def read_in(handle: int, name: str, most: int) -> bytes:
    """The same, by a name in a folder that is held."""
    with open_regular_in(handle, name) as file:
        return _whole(file, most, name)


def _whole(file: BinaryIO, most: int, path: str) -> bytes:
    data = file.read(most + 1)
    if len(data) > most:
        raise TooLargeError(most, path)
    return data


def read_end(path: Path | str, most: int) -> bytes:
    """The last bytes of a regular file, at most so many, however it grows."""
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most)


def copy(source: BinaryIO, target: BinaryIO, most: int) -> bool:
    """Copy up to so many bytes, a piece at a time; whether that was all of it."""
    left = most
    while piece := source.read(min(left + 1, 1 << 20)):
        target.write(piece[:left])
        if len(piece) > left:
            return False
        left -= len(piece)
    return True


# -- writing -----------------------------------------------------------------------------------------------------------


def write_atomic(path: Path | str, text: str) -> None:
    """Put `text` at `path` by rename, so that it is there whole or not at all.

    The temporary name is always the same: what a killed writer left is overwritten by the next. One writer at a time.
    """
    with above(path) as (handle, name):
        half = f".{name}.tmp"
        with open(_fresh(handle, half), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(half, name, src_dir_fd=handle, dst_dir_fd=handle)


def fresh(path: Path | str) -> int:
    """A descriptor of a new file at `path`, whatever was there: an agent may have put a link, a pipe or a folder."""
    with above(path) as (handle, name):
        return _fresh(handle, name)


def _fresh(handle: int, name: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(3):
        try:
            return os.open(name, flags, 0o600, dir_fd=handle)
        except FileExistsError:
            remove(handle, name)
    return os.open(name, flags, 0o600, dir_fd=handle)


def make_folders(path: Path | str, below: Path | str, mode: int = 0o700) -> None:
    """Make a folder and those above it, as far as they are missing, below a folder that is there."""
    names = os.path.relpath(path, below).split("/")
    with folder(below, () if names == ["."] else names, make=True, mode=mode):
        pass


@contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """A new file that takes its place at `path` when it is whole and on the disk; nothing where writing it fails."""
    with above(path) as (handle, name):
        half = f".{name}.tmp"
        with open(_fresh(handle, half), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, name, src_dir_fd=handle, dst_dir_fd=handle)


def exists(handle: int, name: str) -> bool:
    """Whether anything stands there, links not followed."""
    try:
        os.stat(name, dir_fd=handle, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_folder(handle: int, name: str) -> bool:
    """Whether a folder stands there, links not followed."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def move(handle: int, name: str, other: int, new: str) -> None:
    """Give a file another name and folder; between filesystems its content and time are copied. Raises OSError."""
    try:
        os.rename(name, new, src_dir_fd=handle, dst_dir_fd=other)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        with open_regular_in(handle, name) as source, open(_fresh(other, new), "wb") as target:
            while piece := source.read(1 << 20):
                target.write(piece)
            target.flush()
            found = os.fstat(source.fileno())
            os.utime(target.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
            os.fchmod(target.fileno(), stat.S_IMODE(found.st_mode))
        os.unlink(name, dir_fd=handle)


def rename(handle: int, name: str, other: int, new: str, flags: int) -> bool:
    """Rename as renameat2(2) does with these flags; False where the system or the filesystem cannot. Raises OSError."""
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
    """The same where nothing stands at the new name yet; whether it was done."""
    try:
        if rename(handle, name, other, new, kernel.RENAME_NOREPLACE):
            return True
    except FileExistsError:
        return False
    except OSError:
        pass  # another filesystem
    try:
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
    """Remove what stands at a path, with all in it; nothing there is fine. Raises OSError."""
    try:
        with above(path) as (handle, name):
            remove(handle, name, give_up)
    except FileNotFoundError:
        pass


def try_remove_at(path: Path | str, give_up: GiveUp | None = None) -> bool:
    """The same as far as it can be done; whether nothing is left."""
    try:
        remove_at(path, give_up)
    except OSError:
        return False
    return True


def remove(handle: int, name: str, give_up: GiveUp | None = None) -> None:
    """Remove a name in a folder that is held, with all in it, however deep; nothing there is fine.

    Each folder is listed once, so it costs what is there and not more, however it is nested; two descriptors are open at a time. Links are
    removed and not followed, a mount stays and is EBUSY. `give_up` is asked at each folder, and ends it with InterruptedError. Raises
    OSError; ENOTEMPTY where somebody makes new files as fast as they go.
    """
    for _ in range(MOST_ROUNDS):
        try:
            os.unlink(name, dir_fd=handle)
            return
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            # macOS and POSIX say EPERM of a folder.
            try:
                if not stat.S_ISDIR(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
                    raise
            except FileNotFoundError:
                continue
        try:
            _remove_folder(handle, name, give_up)
            return
        except (FileNotFoundError, NotADirectoryError):
            continue  # it has just been taken away, or replaced
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise OSError(errno.ENOTEMPTY, "somebody goes on making files in it", name)


def _remove_folder(handle: int, name: str, give_up: GiveUp | None) -> None:
    """Depth first, and up again by `..`, which must be the folder that was come from: whoever moves one on the way has moved it."""
    current = _open_to_empty(handle, name)
    try:
        mount = _mount(current)
        names, places, folders = [name], [_identity(current)], [_unlink_files(current)]
        while True:
            if give_up is not None and give_up():
                raise InterruptedError(errno.EINTR, "it is left for later", name)
            if folders[-1]:
                inner = _open_to_empty(current, folders[-1][-1])
                os.close(current)
                current = inner
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
            if _identity(current) != places[-1]:
                raise OSError(errno.ENOTEMPTY, "it was moved while it was removed", done)
            os.rmdir(done, dir_fd=current)
    finally:
        os.close(current)
    os.rmdir(name, dir_fd=handle)


def _identity(handle: int) -> tuple[int, int]:
    found = os.fstat(handle)
    return found.st_dev, found.st_ino


def _unlink_files(handle: int) -> list[str]:
    """Remove all in a folder that is no folder; the names of those."""
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
                folders.append(entry.name)  # it has become one
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
    """Give a folder of ours back the mode that emptying and moving it need; by what is held, never by its name."""
    if not hasattr(os, "O_PATH"):
        return
    held = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
    try:
        if stat.S_IMODE(os.fstat(held).st_mode) & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{held}", 0o700)
    except (FileNotFoundError, PermissionError):
        pass  # without /proc, or not ours: what follows says so
    finally:
        os.close(held)
