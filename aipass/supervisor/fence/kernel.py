"""System calls that Python has no function for, with the kernel's structures and numbers.

Functions act on the calling thread or on descriptors and decide nothing. Errors are OSError with the kernel's
errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
import threading
from typing import NamedTuple

LINUX = sys.platform == "linux"
MACHINE = platform.machine()
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# -- system call numbers that are the same everywhere, and those that are not -------------------------------------------
_SECCOMP = {"x86_64": 317, "aarch64": 277}.get(MACHINE, 0)
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_OPENAT2, _PIDFD_OPEN, _PIDFD_GETFD = 437, 434, 438
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}.get(MACHINE, 0)
_SETFSUID = {"x86_64": (122, 123, 116), "aarch64": (151, 152, 159)}.get(MACHINE, (0, 0, 0))

# -- linux/seccomp.h ----------------------------------------------------------------------------------------------------
SECCOMP_SET_MODE_FILTER = 1
FILTER_NEW_LISTENER, FILTER_WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
NOTIF_RECV, NOTIF_SEND, NOTIF_ID_VALID, NOTIF_ADDFD, NOTIF_SET_FLAGS = (
    0xC0502100,
    0xC0182101,
    0x40082102,
    0x40182103,
    0x40082104,
)
USER_NOTIF_CONTINUE = 1
ADDFD_SEND = 2
# Linux 6.6: the waiting caller and the supervisor run on one processor (SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP).
SYNC_WAKE_UP = 1
#: struct seccomp_notif: id, pid, flags, nr, arch, instruction pointer, six arguments.
NOTIFICATION = struct.Struct("=QIIiIQ6Q")
#: struct seccomp_notif_resp: id, value, error, flags.
RESPONSE = struct.Struct("=QqiI")
#: struct seccomp_notif_addfd: id, flags, descriptor here, descriptor there, its flags.
ADDFD = struct.Struct("=QIIII")

# -- linux/prctl.h, linux/sched.h, linux/fcntl.h, linux/openat2.h --------------------------------------------------------
PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 3, 4, 38
CLONE_FS, CLONE_FILES = 0x200, 0x400
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = (
    -100,
    0x100,
    0x200,
    0x400,
    0x1000,
)
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08
# Linux 6.9; its value is that of O_EXCL (linux/pidfd.h).
PIDFD_THREAD = os.O_EXCL
STATX_BASIC, STATX_BTIME, STATX_MNT_ID = 0x7FF, 0x800, 0x1000
# Kept below 2^31: ctypes passes a plain int as signed.
_STATX_MASK = STATX_BASIC | STATX_BTIME | STATX_MNT_ID
PROC_SUPER_MAGIC = 0x9FA0

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_long = ctypes.c_long


def raw(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
    """Perform one system call and return its result. Raises OSError. Integers are passed as long, bytes and buffers as pointers."""
    result = _syscall(_long(number), *(_long(a) if isinstance(a, int) else a for a in arguments))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def prctl(option: int, value: int) -> int:
    """prctl(2) with one argument; returns its result. Raises OSError."""
    result = _libc.prctl(option, _long(value), _long(0), _long(0), _long(0))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def unshare(flags: int) -> None:
    """Stop sharing with the other threads what `flags` name (descriptors, folder and umask). Raises OSError."""
    if _libc.unshare(flags) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# -- seccomp ------------------------------------------------------------------------------------------------------------


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install_filter(program: bytes) -> int:
    """Install a seccomp filter on this thread, irrevocably; returns the listener descriptor of its notifications.

    Needs no_new_privs. Raises OSError; EBUSY where a listener is already installed.
    """
    holder = _Program(len(program) // 8, program)
    # WAIT_KILLABLE_RECV (Linux 5.19): a signal does not interrupt a call that the supervisor already performs.
    for flags in (FILTER_NEW_LISTENER | FILTER_WAIT_KILLABLE_RECV, FILTER_NEW_LISTENER):
        result = _syscall(_long(_SECCOMP), _long(SECCOMP_SET_MODE_FILTER), _long(flags), ctypes.byref(holder))
        if result >= 0:
            return int(result)
        if ctypes.get_errno() != errno.EINVAL:
            break
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


# -- Landlock -----------------------------------------------------------------------------------------------------------


def landlock_version() -> int:
    """The Landlock ABI version of this kernel; 0 where there is none."""
    try:
        return raw(_LANDLOCK_CREATE, 0, 0, 1)
    except OSError:
        return 0


def landlock_ruleset(rights: int, scopes: int, version: int) -> int:
    """Create a ruleset that handles `rights` and `scopes`; returns its descriptor. Raises OSError."""
    fields = struct.pack("=QQQ", rights, 0, scopes)
    # An older kernel rejects fields that it does not know (E2BIG).
    size = 8 if version < 4 else 16 if version < 6 else 24
    return raw(_LANDLOCK_CREATE, fields[:size], size, 0)


def landlock_allow(ruleset: int, rights: int, folder: int) -> None:
    """Allow `rights` below the folder, or on the file, of this O_PATH descriptor. Raises OSError."""
    raw(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, folder), 0)


def landlock_restrict(ruleset: int) -> None:
    """Confine this thread and its children, irrevocably. Raises OSError."""
    raw(_LANDLOCK_RESTRICT, ruleset, 0)


# -- files --------------------------------------------------------------------------------------------------------------


class Status(NamedTuple):
    """The result of statx(2). Times in nanoseconds; `born` is 0 where the filesystem has no birth times."""

    mode: int
    ino: int
    dev: int
    links: int
    uid: int
    mount: int
    born: int
    rdev: int


_STATX = struct.Struct("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIIIQ")
_statx = getattr(_libc, "statx", None)


def status(handle: int) -> Status:
    """statx(2) of an open descriptor, O_PATH included. Raises OSError."""
    buffer = ctypes.create_string_buffer(256)
    if _statx is None or _statx(handle, b"", AT_EMPTY_PATH, _STATX_MASK, buffer) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    f = _STATX.unpack_from(buffer)
    # mask blksize attributes nlink uid gid mode ino size blocks attributes_mask atime btime ctime mtime rdev dev mnt_id
    born = f[13] * 1_000_000_000 + f[14] if f[0] & STATX_BTIME else 0
    mount = f[23] if f[0] & STATX_MNT_ID else 0
    return Status(f[6], f[7], os.makedev(f[21], f[22]), f[3], f[4], mount, born, os.makedev(f[19], f[20]))


_HOW = struct.Struct("=QQQ")


def open_path(path: bytes, folder: int, flags: int, resolve: int = RESOLVE_NO_MAGICLINKS) -> int:
    """openat2(2) for an O_PATH descriptor. By default magic links (in /proc) fail with ELOOP. Raises OSError."""
    how = _HOW.pack(flags | os.O_PATH | os.O_CLOEXEC, 0, resolve)
    result = _syscall(_long(_OPENAT2), _long(folder), path, how, _long(24))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def open_file(path: bytes, flags: int, mode: int, resolve: int) -> int:
    """openat2(2) of an absolute path. Raises OSError."""
    # openat2 rejects a mode without O_CREAT or O_TMPFILE (EINVAL); openat ignores it.
    how = _HOW.pack(flags, mode if flags & (os.O_CREAT | _TMPFILE) else 0, resolve)
    result = _syscall(_long(_OPENAT2), _long(-100), path, how, _long(24))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def _has_openat2() -> bool:
    try:
        os.close(open_path(b"/", -100, os.O_DIRECTORY))
    except (OSError, AttributeError):
        return False
    return True


_TMPFILE = getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY
#: Since Linux 5.6, but a sandbox around the engine can refuse it.
HAS_OPENAT2 = os.uname().sysname == "Linux" and _has_openat2()


def filesystem(handle: int) -> int:
    """The magic number (statfs) of the filesystem of an open file. Raises OSError."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(handle, buffer) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(struct.unpack_from("=q", buffer)[0])


def rename(source: int, old: bytes, target: int, new: bytes, flags: int) -> None:
    """renameat2(2). Raises OSError."""
    raw(_RENAMEAT2, source, old, target, new, flags)


def chown(handle: int, uid: int, gid: int) -> None:
    """fchownat(2) on an O_PATH descriptor, also of a symbolic link; 0xffffffff leaves an id unchanged. Raises OSError."""
    if _libc.fchownat(handle, b"", ctypes.c_uint(uid), ctypes.c_uint(gid), AT_EMPTY_PATH) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def set_times(handle: int, times: bytes | None) -> None:
    """utimensat(2) on an O_PATH descriptor; `times` is two struct timespec (UTIME_OMIT, UTIME_NOW allowed). Raises OSError."""
    if _libc.utimensat(handle, b"", times, AT_EMPTY_PATH) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_size_t), ("length", ctypes.c_size_t))


_PAGE = os.sysconf("SC_PAGE_SIZE") if LINUX else 4096


class _Reader(threading.local):
    """Buffers for read_memory, one set per thread: allocating them takes longer than the call."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(4096)
        self.local = _Vector(ctypes.addressof(self.buffer), 0)
        self.remote = (_Vector * 2)()


_reader = _Reader()
_process_vm_readv = getattr(_libc, "process_vm_readv", None)
if _process_vm_readv is not None:
    _process_vm_readv.restype = ctypes.c_ssize_t
    _process_vm_readv.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )


def read_exactly(tid: int, address: int, length: int) -> bytes:
    """Read `length` bytes of another thread's memory. Raises OSError EFAULT for fewer."""
    found = read_memory(tid, address, length)
    if len(found) < length:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    return found


def read_memory(tid: int, address: int, length: int) -> bytes:
    """Read up to `length` (at most 4,096) bytes of another thread's memory; fewer where its mapping ends.

    Raises OSError EFAULT for none.
    """
    # Not by an open /proc/<tid>/mem: it keeps reading a vfork parent's memory after an exec.
    reader = _reader
    first = min(length, _PAGE - address % _PAGE)
    # Split at the page boundary: process_vm_readv reads only whole vectors, and the second page can be unmapped.
    one, two = reader.remote
    one.base, one.length = address, first
    two.base, two.length = address + first, length - first
    reader.local.length = length
    got = -1
    if _process_vm_readv is not None and 0 < address < 1 << 63:
        parts = 2 if length > first else 1
        got = _process_vm_readv(
            tid, ctypes.addressof(reader.local), 1, ctypes.addressof(reader.remote), parts, 0
        )
    if got <= 0:
        number = ctypes.get_errno() if got < 0 and address else errno.EFAULT
        raise OSError(number or errno.EFAULT, os.strerror(number or errno.EFAULT))
    return ctypes.string_at(reader.local.base, got)


def copy_descriptor(tid: int, handle: int) -> int:
    """Copy descriptor `handle` of thread `tid` (which can have its own table) to this process. Raises OSError."""
    try:
        pidfd = raw(_PIDFD_OPEN, tid, PIDFD_THREAD)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        # Before Linux 6.9 a pidfd refers to a whole process: this works if its threads share one table.
        pidfd = raw(_PIDFD_OPEN, _group_of(tid), 0)
    try:
        return raw(_PIDFD_GETFD, pidfd, handle, 0)
    finally:
        os.close(pidfd)


def _group_of(tid: int) -> int:
    with open(f"/proc/{tid}/status", "rb") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(b"Tgid:"))


class Credentials(NamedTuple):
    """The identity for file access of a thread: user, group, further groups, effective capabilities as a bit set."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    capabilities: int


#: Capabilities of a run that root starts: a container's default without devices and raw sockets (linux/capability.h). CHOWN,
#: DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, IPC_LOCK, SYS_NICE, AUDIT_WRITE, SETFCAP.
KEPT_CAPABILITIES = sum(1 << number for number in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 14, 23, 29, 31))
PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24


def drop_capabilities() -> None:
    """Limit this thread and its children to KEPT_CAPABILITIES, irrevocably. Raises OSError."""
    for number in range(64):
        try:
            if not prctl(PR_CAPBSET_READ, number):
                continue
        except OSError:
            return  # beyond the last one
        if not KEPT_CAPABILITIES >> number & 1:
            prctl(PR_CAPBSET_DROP, number)


def act_as(identity: Credentials) -> None:
    """Take another identity for file access, or the own one again. Needs root; changes this thread only. Raises OSError."""
    set_uid, set_gid, set_groups = _SETFSUID
    # All capabilities first, as changing groups needs some; the caller's last, as setfsuid(2) changes some by itself.
    # Raw calls: the C library's setgroups would change every thread.
    permitted = _capabilities()[1]
    _set_capabilities(permitted, permitted)
    raw(set_groups, len(identity.groups), struct.pack(f"={len(identity.groups)}I", *identity.groups))
    _syscall(_long(set_gid), _long(identity.gid))
    _syscall(_long(set_uid), _long(identity.uid))
    _set_capabilities(identity.capabilities & permitted, permitted)


def own_identity() -> Credentials:
    """The identity of this thread now."""
    return Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()), _capabilities()[0])


# linux/capability.h: version 3, two halves of 32 bits each of effective, permitted, inheritable.
_CAPABILITY_VERSION = 0x20080522
_CAPGET, _CAPSET = {"x86_64": (125, 126), "aarch64": (90, 91)}.get(MACHINE, (0, 0))


def _capabilities() -> tuple[int, int]:
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    data = ctypes.create_string_buffer(24)
    raw(_CAPGET, header, data)
    low, low_permitted, _, high, high_permitted, _ = struct.unpack("=6I", data.raw)
    return low | high << 32, low_permitted | high_permitted << 32


def _set_capabilities(effective: int, permitted: int) -> None:
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    low, high = 0xFFFFFFFF, 32
    parts = (effective & low, permitted & low, 0, effective >> high, permitted >> high, 0)
    raw(_CAPSET, header, ctypes.create_string_buffer(struct.pack("=6I", *parts), 24))
