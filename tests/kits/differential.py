"""The same few hundred calls, wherever it is run: prints what each returned and what the folder looked like then.

`differential.py FOLDER SHARE`: of the calls with a name one in SHARE is tried; of all others each.

Run once behind the fence, in a folder of the agent's own, and once without: the two must not differ. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import struct
import sys
import time
import zlib

L = ctypes.CDLL(None, use_errno=True)
L.syscall.restype = ctypes.c_long
AT = -100
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
NAMES = [
    "file", "new", "dir", "full", "link", "dirlink", "dangling", "loop", "fifo", "file/", "new/", "dir/", "link/", "dirlink/", "dangling/",
    "", ".", "..", "./file", "dir/.", "dir/..", "full/inner", "file/x", "missing/x", "dirlink/x", "n" * 255, "n" * 256, "p/" * 2100, "dir//x", "/dev/null/x",
]  # fmt: skip


def call(number, *arguments):
    result = L.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *arguments)])
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def tree():
    os.makedirs("dir", 0o755)
    os.makedirs("full", 0o755)
    for name in ("file", "full/inner"):
        with open(name, "w") as f:
            f.write("content")
        os.chmod(name, 0o640)
    os.symlink("file", "link")
    os.symlink("dir", "dirlink")
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    os.mkfifo("fifo")
    for name in ("file", "full/inner", "dir", "full"):
        os.utime(name, (1000, 1000))


def listing():
    found = []
    for top, folders, files in os.walk("."):
        for name in sorted(folders + files):
            path = os.path.join(top, name)
            try:
                s = os.lstat(path)
            except PermissionError:
                continue
            size = s.st_size if stat.S_ISREG(s.st_mode) else 0
            old = int(s.st_mtime) if s.st_mtime < 10**8 else "now"
            attributes = sorted(os.listxattr(path, follow_symlinks=False))
            found.append(
                (
                    path,
                    oct(s.st_mode),
                    s.st_nlink if not stat.S_ISDIR(s.st_mode) else 0,
                    size,
                    old,
                    attributes,
                )
            )
    return found


def opened(path, flags, mode=0o666, **more):
    handle = os.open(path, flags | os.O_NONBLOCK, mode, **more)
    try:
        import fcntl

        # How it was looked up is not part of what was opened.
        got = (
            fcntl.fcntl(handle, fcntl.F_GETFL) & ~os.O_NONBLOCK & ~os.O_NOFOLLOW & 0o17777777,
            fcntl.fcntl(handle, fcntl.F_GETFD),
        )
        if flags & 3 and stat.S_ISREG(os.fstat(handle).st_mode):
            os.write(handle, b"+")
        return got
    finally:
        os.close(handle)


def raw_open(path, flags, mode=0o666):
    handle = call(257, AT, path, flags, mode)
    os.close(handle)
    return "opened"


def cases():
    flags = {
        "w": os.O_WRONLY, "rw": os.O_RDWR, "wc": os.O_WRONLY | os.O_CREAT, "wcx": os.O_WRONLY | os.O_CREAT | os.O_EXCL, "wt": os.O_WRONLY | os.O_TRUNC,
        "wa": os.O_WRONLY | os.O_APPEND, "rc": os.O_RDONLY | os.O_CREAT, "rt": os.O_RDONLY | os.O_TRUNC, "wn": os.O_WRONLY | os.O_NOFOLLOW,
        "wcn": os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, "wd": os.O_WRONLY | os.O_DIRECTORY, "cd": os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY,
        "tmp": os.O_TMPFILE | os.O_RDWR, "tmpr": os.O_TMPFILE, "ws": os.O_WRONLY | os.O_SYNC | os.O_CREAT, "acc3": 3, "path": os.O_PATH | os.O_RDWR | os.O_CREAT,
    }  # fmt: skip
    for name in NAMES:
        for short, value in flags.items():
            yield f"open {short} {name[:20]}", lambda name=name, value=value: opened(name, value)
        yield f"mkdir {name[:20]}", lambda name=name: os.mkdir(name, 0o3777)
        yield f"mkfifo {name[:20]}", lambda name=name: os.mkfifo(name)
        yield f"mknod {name[:20]}", lambda name=name: os.mknod(name, 0o100600)
        yield f"symlink {name[:20]}", lambda name=name: os.symlink("to", name)
        yield f"unlink {name[:20]}", lambda name=name: os.unlink(name)
        yield f"rmdir {name[:20]}", lambda name=name: os.rmdir(name)
        yield f"truncate {name[:20]}", lambda name=name: os.truncate(name, 3)
        yield f"chmod {name[:20]}", lambda name=name: os.chmod(name, 0o700)
        yield f"chown {name[:20]}", lambda name=name: os.chown(name, -1, -1)
        yield f"lchown {name[:20]}", lambda name=name: os.lchown(name, os.getuid(), os.getgid())
        yield f"utime {name[:20]}", lambda name=name: os.utime(name, (5, 6))
        yield f"lutime {name[:20]}", lambda name=name: os.utime(name, (5, 6), follow_symlinks=False)
        yield f"setxattr {name[:20]}", lambda name=name: os.setxattr(name, "user.x", b"v")
        yield (
            f"lsetxattr {name[:20]}",
            lambda name=name: os.setxattr(name, "user.x", b"v", follow_symlinks=False),
        )
        yield f"removexattr {name[:20]}", lambda name=name: os.removexattr(name, "user.none")
    ends = [
        "file",
        "new",
        "dir",
        "full",
        "link",
        "dirlink",
        "dangling",
        "fifo",
        "file/",
        "new/",
        "dir/",
        "dirlink/",
        ".",
        "..",
        "",
        "full/x",
        "dir/sub",
        "missing/x",
    ]
    for old in ends:
        for new in ends:
            yield f"rename {old} {new}", lambda old=old, new=new: os.rename(old, new)
            yield f"link {old} {new}", lambda old=old, new=new: os.link(old, new)
            yield (
                f"linkat {old} {new}",
                lambda old=old, new=new: call(265, AT, old.encode(), AT, new.encode(), 0x400),
            )
    for old, new in (
        ("file", "full/inner"),
        ("file", "dir"),
        ("dir", "full"),
        ("file", "new"),
        ("new", "file"),
        ("file", "file"),
        ("dir", "dir/sub"),
        ("dir/", "file"),
    ):
        for value in (1, 2, 3, 8, 1 << 32):  # a whiteout, 4, is refused
            yield (
                f"renameat2 {old} {new} {value}",
                lambda o=old, n=new, v=value: call(316, AT, o.encode(), AT, n.encode(), v),
            )
    for length in (-1, 0, 100, 1 << 62):
        yield f"truncate to {length}", lambda length=length: call(76, b"file", length)
    for mode in (0, 0o7777, 0o170777, -1):
        yield f"chmod to {mode:o}", lambda mode=mode: call(90, b"file", mode)
    for times in (
        (1, 2, 3, 4),
        (0, NOW, 0, OMIT),
        (0, OMIT, 0, OMIT),
        (0, OMIT, 7, 0),
        (1, 10**9, 1, 1),
        (1, -1, 1, 1),
        None,
    ):
        packed = None if times is None else struct.pack("4q", *times)
        yield f"utimensat {times}", lambda packed=packed: call(280, AT, b"file", packed, 0)
        yield f"utimensat link {times}", lambda packed=packed: call(280, AT, b"link", packed, 0x100)
        yield (
            f"futimens {times}",
            lambda packed=packed: call(280, os.open("file", os.O_RDONLY), None, packed, 0),
        )
    yield "utimensat flags", lambda: call(280, AT, b"file", None, 0x777)
    yield "utimes bad", lambda: call(235, b"file", struct.pack("4q", 1, 10**6, 1, 0))
    yield "utimes", lambda: call(235, b"file", struct.pack("4q", 1, 2, 3, 4))
    yield "utime", lambda: call(132, b"file", struct.pack("2q", 1, 2))
    yield "futimesat", lambda: call(261, AT, b"file", None)
    for name in ("user.x", "user.", "", "x", "system.x", "user." + "y" * 300, "security.x.y"):
        for value in (b"", b"v" * 100, b"v" * 70000):
            yield (
                f"setxattr {name[:12]} {len(value)}",
                lambda name=name, value=value: os.setxattr("file", name, value),
            )
    for value in (1, 2, 3, 4):
        yield f"setxattr flags {value}", lambda value=value: call(188, b"file", b"user.x", b"v", 1, value)
    yield (
        "setxattr twice",
        lambda: (os.setxattr("file", "user.x", b"1"), os.setxattr("file", "user.x", b"2", os.XATTR_CREATE)),
    )
    yield (
        "xattr round",
        lambda: (
            os.setxattr("file", "user.x", b"12"),
            os.getxattr("file", "user.x"),
            os.removexattr("file", "user.x"),
        ),
    )
    for number, name in ((91, "fchmod"), (93, "fchown"), (77, "ftruncate")):
        for handle in (-1, 999):
            yield f"{name} {handle}", lambda number=number, handle=handle: call(number, handle, 0, 0)
    yield "fchmod", lambda: os.fchmod(os.open("file", os.O_RDONLY), 0o604)
    yield "fchmod O_PATH", lambda: os.fchmod(os.open("file", os.O_PATH), 0o604)
    yield "fchown O_PATH", lambda: os.fchown(os.open("file", os.O_PATH), -1, -1)
    yield "fsetxattr O_PATH", lambda: os.setxattr(os.open("file", os.O_PATH), "user.x", b"1")
    yield "fsetxattr", lambda: os.setxattr(os.open("file", os.O_RDONLY), "user.x", b"1")
    yield "fchmod folder", lambda: os.fchmod(os.open("dir", os.O_RDONLY), 0o711)
    yield "fchmod pipe", lambda: os.fchmod(os.pipe()[0], 0o600)
    yield (
        "fchownat empty",
        lambda: call(260, os.open("file", os.O_PATH), b"", os.getuid(), os.getgid(), 0x1000),
    )
    yield "fchownat empty without flag", lambda: call(260, AT, b"", 0, 0, 0)
    yield "fchownat flags", lambda: call(260, AT, b"file", 0, 0, 0x777)
    for flag in (0, 0x200, 0x100, 1):
        yield f"unlinkat file {flag}", lambda flag=flag: call(263, AT, b"file", flag)
        yield f"unlinkat dir {flag}", lambda flag=flag: call(263, AT, b"dir", flag)
    yield "unlinkat in a closed descriptor", lambda: call(263, 777, b"file", 0)
    yield (
        "openat a file as folder",
        lambda: opened("x", os.O_WRONLY | os.O_CREAT, dir_fd=os.open("file", os.O_RDONLY)),
    )
    yield "openat a folder", lambda: opened("x", os.O_WRONLY | os.O_CREAT, dir_fd=os.open("dir", os.O_RDONLY))
    yield "openat absolute ignores dirfd", lambda: raw_open(os.fsencode(os.path.abspath("file")), 1)
    yield "openat bad address", lambda: call(257, AT, 8, 1, 0)
    yield "rename bad address", lambda: call(82, 8, b"x")
    yield "open no path", lambda: call(2, None, 1, 0)
    yield (
        "in a removed folder",
        lambda: (
            os.mkdir("gone"),
            os.chdir("gone"),
            os.rmdir("../gone"),
            opened("x", os.O_WRONLY | os.O_CREAT),
        ),
    )
    yield (
        "mkdir in a removed folder",
        lambda: (os.mkdir("gone"), os.chdir("gone"), os.rmdir("../gone"), os.mkdir("x")),
    )
    for mask in (0, 0o022, 0o777):
        yield (
            f"umask {mask:o}",
            lambda mask=mask: (
                os.umask(mask),
                opened("new", os.O_WRONLY | os.O_CREAT, 0o7777),
                os.mkdir("newdir", 0o7777),
                os.mkfifo("newfifo", 0o777),
            ),
        )
    yield (
        "set-gid folder",
        lambda: (os.chmod("dir", 0o2755), os.mkdir("dir/x"), opened("dir/y", os.O_WRONLY | os.O_CREAT)),
    )
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *e)
        for e in ((1, 7, -1 & 0xFFFFFFFF), (4, 7, -1 & 0xFFFFFFFF), (32, 5, -1 & 0xFFFFFFFF))
    )
    yield (
        "default ACL",
        lambda: (
            os.umask(0o077),
            os.setxattr("dir", "system.posix_acl_default", acl),
            opened("dir/y", os.O_WRONLY | os.O_CREAT),
            os.mkdir("dir/z"),
        ),
    )
    yield (
        "sticky folder",
        lambda: (
            os.chmod("dir", 0o1777),
            opened("dir/x", os.O_WRONLY | os.O_CREAT),
            os.rename("dir/x", "dir/y"),
            os.unlink("dir/y"),
        ),
    )
    yield (
        "read-only file",
        lambda: (os.chmod("file", 0o400), opened("file", os.O_WRONLY) if os.getuid() else "root"),
    )
    yield (
        "read-only folder",
        lambda: (
            os.chmod("dir", 0o500),
            opened("dir/x", os.O_WRONLY | os.O_CREAT) if os.getuid() else "root",
        ),
    )
    yield (
        "no search",
        lambda: (os.chmod("full", 0o600), opened("full/inner", os.O_WRONLY) if os.getuid() else "root"),
    )
    yield (
        "busy program",
        lambda: (
            shutil.copy("/bin/sleep", "prog"),
            os.spawnv(os.P_NOWAIT, "prog", ["prog", "1"]) and time.sleep(0.2),
            opened("prog", os.O_WRONLY),
        ),
    )
    yield (
        "append twice",
        lambda: (
            opened("file", os.O_WRONLY | os.O_APPEND),
            opened("file", os.O_WRONLY | os.O_APPEND),
            open("file").read(),
        ),
    )
    yield "cloexec", lambda: opened("file", os.O_WRONLY | os.O_CLOEXEC)
    yield (
        "inheritable",
        lambda: (lambda h: (os.get_inheritable(h), os.close(h)))(call(257, AT, b"file", os.O_WRONLY, 0)),
    )
    yield (
        "own descriptor again",
        lambda: (lambda h: opened(f"/proc/self/fd/{h}", os.O_WRONLY))(os.open("file", os.O_RDONLY)),
    )
    yield (
        "memory file again",
        lambda: (lambda h: opened(f"/proc/self/fd/{h}", os.O_RDWR))(os.memfd_create("m")),
    )
    yield "pipe again", lambda: (lambda p: opened(f"/proc/self/fd/{p[1]}", os.O_WRONLY))(os.pipe())
    yield (
        "removed file again",
        lambda: (lambda h: (os.unlink("file"), opened(f"/proc/self/fd/{h}", os.O_RDWR)))(
            os.open("file", os.O_RDONLY)
        ),
    )
    yield (
        "unnamed then named",
        lambda: os.link(
            f"/proc/self/fd/{os.open('.', os.O_TMPFILE | os.O_RDWR, 0o640)}",
            "named",
            dst_dir_fd=os.open(".", 0),
            follow_symlinks=True,
        ),
    )
    yield (
        "named from empty path",
        lambda: (
            call(265, os.open(".", os.O_TMPFILE | os.O_RDWR), b"", AT, b"named", 0x1000)
            if not os.getuid()
            else "root only"
        ),
    )
    yield (
        "write to the last link",
        lambda: (
            os.link("file", "second"),
            opened("second", os.O_WRONLY),
            os.unlink("file"),
            opened("second", os.O_WRONLY),
        ),
    )
    yield "too many descriptors", _too_many


def _too_many():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        return os.open("file", os.O_WRONLY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def main():
    home, share = os.path.abspath(sys.argv[1]), int(sys.argv[2])
    for number, (name, function) in enumerate(cases()):
        if len(name.split()) > 1 and zlib.crc32(name.encode()) % share:
            continue
        os.umask(0o022)
        os.chdir(home)
        work = os.path.join(home, "w")
        subdir = os.path.join(work, "in")
        os.makedirs(subdir)
        os.chdir(subdir)
        tree()
        before = set(os.listdir("/proc/self/fd"))
        try:
            outcome = repr(function())
        except OSError as exc:
            outcome = errno.errorcode.get(exc.errno, str(exc.errno))
        except (ValueError, OverflowError) as exc:
            outcome = type(exc).__name__
        os.umask(0o022)
        try:
            os.chdir(subdir)
        except OSError:
            os.chdir(home)
        print(number, name, "->", outcome, listing())
        for handle in set(os.listdir("/proc/self/fd")) - before:
            try:
                os.close(int(handle))
            except OSError:
                pass
        os.chdir(home)
        for top, folders, _ in os.walk(work):
            for folder in folders:
                if not os.path.islink(os.path.join(top, folder)):
                    os.chmod(os.path.join(top, folder), 0o700)
        shutil.rmtree(work)


main()
