"""Run behind the fence: tries to write what is not its own, in every way there is, and says what came of each.

Standard library only, x86_64 numbers where a call has no wrapper. Arguments: a file outside, one in a shared folder, a
process that is not the run's, and `apart` for a process of its own for each try. Prints one JSON object: name -> [errno or "done",
paths that $AIPASS_DENIED named meanwhile].
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import threading

ROOT = os.environ["AIPASS_ROOT"]
OUTSIDE, SHARED, SUPERVISOR, APART = sys.argv[1], sys.argv[2], int(sys.argv[3]), "apart" in sys.argv
L = ctypes.CDLL(None, use_errno=True)
L.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"
AT = -100
TRIES: dict[str, object] = {}


def call(number, *arguments):
    result = L.syscall(
        *[
            a if isinstance(a, bytes | ctypes.Array | ctypes.Structure) or a is None else ctypes.c_long(a)
            for a in (number, *arguments)
        ]
    )
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def attempt(name):
    def add(function):
        assert name not in TRIES, name
        TRIES[name] = function
        return function

    return add


def reading(path="b.txt"):
    return os.open(path, os.O_RDONLY)


def opened(path, flags):
    handle = os.open(path, flags, 0o666)
    try:
        os.write(handle, b"broken into")
    finally:
        os.close(handle)


# -- spellings of one foreign file, opened in each way -------------------------------------------------------------------
SPELLINGS = {
    "relative": "b.txt",
    "dotted": "./dir/./../b.txt",
    "absolute": f"{ROOT}/b.txt",
    "slashes": f"//{ROOT}//b.txt",
    "link": "dir/link",
    "link to link": "dir/link2",
    "hard link": "dir/hard",
    "folder link": "dir/out/../b.txt",
    "proc cwd": "/proc/self/cwd/b.txt",
    "proc thread": "/proc/thread-self/cwd/b.txt",
    "proc pid": f"/proc/{os.getpid()}/cwd/b.txt",
    "proc root": f"/proc/self/root{ROOT}/b.txt",
    "proc task": f"/proc/self/task/{os.getpid()}/cwd/b.txt",
}
for spelling, path in SPELLINGS.items():
    attempt(f"open {spelling}")(lambda path=path: opened(path, os.O_WRONLY))
    attempt(f"truncate {spelling}")(lambda path=path: os.truncate(path, 0))
    attempt(f"chmod {spelling}")(lambda path=path: os.chmod(path, 0o777))
FLAGS = {
    "rdwr": os.O_RDWR,
    "append": os.O_WRONLY | os.O_APPEND,
    "creat": os.O_WRONLY | os.O_CREAT,
    "trunc": os.O_WRONLY | os.O_TRUNC,
    "read trunc": os.O_RDONLY | os.O_TRUNC,
    "sync": os.O_WRONLY | os.O_SYNC,
    "nofollow": os.O_WRONLY | os.O_NOFOLLOW,
    "noatime": os.O_RDWR | os.O_NONBLOCK,
}
for flag, value in FLAGS.items():
    attempt(f"open with {flag}")(lambda value=value: opened("b.txt", value))


# -- other foreign places -------------------------------------------------------------------------------------------------
PLACES = [
    ".git/config", ".git/hooks/post-commit", "aipass.toml", "plans/p.json", "inbox/a/x.md", "outbox/x.md", ".aipass/ledger.db",
    ".aipass/spool/human/r.json", "new.txt", "bdir/new", "bdir/x", ".envrc", "dir/.vscode/settings.json", "dir/.git/config",
    "dir/deep/.git", ".aipass/agents/b/notes", "c/.trinity/local.json", "b.txt.tmp", ".b.txt.swp", "sedabcdef", "nested/aipass.toml",
    "nested/file", ".aipass/runs/1/exit", ".aipass/locks/b.lock", OUTSIDE, OUTSIDE + ".new", SHARED, "/etc/passwd", "/proc/self/mem",
    f"/proc/{SUPERVISOR}/mem", "/proc/sys/kernel/core_pattern", "/dev/sda", "/dev/mem",
]  # fmt: skip
for place in PLACES:
    attempt(f"create {place}")(lambda place=place: opened(place, os.O_WRONLY | os.O_CREAT))


@attempt("openat a folder")
def _():
    folder = os.open("bdir", os.O_RDONLY)
    handle = os.open("x", os.O_WRONLY, dir_fd=folder)
    os.write(handle, b"!")


@attempt("openat an O_PATH folder")
def _():
    folder = os.open("bdir", os.O_PATH)
    os.close(os.open("x", os.O_WRONLY, dir_fd=folder))


@attempt("a dangling link")
def _():
    os.symlink("../bdir/made", "dir/dangling")
    opened("dir/dangling", os.O_WRONLY | os.O_CREAT)


@attempt("reopen a read descriptor")
def _():
    opened(f"/proc/self/fd/{reading()}", os.O_WRONLY)


@attempt("reopen by /dev/fd")
def _():
    opened(f"/dev/fd/{reading()}", os.O_RDWR)


@attempt("reopen an O_PATH descriptor")
def _():
    opened(f"/proc/self/fd/{os.open('b.txt', os.O_PATH)}", os.O_WRONLY)


@attempt("O_PATH with writing flags")
def _():
    os.write(os.open("b.txt", os.O_PATH | os.O_RDWR | os.O_TRUNC), b"!")


@attempt("chmod an O_PATH descriptor")
def _():
    os.chmod(f"/proc/self/fd/{os.open('b.txt', os.O_PATH)}", 0o777)


# -- names -----------------------------------------------------------------------------------------------------------------
attempt("rename away")(lambda: os.rename("b.txt", "dir/taken"))
attempt("rename over")(lambda: os.rename("dir/mine", "b.txt"))
attempt("rename to a new foreign name")(lambda: os.rename("dir/mine", "bdir/new"))
attempt("rename a foreign folder")(lambda: os.rename("bdir", "dir/bdir"))
attempt("rename own folder away")(lambda: os.rename("dir/sub", "bdir/sub"))
attempt("rename own folder over")(lambda: os.rename("dir/sub", "bempty"))
attempt("rename the parent of own")(lambda: os.rename("dir", "dir2"))
attempt("exchange")(lambda: call(316, AT, b"dir/mine", AT, b"b.txt", 2))
attempt("exchange folders")(lambda: call(316, AT, b"dir/sub", AT, b"bdir", 2))
attempt("whiteout")(lambda: call(316, AT, b"dir/mine", AT, b"dir/white", 4))
attempt("rename temp over")(lambda: (open("a.txt.tmp", "w").close(), os.rename("a.txt.tmp", "b.txt")))
attempt("link over")(lambda: os.link("dir/mine", "bdir/l"))
attempt("link from")(lambda: (os.link("b.txt", "dir/l"), opened("dir/l", os.O_WRONLY)))
attempt("link from by descriptor")(
    lambda: os.link(f"/proc/self/fd/{reading()}", "l2", dst_dir_fd=os.open("dir", 0), follow_symlinks=True)
)
attempt("link from empty path")(lambda: call(265, reading(), b"", AT, b"dir/l3", 0x1000))
attempt("symlink")(lambda: os.symlink("x", "bdir/s"))
attempt("unlink")(lambda: os.unlink("b.txt"))
attempt("unlink hard link of a person")(lambda: os.unlink("bdir/x"))
attempt("rmdir")(lambda: os.rmdir("bempty"))
attempt("mkdir")(lambda: os.mkdir("bdir/new"))
attempt("mkdir at the root")(lambda: os.mkdir("elsewhere"))
attempt("mkfifo")(lambda: os.mkfifo("bdir/fifo"))
attempt("mknod file")(lambda: os.mknod("bdir/node", 0o100644))
attempt("mknod device")(lambda: os.mknod("dir/device", 0o020666, os.makedev(1, 1)))
attempt("mknod block device")(lambda: os.mknod("dir/block", 0o060666, os.makedev(254, 0)))
attempt("bind a socket")(lambda: socket.socket(socket.AF_UNIX).bind("bdir/sock"))
attempt("O_TMPFILE and linkat")(
    lambda: os.link(
        f"/proc/self/fd/{os.open('dir', os.O_TMPFILE | os.O_RDWR)}",
        "tmp",
        dst_dir_fd=os.open("bdir", 0),
        follow_symlinks=True,
    )
)
attempt("remove own folder's parent's file")(lambda: os.unlink("dir/../b.txt"))

# -- marks -----------------------------------------------------------------------------------------------------------------
attempt("fchmod")(lambda: os.fchmod(reading(), 0o777))
attempt("mode of a device")(lambda: os.chmod("/dev/null", 0o777))
attempt("remove a device")(lambda: os.unlink("/dev/full"))
attempt("the home itself by rename")(
    lambda: (os.symlink("../..", "dir/l"), os.rename("dir/l", ".aipass/agents/a"))
)
attempt("the temporary folder itself")(lambda: os.rename(os.environ["TMPDIR"], "dir/taken"))
attempt("a second name in the temporary folder")(
    lambda: os.link("dir/mine", os.environ["TMPDIR"] + "/second")
)
attempt("own folder into the tree")(
    lambda: (os.makedirs(os.environ["TMPDIR"] + "/f"), os.rename(os.environ["TMPDIR"] + "/f", "dir/f"))
)
attempt("a nested sandbox")(lambda: call(444, None, 0, 1))
attempt("slow the supervisor down")(lambda: os.setpriority(os.PRIO_PROCESS, SUPERVISOR, 19))
attempt("slow the user down")(lambda: os.setpriority(os.PRIO_USER, 0, 19))
attempt("move the supervisor to one processor")(lambda: os.sched_setaffinity(SUPERVISOR, {0}))
attempt("fchmodat2")(lambda: call(452, AT, b"b.txt", 0o777, 0))
attempt("chown")(lambda: os.chown("b.txt", os.getuid(), os.getgid()))
attempt("lchown")(lambda: os.lchown("b.txt", os.getuid(), os.getgid()))
attempt("fchown")(lambda: os.fchown(reading(), os.getuid(), os.getgid()))
attempt("fchownat empty path")(
    lambda: call(260, os.open("b.txt", os.O_PATH), b"", os.getuid(), os.getgid(), 0x1000)
)
attempt("utime")(lambda: os.utime("b.txt"))
attempt("utime by descriptor")(lambda: os.utime(reading(), (1, 1)))
attempt("lutime")(lambda: os.utime("b.txt", (1, 1), follow_symlinks=False))
attempt("futimesat")(lambda: call(261, AT, b"b.txt", None))
attempt("utimes")(lambda: call(235, b"b.txt", None))
attempt("utime old")(lambda: call(132, b"b.txt", None))
attempt("utimensat empty path")(lambda: call(280, os.open("b.txt", os.O_PATH), b"", None, 0x1000))
attempt("setxattr")(lambda: os.setxattr("b.txt", "user.a", b"1"))
attempt("lsetxattr")(lambda: os.setxattr("b.txt", "user.a", b"1", follow_symlinks=False))
attempt("fsetxattr")(lambda: os.setxattr(reading(), "user.a", b"1"))
attempt("removexattr")(lambda: os.removexattr("b.txt", "user.keep"))
attempt("fremovexattr")(lambda: os.removexattr(reading(), "user.keep"))
attempt("setxattrat")(lambda: call(463, AT, b"b.txt", 0, b"user.a", b"\0" * 16, 16))
attempt("mark a foreign folder")(lambda: os.chmod("bdir", 0o777))
attempt("mark the root")(lambda: os.chmod(".", 0o777))
attempt("SETFLAGS")(lambda: fcntl.ioctl(reading(), 0x40086602, struct.pack("l", 0x10)))
attempt("SETFLAGS in a wide int")(lambda: call(16, reading(), 0x1234567840086602, struct.pack("l", 0x10)))
attempt("FSSETXATTR")(lambda: fcntl.ioctl(reading(), 0x401C5820, b"\0" * 28))
attempt("SETVERSION")(lambda: fcntl.ioctl(reading(), 0x40087602, struct.pack("l", 7)))

# -- descriptors that only read ---------------------------------------------------------------------------------------------
attempt("write to a read descriptor")(lambda: os.write(reading(), b"!"))
attempt("ftruncate")(lambda: os.ftruncate(reading(), 0))
attempt("fallocate")(lambda: os.posix_fallocate(reading(), 0, 10))
attempt("shared mapping")(lambda: mmap.mmap(reading(), 5, mmap.MAP_SHARED, mmap.PROT_WRITE))
attempt("copy_file_range")(lambda: os.copy_file_range(reading("dir/mine"), reading(), 5))
attempt("sendfile")(lambda: os.sendfile(reading(), reading("dir/mine"), 0, 5))
attempt("F_SETFL")(
    lambda: (lambda f: (fcntl.fcntl(f, fcntl.F_SETFL, os.O_RDWR), os.write(f, b"!")))(reading())
)
attempt("F_SETLEASE")(lambda: fcntl.fcntl(reading(), 1024, 0))

# -- other ways in ---------------------------------------------------------------------------------------------------------
attempt("openat2")(lambda: call(437, AT, b"b.txt", struct.pack("QQQ", os.O_WRONLY, 0, 0), 24))
attempt("io_uring")(lambda: call(425, 8, bytes(120)))
attempt("open_by_handle_at")(lambda: call(304, AT, bytes(32), os.O_WRONLY))
attempt("clone3")(lambda: call(435, bytes(88), 88))
attempt("unshare")(lambda: call(272 if X86 else 97, 0x10000000))
attempt("clone with a namespace")(lambda: call(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0))
attempt("setns")(lambda: call(308, reading("/proc/self/ns/mnt"), 0))
attempt("chroot")(lambda: os.chroot("dir"))
attempt("mount")(lambda: call(165, b"bdir", b"dir/sub", b"", 4096, 0))
attempt("umount")(lambda: call(166, b"/tmp", 0))
attempt("open_tree")(lambda: call(428, AT, b"bdir", 1))
attempt("fsopen")(lambda: call(430, b"tmpfs", 0))
attempt("pivot_root")(lambda: call(155, b"dir", b"dir"))
attempt("acct")(lambda: call(163, b"dir/acct"))
attempt("swapon")(lambda: call(167, b"dir/mine", 0))
attempt("bpf")(lambda: call(321, 0, bytes(64), 64))
attempt("userfaultfd")(lambda: call(323, 1))
attempt("fanotify")(lambda: call(300, 0, 0))
attempt("a call of the future")(lambda: call(900, 1))
attempt("x32")(lambda: call(0x40000000 + 2, b"b.txt", os.O_WRONLY | os.O_TRUNC, 0))
attempt("ptrace the supervisor")(lambda: call(101, 0x4206, SUPERVISOR, 0, 0))


@attempt("write the supervisor's memory")
def _():
    one = ctypes.create_string_buffer(8)
    here = struct.pack("QQ", ctypes.addressof(one), 1)
    try:
        call(311, SUPERVISOR, here, 1, struct.pack("QQ", 0x1000, 1), 1, 0)
    except OSError as exc:
        # EFAULT: nothing is there, and it may be written.
        if exc.errno != errno.EFAULT:
            raise


attempt("take the supervisor's descriptor")(lambda: call(438, os.pidfd_open(SUPERVISOR), 5, 0))
attempt("kill the supervisor")(lambda: os.kill(SUPERVISOR, signal.SIGKILL))
attempt("signal by pidfd")(lambda: signal.pidfd_send_signal(os.pidfd_open(SUPERVISOR), signal.SIGKILL))
attempt("limit the supervisor")(lambda: call(302, SUPERVISOR, 7, struct.pack("QQ", 0, 0), None))
attempt("the supervisor's folder in /proc")(
    lambda: opened(f"/proc/{SUPERVISOR}/cwd{ROOT}/b.txt", os.O_WRONLY)
)
attempt("the supervisor's descriptors")(lambda: opened(f"/proc/{SUPERVISOR}/fd/1", os.O_WRONLY))


# -- what is the machine's, the user's or another program's ----------------------------------------------------------------
def asked_in_words(number, *arguments):
    """A call whose arguments are no pointers, or pointers to nothing: refused before the kernel looks at them."""
    try:
        call(number, *arguments)
    except OSError as exc:
        # What a call answers that was let through and found its arguments wanting.
        if exc.errno in (errno.EFAULT, errno.EINVAL, errno.EBADF, errno.ENOENT, errno.ESRCH):
            return
        raise


MACHINE = {
    "clock_settime": (227, 0, struct.pack("qq", 1, 0)), "settimeofday": (164, struct.pack("qq", 1, 0), None),
    "adjtimex": (159, b"\x01" + bytes(207)), "clock_adjtime": (305, 0, b"\x01" + bytes(207)), "sethostname": (170, b"taken", 5),
    "setdomainname": (171, b"taken", 5), "reboot": (169, 0xFEE1DEAD, 672274793, 0x89ABCDEF, None), "init_module": (175, b"x", 1, b""),
    "finit_module": (313, 0, b"", 0), "delete_module": (176, b"loop", 0), "kexec_load": (246, 0, 0, None, 0), "ioperm": (173, 0, 1, 1),
    "iopl": (172, 3), "quotactl": (179, 0x800002, b"/dev/vda", 0, None), "vhangup": (153,), "swapoff": (168, b"/swapfile"),
    "mount_setattr": (442, AT, b"bdir", 0, bytes(32), 32), "move_mount": (429, AT, b"bdir", AT, b"dir/sub", 0), "fspick": (433, AT, b"/", 0),
    "perf_event_open": (298, bytes(120), 0, -1, -1, 0), "add_key": (248, b"user", b"aipass:taken", b"x", 1, -4),
    "request_key": (249, b"user", b"aipass:taken", None, -4), "keyctl": (250, 0, -4, 1), "mq_open": (240, b"taken", 0o102, 0o600, None),
    "kcmp": (312, SUPERVISOR, SUPERVISOR, 2, 0, 0), "move_pages": (279, SUPERVISOR, 0, None, None, None, 0),
    "migrate_pages": (256, SUPERVISOR, 0, None, None),
}  # fmt: skip
for name, (number, *arguments) in MACHINE.items():
    attempt(f"machine: {name}")(lambda number=number, arguments=arguments: asked_in_words(number, *arguments))


@attempt("answer for the fence by a filter of its own")
def _():
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
    call(317, 1, 8, struct.pack("HxxxxxxQ", 1, ctypes.addressof(allow)))


@attempt("give advice on the supervisor's memory")
def _():
    one = struct.pack("QQ", 0x1000, 4096)
    asked_in_words(440, os.pidfd_open(SUPERVISOR), one, 1, 21, 0)


for kind, family in {"packet": 17, "vsock": 40, "bluetooth": 31, "can": 29, "alg": 38}.items():
    attempt(f"socket: {kind}")(
        lambda family=family: socket.socket(
            family,
            socket.SOCK_RAW if family == 17 else socket.SOCK_SEQPACKET if family == 38 else socket.SOCK_DGRAM,
        ).close()
    )
DEVICES = [
    "/dev/loop-control", "/dev/loop0", "/dev/console", "/dev/kmsg", "/dev/uinput", "/dev/fuse", "/dev/kvm", "/dev/net/tun", "/dev/vcs",
    "/dev/tty0", "/dev/port", "/dev/cpu_dma_latency", "/dev/watchdog", "/dev/rtc0", "/dev/snapshot", "/dev/userfaultfd",
    "/sys/kernel/tracing/uprobe_events", "/sys/kernel/debug/tracing/uprobe_events", "/sys/power/state", "/proc/sysrq-trigger",
    "/proc/sys/kernel/hostname", f"/proc/{SUPERVISOR}/oom_score_adj", f"/proc/{SUPERVISOR}/clear_refs", f"/proc/{SUPERVISOR}/coredump_filter",
    f"/proc/{SUPERVISOR}/task/{SUPERVISOR}/comm", f"/proc/{SUPERVISOR}/uid_map", "/sys/fs/cgroup/cgroup.procs",
]  # fmt: skip
for device in DEVICES:
    attempt(f"device: {device}")(lambda device=device: opened(device, os.O_RDWR | os.O_NONBLOCK))


# -- files of its own folder that others would run -------------------------------------------------------------------------
RUN_BY_OTHERS = [
    "dir/.bashrc", "dir/.envrc", "dir/.vimrc", "dir/.exrc", "dir/.gdbinit", "dir/.lldbinit", "dir/.npmrc", "dir/.yarnrc.yml", "dir/.pnpmfile.cjs",
    "dir/.git", "dir/.gitmodules", "dir/.husky/pre-commit", "dir/.pre-commit-config.yaml", "dir/lefthook.yml", "dir/.lefthook.yml", "dir/.claude/settings.json",
    "dir/.codex/config.toml", "dir/.gemini/settings.json", "dir/.mcp.json", "dir/.cursor/mcp.json", "dir/.vscode/tasks.json", "dir/.idea/runConfigurations/x.xml",
    "dir/.devcontainer/devcontainer.json", "dir/sitecustomize.py", "dir/usercustomize.py", "dir/.cargo/config.toml", "dir/.mise.toml",
    "dir/.tool-versions", "dir/__pycache__/sitecustomize.cpython-311.pyc", "dir/bare/HEAD/config",
]  # fmt: skip
for place in RUN_BY_OTHERS:

    def planted(place=place):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        opened(place, os.O_WRONLY | os.O_CREAT)

    attempt(f"run by others: {place}")(planted)


@attempt("a git folder under another name")
def _():
    os.makedirs("dir/store/objects")
    os.makedirs("dir/store/refs")
    opened("dir/store/HEAD", os.O_WRONLY | os.O_CREAT)
    opened("dir/store/config", os.O_WRONLY | os.O_CREAT)


attempt("bytecode beside another's module")(
    lambda: (
        os.mkdir("bdir/__pycache__"),
        opened("bdir/__pycache__/x.cpython-311.pyc", os.O_WRONLY | os.O_CREAT),
    )
)
attempt("bytecode beside a foreign module by name")(lambda: os.rename("dir/mine", "bdir/x.cpython-311.pyc"))
for leading in ("core", "plans", "inbox/b", ".aipass"):

    def closed(leading=leading):
        before = os.stat(leading).st_mode
        os.chmod(leading, 0)
        os.chmod(leading, before & 0o7777)

    attempt(f"the mode of what leads to another's: {leading}")(closed)


@attempt("a scratch file that moves into the tree")
def _():
    scratch = os.environ["TMPDIR"] + "/moves"
    with open(scratch, "w") as file:
        os.rename(scratch, "bdir/moved")
        file.write("broken into")


@attempt("core file limit")
def _():
    import resource

    call(160, 4, struct.pack("QQ", 1 << 30, 1 << 30))
    if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0):
        raise OSError(errno.EPERM, "answered as if done")


attempt("datagram socket")(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
attempt("raw unix socket")(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_RAW))
attempt("another program's socket")(lambda: socket.socket(socket.AF_UNIX).connect(OUTSIDE + ".sock"))
attempt("another program's abstract socket")(lambda: socket.socket(socket.AF_UNIX).connect("\0" + OUTSIDE))
attempt("the supervisor's socket")(
    lambda: socket.socket(socket.AF_UNIX).connect(f"{ROOT}/.aipass/supervisor-test.sock")
)
attempt("a link to a socket")(
    lambda: (os.symlink(OUTSIDE + ".sock", "dir/sock"), socket.socket(socket.AF_UNIX).connect("dir/sock"))
)
attempt("SET_DUMPABLE hides nothing")(lambda: (L.prctl(4, 0, 0, 0, 0), opened("b.txt", os.O_WRONLY)))
attempt("a link to /proc/self/mem")(
    lambda: (os.symlink("/proc/self", "dir/self"), opened("dir/self/mem", os.O_RDWR))
)
attempt("own memory")(lambda: opened("/proc/self/mem", os.O_RDWR))


@attempt("a thread")
def _():
    found = []

    def work():
        try:
            opened("b.txt", os.O_WRONLY)
        except OSError as exc:
            found.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if found:
        raise found[0]


@attempt("a thread with its own descriptors")
def _():
    mine, foreign = os.open("dir/mine", os.O_RDONLY), reading()
    found = []

    def work():
        call(272 if X86 else 97, 0x400)
        os.dup2(foreign, mine)
        try:
            os.fchmod(mine, 0o777)
        except OSError as exc:
            found.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if found:
        raise found[0]


def child(*words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=150)
    if done.returncode:
        raise OSError(errno.ECHILD, done.stderr[-200:])


@attempt("a fork")
def _():
    pid = os.fork()
    if not pid:
        try:
            opened("b.txt", os.O_WRONLY)
        except OSError as exc:
            os._exit(exc.errno)
        os._exit(0)
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OSError(code, "in a child")


@attempt("a daemon")
def _():
    reader, writer = os.pipe()
    if not os.fork():
        os.setsid()
        if not os.fork():
            try:
                opened("b.txt", os.O_WRONLY)
                os.write(writer, b"0")
            except OSError as exc:
                os.write(writer, str(exc.errno).encode())
        os._exit(0)
    os.wait()
    if code := int(os.read(reader, 10)):
        raise OSError(code, "in a daemon")


@attempt("a core file")
def _():
    os.chdir("core")
    try:
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGSEGV)
            os._exit(0)
        os.waitpid(pid, 0)
        raise OSError(errno.EACCES, "no core")
    finally:
        os.chdir("..")


@attempt("a passed descriptor")
def _():
    one, other = socket.socketpair()
    socket.send_fds(one, [b"x"], [reading()])
    _, handles, *_ = socket.recv_fds(other, 1, 1)
    opened(f"/proc/self/fd/{handles[0]}", os.O_WRONLY)


@attempt("an anonymous file becomes foreign")
def _():
    handle = os.memfd_create("x")
    os.link(f"/proc/self/fd/{handle}", "mem", dst_dir_fd=os.open("bdir", 0), follow_symlinks=True)


@attempt("set-uid program")
def _():
    child("su", "-c", f"echo x > {ROOT}/b.txt")


TOOLS = {
    "sh >": "echo x > b.txt", "sh >>": "echo x >> b.txt", "tee": "echo x | tee b.txt", "cp": "cp dir/mine b.txt", "cp -f": "cp -f dir/mine b.txt",
    "mv": "mv dir/mine b.txt", "install": "install dir/mine b.txt", "ln -f": "ln -f dir/mine b.txt", "ln -sf": "ln -sf dir/mine b.txt",
    "rm": "rm b.txt", "rm -rf": "rm -rf bdir", "sed -i": "sed -i s/foreign/x/ b.txt", "dd": "dd if=dir/mine of=b.txt conv=notrunc status=none",
    "touch": "touch b.txt", "truncate": "truncate -s 0 b.txt", "chmod": "chmod 777 b.txt", "tar": "tar cf - -C dir mine | tar xf - -C bdir",
    "perl -i": "perl -pi -e s/foreign/x/ b.txt", "patch": "printf '1c\\nx\\n.\\n' | patch -e b.txt", "git config": "git config --file .git/config a.b c",
    "shred": "shred -n1 b.txt", "mkfifo": "mkfifo bdir/pipe", "find -delete": "find bdir -type f -delete | grep -q . || test ! -e bdir/x",
    "vim": "vim -e -s -c '%s/foreign/x/' -c wq! b.txt", "ed": "printf '1c\\nx\\n.\\nw\\nq\\n' | ed -s b.txt", "rsync": "rsync dir/mine b.txt",
    "static": "busybox sh -c 'echo x > b.txt'", "gdb": "gdb -batch -ex 'shell echo x > b.txt' -ex 'python open(\"b.txt\",\"w\").write(\"x\")'",
    "node": "node -e \"require('fs').writeFileSync('b.txt','x')\"", "node stream": "node -e \"require('fs').createWriteStream('b.txt').on('error',()=>process.exit(1)).end('x')\"",
}  # fmt: skip
for tool, script in TOOLS.items():
    attempt(f"tool: {tool}")(lambda script=script: child("sh", "-c", script))


def told():
    try:
        with open(os.environ["AIPASS_DENIED"]) as file:
            return file.read()
    except OSError:
        return ""


def outcome_of(function):
    try:
        function()
    except OSError as exc:
        return errno.errorcode.get(exc.errno, str(exc.errno))
    except (ValueError, subprocess.TimeoutExpired) as exc:
        return repr(exc)
    return "done"


def apart(function):
    """The same in a process of its own: without a fence a try may wait for ever, or change who tries the next."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        try:
            os.write(writer, outcome_of(function).encode())
        finally:
            os._exit(0)
    os.close(writer)
    told = os.read(reader, 1000).decode() if select.select([reader], [], [], 5)[0] else "waits"
    os.close(reader)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.waitpid(pid, 0)
    return told or "ended"


def main():
    results = {}
    for name, function in TRIES.items():
        before = len(told())
        outcome = apart(function) if APART else outcome_of(function)
        results[name] = [
            outcome,
            [line.split("`")[1] for line in told()[before:].splitlines() if "`" in line],
        ]
    print(json.dumps(results))


main()
