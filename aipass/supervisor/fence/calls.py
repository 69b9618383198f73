"""The table of system calls: how the fence treats each one, and why. Data; `program.py` compiles the filter from it.

Some calls can create, write, replace, move, link, remove or truncate a path, or change its mode, owner,
times, attributes or flags, by name or by descriptor. Each of them is performed by the supervisor, or refused
with an error that makes programs fall back, or needs a descriptor that only a performed call can return. A
call without a row here came with a later kernel; it is ENOSYS for an agent. Numbers are those of
linux/unistd.h.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from enum import Enum


class Treatment(Enum):
    """How the fence treats a call."""

    #: The supervisor decides, and performs the call in place of the caller (seccomp user notification).
    CARRIED = "performed by the supervisor"
    #: The filter returns an error; the supervisor is not asked.
    REFUSED = "refused"
    #: The kernel performs the call: it changes no file, or needs a descriptor that only a performed call returns.
    THROUGH = "let through"


@dataclass(frozen=True, slots=True)
class Bits:
    """True if any of `bits` is set in the low half of an argument: the kernel ignores the high half of an int."""

    argument: int
    bits: int


@dataclass(frozen=True, slots=True)
class Among:
    """True if the low half of an argument, masked and shifted, is one of `values`."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    shift: int = 0


@dataclass(frozen=True, slots=True)
class NotZero:
    """True if an argument is not zero; tests both halves, for pointers."""

    argument: int


Test = Bits | Among | NotZero


@dataclass(frozen=True, slots=True)
class CallRule:
    """The treatment of a call if all `tests` are true. `error` is the errno of a refusal; 0 pretends success."""

    treatment: Treatment
    tests: tuple[Test, ...] = ()
    error: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A system call: its numbers (None where an architecture has none), its rules in order, and the reason.

    A call that no rule matches is let through.
    """

    name: str
    x86_64: int | None
    aarch64: int | None
    rules: tuple[CallRule, ...]
    why: str

    def number(self, machine: str) -> int | None:
        """The number of the call on this architecture; None where it does not exist there."""
        return self.x86_64 if machine == "x86_64" else self.aarch64


O_PATH, WRITING = os.O_PATH, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CARRIED = (CallRule(Treatment.CARRIED),)


def _open(flags: int) -> tuple[CallRule, ...]:
    # An O_PATH descriptor can neither read nor write, and the kernel ignores the other access flags.
    return (
        CallRule(Treatment.THROUGH, (Bits(flags, O_PATH),)),
        CallRule(Treatment.CARRIED, (Bits(flags, WRITING),)),
    )


def _refused(error: int, *tests: Test) -> tuple[CallRule, ...]:
    return (CallRule(Treatment.REFUSED, tests, error),)


def _node(mode: int) -> tuple[CallRule, ...]:
    # S_IFCHR and S_IFBLK: root could make a device node and write the disk through it.
    return (CallRule(Treatment.REFUSED, (Among(mode, (0x2000, 0x6000), 0xF000),), errno.EPERM), *_CARRIED)


def _other(process: int) -> tuple[CallRule, ...]:
    return (CallRule(Treatment.CARRIED, (NotZero(process),)),)


# All CLONE_NEW* flags of linux/sched.h: mounts, cgroup, UTS, IPC, user, pid, network.
NAMESPACES = 0x7E020000
#: ioctl types of files and filesystems, userfaultfd, NVMe and SCSI devices.
_FILE_CONTROLS = tuple(b"fvX\x94\xf5ro\xaaN\x22")
#: BLKROSET, BLKRRPART, BLKPG: they change a disk through a read-only descriptor.
_DISK_CONTROLS = (0x125D, 0x125F, 0x1269)
#: Requests of those types that only read, or clone into a descriptor that is already open for writing.
_HARMLESS_CONTROLS = (0x80086601, 0x80087601, 0x801C581F, 0xC020660B, 0x40049409, 0x4020940D)
# They type into a terminal: the user's shell would run the text.
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
F_SETLEASE, AF_UNIX, SOCK_DGRAM, SOCK_RAW = 1024, 1, 2, 3
# linux/resource.h and linux/prctl.h.
RLIMIT_CORE, RLIMIT_RTTIME, PR_SET_MM, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 4, 15, 35, 24, 28

_UMASK = "the fast path remembers each caller's umask; this call is let through"
_NAMED = "changes what a name refers to"
_MARKS = "changes mode, owner, times or attributes, also by descriptor; the supervisor acts on its copy of the descriptor"
_LATER = "a newer form; programs fall back to the older one, which the supervisor performs"
_MOUNTS = "could change what a path refers to: mounts, namespaces, root folder"
_OTHERS = "accesses another process"
_PRIORITY = "allowed for the own process only: a run must not slow down the supervisor"
_IDENTITY = "changes the identity of the process: the supervisor reads it with every later call; this call is let through"
_SANDBOX = (
    "the supervisor would perform what a nested sandbox forbids; programs see that Landlock is not available"
)
_ACCESS = "asks whether a path is writable; the answer must match what a write would get"
_SYSV = "a run must not change objects of other programs"
_KEYS = "all programs of the user share one keyring; programs continue as on a kernel without keyrings"
_MACHINE = "changes the machine; requires root"
_DATAGRAM = "each datagram can be addressed to another program's socket; programs fall back to streams"

CALLS: tuple[Call, ...] = (
    Call("umask", 95, 166, _CARRIED, _UMASK),
    Call("open", 2, None, _open(1), "opens for writing, creates, truncates"),
    Call("openat", 257, 56, _open(2), "opens for writing, creates, truncates"),
    Call("creat", 85, None, _CARRIED, "creates or truncates"),
    Call("access", 21, None, (CallRule(Treatment.CARRIED, (Bits(1, os.W_OK),)),), _ACCESS),
    Call("faccessat", 269, 48, (CallRule(Treatment.CARRIED, (Bits(2, os.W_OK),)),), _ACCESS),
    Call("faccessat2", 439, 439, (CallRule(Treatment.CARRIED, (Bits(2, os.W_OK),)),), _ACCESS),
    Call("truncate", 76, 45, _CARRIED, "truncates"),
    Call("rename", 82, None, _CARRIED, _NAMED),
    Call("renameat", 264, 38, _CARRIED, _NAMED),
    # RENAME_WHITEOUT creates a device node, also for an ordinary user.
    Call("renameat2", 316, 276, (*_refused(errno.EINVAL, Bits(4, 4)), *_CARRIED), _NAMED),
    Call("link", 86, None, _CARRIED, _NAMED),
    Call("linkat", 265, 37, _CARRIED, _NAMED),
    Call("symlink", 88, None, _CARRIED, _NAMED),
    Call("symlinkat", 266, 36, _CARRIED, _NAMED),
    Call("mkdir", 83, None, _CARRIED, _NAMED),
    Call("mkdirat", 258, 34, _CARRIED, _NAMED),
    Call("mknod", 133, None, _node(1), "pipes, sockets and regular files only; devices are refused"),
    Call("mknodat", 259, 33, _node(2), "pipes, sockets and regular files only; devices are refused"),
    Call("unlink", 87, None, _CARRIED, _NAMED),
    Call("unlinkat", 263, 35, _CARRIED, _NAMED),
    Call("rmdir", 84, None, _CARRIED, _NAMED),
    Call("chmod", 90, None, _CARRIED, _MARKS),
    Call("fchmod", 91, 52, _CARRIED, _MARKS),
    Call("fchmodat", 268, 53, _CARRIED, _MARKS),
    Call("chown", 92, None, _CARRIED, _MARKS),
    Call("lchown", 94, None, _CARRIED, _MARKS),
    Call("fchown", 93, 55, _CARRIED, _MARKS),
    Call("fchownat", 260, 54, _CARRIED, _MARKS),
    Call("utime", 132, None, _CARRIED, _MARKS),
    Call("utimes", 235, None, _CARRIED, _MARKS),
    Call("futimesat", 261, None, _CARRIED, _MARKS),
    Call("utimensat", 280, 88, _CARRIED, _MARKS),
    Call("setxattr", 188, 5, _CARRIED, _MARKS),
    Call("lsetxattr", 189, 6, _CARRIED, _MARKS),
    Call("fsetxattr", 190, 7, _CARRIED, _MARKS),
    Call("removexattr", 197, 14, _CARRIED, _MARKS),
    Call("lremovexattr", 198, 15, _CARRIED, _MARKS),
    Call("fremovexattr", 199, 16, _CARRIED, _MARKS),
    Call("connect", 42, 203, _CARRIED, "another program could write on behalf of the run"),
    Call("bind", 49, 200, _CARRIED, "the name of a UNIX socket is a file"),
    Call("shmget", 29, 194, _CARRIED, _SYSV),
    Call("shmat", 30, 196, _CARRIED, _SYSV),
    Call("shmctl", 31, 195, _CARRIED, _SYSV),
    Call("semget", 64, 190, _CARRIED, _SYSV),
    Call("semop", 65, 193, _CARRIED, _SYSV),
    Call("semtimedop", 220, 192, _CARRIED, _SYSV),
    Call("semctl", 66, 191, _CARRIED, _SYSV),
    Call("msgget", 68, 186, _CARRIED, _SYSV),
    Call("msgsnd", 69, 189, _CARRIED, _SYSV),
    Call("msgrcv", 70, 188, _CARRIED, _SYSV),
    Call("msgctl", 71, 187, _CARRIED, _SYSV),
    Call("sched_setscheduler", 144, 119, _other(0), _PRIORITY),
    Call("sched_setparam", 142, 118, _other(0), _PRIORITY),
    Call("sched_setattr", 314, 274, _other(0), _PRIORITY),
    Call("sched_setaffinity", 203, 122, _other(0), _PRIORITY),
    Call("setpriority", 141, 140, (*_refused(errno.EPERM, Among(0, (2,))), *_other(1)), _PRIORITY),
    Call("ioprio_set", 251, 30, (*_refused(errno.EPERM, Among(0, (3,))), *_other(1)), _PRIORITY),
    # -- refused -------------------------------------------------------------------------------------------------------
    Call("openat2", 437, 437, _refused(errno.ENOSYS), _LATER),
    Call(
        "clone3",
        435,
        435,
        _refused(errno.ENOSYS),
        "its flags are in memory, which the filter cannot read; programs fall back to clone",
    ),
    Call(
        "io_uring_setup",
        425,
        425,
        _refused(errno.ENOSYS),
        "its operations bypass the filter; programs fall back",
    ),
    Call(
        "io_uring_enter",
        426,
        426,
        _refused(errno.ENOSYS),
        "its operations bypass the filter; programs fall back",
    ),
    Call("io_uring_register", 427, 427, _refused(errno.ENOSYS), "its operations bypass the filter"),
    Call("fchmodat2", 452, 452, _refused(errno.ENOSYS), _LATER),
    Call("setxattrat", 463, 463, _refused(errno.ENOSYS), _LATER),
    Call("removexattrat", 466, 466, _refused(errno.ENOSYS), _LATER),
    Call("file_setattr", 469, 469, _refused(errno.ENOSYS), _LATER),
    Call("clone", 56, 220, _refused(errno.EPERM, Bits(0, NAMESPACES)), _MOUNTS),
    Call("unshare", 272, 97, _refused(errno.EPERM, Bits(0, NAMESPACES | 0x80)), _MOUNTS),
    Call("setns", 308, 268, _refused(errno.EPERM), _MOUNTS),
    Call("chroot", 161, 51, _refused(errno.EPERM), _MOUNTS),
    Call("pivot_root", 155, 41, _refused(errno.EPERM), _MOUNTS),
    Call("mount", 165, 40, _refused(errno.EPERM), _MOUNTS),
    Call("umount2", 166, 39, _refused(errno.EPERM), _MOUNTS),
    Call("open_tree", 428, 428, _refused(errno.EPERM), _MOUNTS),
    Call("move_mount", 429, 429, _refused(errno.EPERM), _MOUNTS),
    Call("fsopen", 430, 430, _refused(errno.EPERM), _MOUNTS),
    Call("fsconfig", 431, 431, _refused(errno.EPERM), _MOUNTS),
    Call("fsmount", 432, 432, _refused(errno.EPERM), _MOUNTS),
    Call("fspick", 433, 433, _refused(errno.EPERM), _MOUNTS),
    Call("mount_setattr", 442, 442, _refused(errno.EPERM), _MOUNTS),
    Call("open_tree_attr", 467, 467, _refused(errno.EPERM), _MOUNTS),
    Call("open_by_handle_at", 304, 265, _refused(errno.EPERM), "opens without a path; requires root"),
    Call(
        "ioctl",
        16,
        29,
        (
            CallRule(Treatment.THROUGH, (Among(1, _HARMLESS_CONTROLS),)),
            *_refused(errno.ENOTTY, Among(1, _FILE_CONTROLS, 0xFF00, 8)),
            *_refused(errno.EPERM, Among(1, (TIOCSTI, TIOCLINUX, *_DISK_CONTROLS))),
        ),
        "changes flags and attributes of files through read-only descriptors; types into other programs' terminals",
    ),
    Call(
        "fcntl",
        72,
        25,
        _refused(errno.EINVAL, Among(1, (F_SETLEASE,))),
        "a lease would block the user's own programs",
    ),
    Call(
        "socket",
        41,
        198,
        _refused(errno.EACCES, Among(0, (AF_UNIX,)), Among(1, (SOCK_DGRAM, SOCK_RAW), 15)),
        _DATAGRAM,
    ),
    Call(
        "socketpair",
        53,
        199,
        _refused(errno.EACCES, Among(0, (AF_UNIX,)), Among(1, (SOCK_DGRAM, SOCK_RAW), 15)),
        _DATAGRAM,
    ),
    Call(
        "prlimit64",
        302,
        261,
        (
            *_refused(errno.EPERM, NotZero(2), NotZero(0)),
            *_refused(0, NotZero(2), Among(1, (RLIMIT_CORE,))),
            *_refused(errno.EPERM, NotZero(2), Among(1, (RLIMIT_RTTIME,))),
        ),
        "changes limits of other processes, the size of core files (written by the kernel), or the limit that marks a run's processes",
    ),
    Call(
        "setrlimit",
        160,
        164,
        (*_refused(0, Among(0, (RLIMIT_CORE,))), *_refused(errno.EPERM, Among(0, (RLIMIT_RTTIME,)))),
        "core files stay off; the limit that marks a run's processes must not change",
    ),
    Call(
        "prctl",
        157,
        167,
        (
            *_refused(0, Among(0, (4,))),
            *_refused(errno.EPERM, Among(0, (PR_SET_MM,))),
            CallRule(Treatment.CARRIED, (Among(0, (PR_CAPBSET_DROP, PR_SET_SECUREBITS)),)),
        ),
        "the supervisor must be able to read the path of a call from the caller's memory; capabilities after exec",
    ),
    Call("setuid", 105, 146, _CARRIED, _IDENTITY),
    Call("setgid", 106, 144, _CARRIED, _IDENTITY),
    Call("setreuid", 113, 145, _CARRIED, _IDENTITY),
    Call("setregid", 114, 143, _CARRIED, _IDENTITY),
    Call("setgroups", 116, 159, _CARRIED, _IDENTITY),
    Call("setresuid", 117, 147, _CARRIED, _IDENTITY),
    Call("setresgid", 119, 149, _CARRIED, _IDENTITY),
    Call("setfsuid", 122, 151, _CARRIED, _IDENTITY),
    Call("setfsgid", 123, 152, _CARRIED, _IDENTITY),
    Call("capset", 126, 91, _CARRIED, _IDENTITY),
    Call("process_vm_writev", 311, 271, _refused(errno.EPERM), _OTHERS),
    Call("pidfd_getfd", 438, 438, _refused(errno.EPERM), _OTHERS),
    Call(
        "userfaultfd", 323, 282, _refused(errno.EPERM), "could block the supervisor in the middle of a read"
    ),
    Call("bpf", 321, 280, _refused(errno.EPERM), _MACHINE),
    Call("fanotify_init", 300, 262, _refused(errno.EPERM), "could block other programs' opens"),
    Call(
        "mq_unlink",
        241,
        181,
        _refused(errno.ENOSYS),
        "could change another program's queue; programs continue as on a kernel without queues",
    ),
    Call(
        "mq_open",
        240,
        180,
        _refused(errno.ENOSYS),
        "could change another program's queue; programs continue as on a kernel without queues",
    ),
    Call(
        "perf_event_open",
        298,
        241,
        _refused(errno.EACCES),
        "signals and traces other processes, and writes to their memory",
    ),
    Call("add_key", 248, 217, _refused(errno.ENOSYS), _KEYS),
    Call("request_key", 249, 218, _refused(errno.ENOSYS), _KEYS),
    Call("keyctl", 250, 219, _refused(errno.ENOSYS), _KEYS),
    Call("clock_adjtime", 305, 266, _refused(errno.EPERM, Among(0, (0,))), _MACHINE),
    Call("adjtimex", 159, 171, _refused(errno.EPERM), _MACHINE),
    Call("syslog", 103, 116, _refused(errno.EPERM, Among(0, (0, 1, 2, 4, 5, 6, 7, 8))), _MACHINE),
    Call("vhangup", 153, 58, _refused(errno.EPERM), _MACHINE),
    Call("landlock_create_ruleset", 444, 444, _refused(errno.EOPNOTSUPP), _SANDBOX),
    Call("landlock_add_rule", 445, 445, _refused(errno.EOPNOTSUPP), _SANDBOX),
    Call("landlock_restrict_self", 446, 446, _refused(errno.EOPNOTSUPP), _SANDBOX),
    Call("sethostname", 170, 161, _refused(errno.EPERM), _MACHINE),
    Call("setdomainname", 171, 162, _refused(errno.EPERM), _MACHINE),
    Call("settimeofday", 164, 170, _refused(errno.EPERM), _MACHINE),
    Call("clock_settime", 227, 112, _refused(errno.EPERM), _MACHINE),
    Call("swapon", 167, 224, _refused(errno.EPERM), _MACHINE),
    Call("swapoff", 168, 225, _refused(errno.EPERM), _MACHINE),
    Call("acct", 163, 89, _refused(errno.EPERM), "the kernel would write a file"),
    Call("quotactl", 179, 60, _refused(errno.EPERM), _MACHINE),
    Call("quotactl_fd", 443, 443, _refused(errno.EPERM), _MACHINE),
    Call("kexec_load", 246, 104, _refused(errno.EPERM), _MACHINE),
    Call("kexec_file_load", 320, 294, _refused(errno.EPERM), _MACHINE),
    Call("init_module", 175, 105, _refused(errno.EPERM), _MACHINE),
    Call("finit_module", 313, 273, _refused(errno.EPERM), _MACHINE),
    Call("delete_module", 176, 106, _refused(errno.EPERM), _MACHINE),
    Call("reboot", 169, 142, _refused(errno.EPERM), _MACHINE),
    Call("iopl", 172, None, _refused(errno.EPERM), _MACHINE),
    Call("ioperm", 173, None, _refused(errno.EPERM), _MACHINE),
)

#: Further rules for a machine without wall (Landlock), which otherwise blocks these: PTRACE_ATTACH, PTRACE_SEIZE.
WITHOUT_WALL: tuple[Call, ...] = (
    Call("ptrace", 101, 117, _refused(errno.EPERM, Among(0, (16, 0x4206))), _OTHERS),
)

#: Calls that are let through without any rule, by reason. Kept complete by a test, so that every known call has a decision.
LET_THROUGH: dict[str, str] = {
    "need a descriptor that is open for writing, which only a performed call returns": """
        write pwrite64 writev pwritev pwritev2 sendfile splice tee vmsplice copy_file_range io_setup io_destroy
        io_getevents io_pgetevents io_submit io_cancel ftruncate fallocate mmap mprotect pkey_mprotect mremap munmap
        remap_file_pages msync sync_file_range sync_file_range2 fsync fdatasync sync syncfs""",
    "only read": """
        read pread64 readv preadv preadv2 readahead stat fstat lstat newfstatat fstatat statx statfs fstatfs ustat sysfs
        readlink readlinkat getdents getdents64 getcwd getxattr lgetxattr fgetxattr
        getxattrat listxattr llistxattr flistxattr listxattrat file_getattr lookup_dcookie lseek cachestat fadvise64
        name_to_handle_at open_tree_attr_get statmount listmount poll ppoll select pselect6 epoll_create epoll_create1
        epoll_ctl epoll_wait epoll_pwait epoll_pwait2 epoll_ctl_old epoll_wait_old inotify_init inotify_init1
        inotify_add_watch inotify_rm_watch fanotify_mark mincore process_vm_readv kcmp""",
    "use descriptors, pipes and sockets of the run itself": """
        close close_range dup dup2 dup3 pipe pipe2 eventfd eventfd2 signalfd signalfd4 memfd_create memfd_secret
        timerfd_create timerfd_settime timerfd_gettime accept accept4 listen shutdown getsockname getpeername getsockopt
        setsockopt sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg flock""",
    "start programs, which inherit filter, wall and no_new_privs": """
        fork vfork execve execveat exit exit_group wait4 waitid pidfd_open""",
    "the wall limits them to the run's own processes and files": """
        kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal ptrace move_pages migrate_pages
        mq_timedsend mq_timedreceive mq_notify mq_getsetattr process_madvise process_mrelease""",
    "can only remove rights": "seccomp",
    "change state that the supervisor reads again with each performed call": "chdir fchdir",
    "releases what only a performed call returns": "shmdt",
    "affect only the own process: memory, threads, time, limits and identity": """
        brk madvise mlock mlock2 munlock mlockall munlockall mseal map_shadow_stack pkey_alloc pkey_free membarrier mbind
        set_mempolicy get_mempolicy set_mempolicy_home_node rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending
        rt_sigtimedwait rt_sigsuspend sigaltstack pause nanosleep clock_nanosleep clock_gettime clock_getres
        gettimeofday time times getitimer setitimer alarm timer_create timer_settime
        timer_gettime timer_getoverrun timer_delete sched_yield sched_getparam
        sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval
        sched_getaffinity sched_getattr getpriority ioprio_get futex futex_waitv
        futex_wake futex_wait futex_requeue set_robust_list get_robust_list set_tid_address rseq restart_syscall getpid
        getppid gettid getuid geteuid getgid getegid getgroups getresuid getresgid setpgid getpgid getpgrp setsid getsid
        capget getrlimit getrusage sysinfo uname getcpu getrandom arch_prctl modify_ldt set_thread_area get_thread_area
        personality lsm_get_self_attr lsm_set_self_attr
        lsm_list_modules""",
    "removed from the kernel; only the number is left": """
        uselib _sysctl create_module get_kernel_syms query_module nfsservctl getpmsg putpmsg afs_syscall tuxcall security
        vserver arch_specific_syscall""",
}

#: The highest number in this table. A higher one came with a later kernel, and is refused because its effect is unknown.
LAST_KNOWN = 469


def explain(call: Call) -> str:
    """The treatment of a call as a phrase, for the docs."""
    parts = []
    for rule in call.rules:
        what = rule.treatment.value
        if rule.treatment is Treatment.REFUSED:
            what = f"answered {errno.errorcode[rule.error]}" if rule.error else "answered as if done"
        parts.append(what + (" when " + " and ".join(map(_words, rule.tests)) if rule.tests else ""))
    if call.rules[-1].tests:
        parts.append("else let through")
    return "; ".join(parts)


def _words(test: Test) -> str:
    match test:
        case Bits():
            return f"argument {test.argument} has {test.bits:#x}"
        case NotZero():
            return f"argument {test.argument} is not 0"
        case Among():
            of = f" (>> {test.shift} & {test.mask >> test.shift:#x})" if test.mask != 0xFFFFFFFF else ""
            return f"argument {test.argument}{of} is {', '.join(map(hex, test.values))}"


def data(number: int, arch: int, arguments: tuple[int, ...] = ()) -> bytes:
    """The struct seccomp_data that a filter receives for a call. For tests and for the docs."""
    padded = [value & 0xFFFFFFFFFFFFFFFF for value in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    return struct.pack("=iIQ6Q", number, arch, 0, *padded)
