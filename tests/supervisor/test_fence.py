"""The fence and the wall with real programs: what must be stopped, what must go through, and what is told of both."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fence_kit import MODES, NO_FENCE, NO_WALL, OTHER_USER, FenceHouse, no_other_user, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import KITS
from patience import PATIENCE
from rounds import NIGHTLY, rounds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}"),
]
BREAKOUTS = KITS / "breakouts.py"
USERS = [
    pytest.param(None, id="own-user"),
    pytest.param(
        OTHER_USER,
        id="other-user",
        marks=pytest.mark.skipif(bool(no_other_user()), reason=no_other_user() or "-"),
    ),
]


def ways(users, modes):
    return [
        pytest.param((user.values[0], mode), id=f"{user.id}-{mode}", marks=user.marks)
        for user in users
        for mode in modes
    ]


#: The usual way of serving calls; `make nightly` tries each.
USUAL = MODES if NIGHTLY else MODES[:1]
#: For what must hold whoever answers: Python, the fast path, or each now and then.
in_every_way = pytest.mark.parametrize(
    "house", [*ways(USERS[:1], MODES), *ways(USERS[1:], MODES if NIGHTLY else MODES[:2])], indirect=True
)


@pytest.fixture(params=ways(USERS, USUAL))
def house(request, monkeypatch):
    user, mode = request.param
    made = FenceHouse(monkeypatch, user, mode=mode)
    made.territory(a=["/a.txt", "/dir/", "/core/own"], b=["/b.txt", "/bdir/", "/bempty/"])
    yield made
    said = made.bugs()
    made.close()
    assert "bug" not in said, said


@pytest.fixture(params=USUAL)
def own(request, monkeypatch):
    """A house of this user's."""
    made = FenceHouse(monkeypatch, mode=request.param)
    made.territory(a=["/a.txt", "/dir/"], b=["/b.txt", "/bdir/"])
    yield made
    said = made.bugs()
    made.close()
    assert "bug" not in said, said


def foreign(house) -> list[Path]:
    """Make all that agent `a` may not touch, some of it with names that lead there from its own folder."""
    write, root = house.write, house.root
    for path in (
        "b.txt",
        "bdir/x",
        ".git/config",
        "aipass.toml",
        "plans/p.json",
        "inbox/b/x.md",
        "nested/aipass.toml",
        "core/core",
    ):
        write(path)
    (root / "bempty").mkdir()
    (root / "dir/sub").mkdir(parents=True)
    write("dir/mine", "mine\n")
    os.setxattr(root / "b.txt", "user.keep", b"1")
    os.link(root / "b.txt", root / "dir/hard")
    (root / "dir/link").symlink_to("../b.txt")
    (root / "dir/link2").symlink_to("link")
    (root / "dir/out").symlink_to("../bdir")
    outside = house.base / "outside"
    outside.write_text("outside\n")
    os.chmod(root / "core", 0o777)
    house.own_all()
    return [
        root / p
        for p in ("b.txt", "bdir", "bempty", ".git", "aipass.toml", "plans", "inbox", "nested", "core")
    ] + [outside]


#: Not refused by a rule that names a path: the program itself fails, or the kernel gives an ordinary error.
HARMLESS = {"O_PATH with writing flags", "SET_DUMPABLE hides nothing"}


@in_every_way
def test_nothing_that_is_not_granted_can_be_written_and_each_try_is_told(house):
    watched = foreign(house)
    shared = Path("/var/tmp", f"fence-shared-{house.base.name}")
    shared.write_text("before")
    outside = house.base / "outside"
    stream, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    stream.bind(str(outside) + ".sock")
    os.chmod(str(outside) + ".sock", 0o777)
    abstract.bind("\0" + str(outside))
    stream.listen()
    abstract.listen()
    if house.user is not None:
        os.chown(shared, house.user, house.user)
    try:
        before = snapshot(*watched, shared)
        listing = sorted(os.listdir(house.root))
        script = shutil.copy(BREAKOUTS, house.base / "breakouts.py")
        os.chmod(script, 0o644)
        done = house.end(
            house.start(
                "a", house.python, str(script), str(outside), str(shared), str(house.supervisor_pid())
            )
        )
        assert done.exit == 0, done.err
        results = json.loads(done.out.splitlines()[-1])
        assert len(results) >= 300
        after = snapshot(*watched, shared)
        assert {
            path: (before.get(path), after.get(path))
            for path in before | after
            if before.get(path) != after.get(path)
        } == {}
        assert sorted(os.listdir(house.root)) == listing
        went_through = {name for name, (outcome, _) in results.items() if outcome == "done"}
        assert went_through <= {"create sedabcdef"}, went_through
    finally:
        stream.close()
        abstract.close()
        shared.unlink()
    _assert_told(house, results)


#: What passes where there is no fence and the wall stands alone, by why: docs/fence.md says it in words.
WALL_ALONE = {
    "modes, owners, times, attributes and flags are nothing that Landlock mediates": {
        "FSSETXATTR", "SETVERSION", "chmod an O_PATH descriptor", "chown", "fchmod", "fchmodat2", "fchown", "fchownat empty path",
        "fsetxattr", "futimesat", "lchown", "lsetxattr", "lutime", "mark a foreign folder", "mark the root", "removexattr", "fremovexattr",
        "setxattr", "setxattrat", "tool: chmod", "tool: touch", "utime", "utime by descriptor", "utime old", "utimensat empty path",
        "utimes", "SETFLAGS", "SETFLAGS in a wide int",
    },
    "a second name in a folder of its own reaches the file": {"open hard link", "truncate hard link"},
    "other programs of the user: sockets, priorities, limits": {
        "datagram socket", "raw unix socket", "another program's socket", "a link to a socket", "the supervisor's socket",
        "limit the supervisor", "slow the supervisor down", "slow the user down", "move the supervisor to one processor", "F_SETLEASE",
    },
    "refused so that programs need not be followed there; the wall follows": {
        "a nested sandbox", "clone with a namespace", "clone3", "io_uring", "unshare", "userfaultfd",
    },
    "its own folders": {
        "own folder into the tree", "the temporary folder itself", "whiteout", "a second name in the temporary folder",
        "the home itself by rename",
    },
    "keys of the user's, and a second filter": {
        "machine: add_key", "machine: request_key", "machine: keyctl", "answer for the fence by a filter of its own",
    },
    "it says that all went well, and has done nothing": {"tool: perl -i", "tool: find -delete", "tool: rsync"},
}  # fmt: skip


@pytest.mark.skipif(bool(no_other_user()), reason=no_other_user() or "-")
@pytest.mark.skipif(bool(NO_WALL), reason=NO_WALL or "-")
def test_what_the_wall_alone_stops_and_what_passes(monkeypatch):
    """As another user always: root could do to this machine what Landlock does not mediate."""
    house = FenceHouse(monkeypatch, OTHER_USER, fence=False)
    other = subprocess.Popen(
        ["setpriv", f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups", "sleep", "1000"]
    )
    try:
        house.territory(a=["/a.txt", "/dir/"], b=["/b.txt", "/bdir/", "/bempty/"])
        house.write("a.txt", "old\n")
        watched = foreign(house)
        outside, shared = house.base / "outside", house.write("../beside", "before")
        script = shutil.copy(BREAKOUTS, house.base / "breakouts.py")
        house.own_all()
        before = snapshot(*watched, outside, shared)
        words = (str(script), str(outside), str(shared), str(other.pid), "apart")
        tree = [str(house.root / path) for path in ("a.txt", "dir")]
        done = house.end(house.start("a", house.python, *words, tree=tree))
        assert done.exit == 0, done.err
        results = json.loads(done.out.splitlines()[-1])
        assert len(results) >= 300
        passed = {name for name, (outcome, _) in results.items() if outcome == "done"}
        expected = set[str]().union(*WALL_ALONE.values())
        expected |= {
            name for name in results if name.startswith(("chmod ", "the mode of what leads to another's: "))
        }
        # The names lie in a folder of the run's own.
        expected |= {name for name in results if name.startswith("run by others: ")} | {
            "a git folder under another name"
        }
        assert passed <= expected, passed - expected
        for why, names in WALL_ALONE.items():
            assert passed & names, f"nothing passes any more of: {why}"
        after = snapshot(*watched, outside, shared)
        content, names = 8, 9
        assert {path for path in before if before[path][content] != after[path][content]} == {
            str(house.root / "b.txt")
        }
        assert after[str(house.root / "b.txt")][names] != before[str(house.root / "b.txt")][names]
        assert after.keys() == before.keys()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        house.close()


def _assert_told(house, results) -> None:
    """Whatever is a write by path names that path; programs that need no asking say nothing."""
    expected = {
        "open": "b.txt", "truncate": "b.txt", "chmod": "b.txt", "rename over": "b.txt", "rename away": "b.txt", "unlink": "b.txt",
        "exchange": "b.txt", "mkdir": "bdir/new", "rmdir": "bempty", "fchmod": "b.txt", "chown": "b.txt", "fsetxattr": "b.txt",
        "utime": "b.txt", "symlink": "bdir/s", "bind a socket": "bdir/sock", "reopen a read descriptor": "b.txt",
        "a thread": "b.txt", "a fork": "b.txt", "a daemon": "b.txt", "rename own folder away": "bdir/sub", "mark the root": ".",
        "create .git/config": ".git/config", "create aipass.toml": "aipass.toml", "create new.txt": "new.txt",
    }  # fmt: skip
    for name, path in expected.items():
        if name in ("open", "truncate", "chmod"):
            for spelling in [
                n for n in results if n.startswith(name + " ") and " with " not in n and "tree" not in n
            ]:
                if name == "open" and spelling.removeprefix("open ") not in _SPELLINGS:
                    continue
                told = results[spelling][1]
                hard = "hard link" in spelling
                assert told == (["dir/hard"] if hard else [path]), (spelling, results[spelling])
        else:
            assert path in results[name][1], (name, results[name])
            assert results[name][0] in ("EACCES", "EPERM"), (name, results[name])
    told_to_engine = {m["path"] for m in house.said if m["tell"] == "denied"}
    for _, (_, paths) in results.items():
        assert set(paths) <= told_to_engine


_SPELLINGS = {
    "relative", "dotted", "absolute", "slashes", "link", "link to link", "hard link", "folder link", "proc cwd", "proc thread",
    "proc pid", "proc root", "proc task",
}  # fmt: skip


SAVES = {
    # One of its own, in each of the ways in which tools save.
    ">": "echo new > a.txt", ">>": "echo new >> a.txt", "tee": "echo new | tee a.txt", "tee -a": "echo new | tee -a a.txt",
    "cp over": "cp dir/f a.txt", "cp -f": "cp -f dir/f a.txt", "cp --remove-destination": "cp --remove-destination dir/f a.txt",
    "cp -p": "cp -p dir/f a.txt", "cp -a": "cp -a dir/f dir/copy", "cp -r": "mkdir dir/s; echo 1 > dir/s/1; cp -r dir/s dir/t; cat dir/t/1",
    "cp backup": "cp --backup dir/f a.txt; cat a.txt~", "mv": "mv dir/f a.txt", "mv folder": "mkdir dir/s; touch dir/s/x; mv dir/s dir/t; ls dir/t/x",
    "mv into": "mkdir dir/s; mv dir/f dir/s/; cat dir/s/f", "install": "install -m 755 dir/f a.txt; test -x a.txt", "install -d": "install -d dir/x/y/z; ls -d dir/x/y/z",
    "ln": "ln dir/f dir/g; echo both > dir/g; grep both dir/f", "ln -s": "ln -s f dir/l; cat dir/l", "ln -sf": "ln -sf f dir/l; ln -sf x dir/l; readlink dir/l",
    "write through a link": "ln -s f dir/l; echo thru > dir/l; grep thru dir/f", "rm": "rm a.txt; test ! -e a.txt; echo new > a.txt", "rm -rf": "mkdir -p dir/s/t; touch dir/s/t/u; rm -rf dir/s; test ! -e dir/s",
    "mkdir -p": "mkdir -p dir/x/y; mkdir -p dir/x/y; ls -d dir/x/y", "mkdir mode": "mkdir -m 700 dir/x; stat -c %a dir/x | grep 700", "rmdir": "mkdir dir/x; rmdir dir/x",
    "sed -i": "sed -i s/old/new/ a.txt; grep new a.txt", "sed -i.bak": "sed -i.bak s/old/new/ a.txt; grep old a.txt.bak", "perl -i": "perl -pi -e s/old/new/ a.txt; grep new a.txt",
    "perl -i.orig": "perl -pi.orig -e s/old/new/ a.txt; ls a.txt.orig", "patch": "printf -- '--- a.txt\\n+++ a.txt\\n@@ -1 +1 @@\\n-old\\n+new\\n' | patch a.txt; grep new a.txt",
    "patch -b": "printf -- '--- a.txt\\n+++ a.txt\\n@@ -1 +1 @@\\n-old\\n+new\\n' | patch -b a.txt; grep old a.txt.orig", "git apply": "printf -- '--- a/a.txt\\n+++ b/a.txt\\n@@ -1 +1 @@\\n-old\\n+new\\n' | git apply --unsafe-paths; grep new a.txt",
    "truncate": "truncate -s 0 a.txt; test ! -s a.txt", "truncate grow": "truncate -s 100 a.txt; stat -c %s a.txt | grep 100", "dd": "dd if=/dev/zero of=a.txt bs=10 count=1 status=none; stat -c %s a.txt | grep 10",
    "dd notrunc": "printf n | dd of=a.txt conv=notrunc status=none; grep nld a.txt", "touch": "touch a.txt", "touch new": "touch dir/new; ls dir/new", "touch -d": "touch -d 2001-01-01 a.txt; stat -c %y a.txt | grep 2001",
    "touch -h": "ln -s f dir/l; touch -h -d 2001-01-01 dir/l; stat -c %y dir/l | grep 2001", "chmod": "chmod 711 a.txt; stat -c %a a.txt | grep 711", "chmod folder": "chmod 711 dir; stat -c %a dir | grep 711", "chmod -R": "chmod -R u+w dir",
    "chown": "chown $(id -u):$(id -g) a.txt", "tar x": "tar cf $TMPDIR/x.tar dir; rm -rf dir/*; tar xf $TMPDIR/x.tar; cat dir/f", "tar p": "tar cf $TMPDIR/x.tar dir; tar xpf $TMPDIR/x.tar; cat dir/f",
    "gzip": "gzip -k dir/f; ls dir/f.gz", "gzip over": "gzip dir/f; gunzip dir/f.gz; cat dir/f", "xz": "xz -k dir/f; ls dir/f.xz", "split": "split -b 1 dir/f dir/part.; ls dir/part.aa", "sort -o": "sort -o a.txt a.txt",
    "mktemp": "f=$(mktemp); echo 1 > $f; mv $f a.txt; grep 1 a.txt", "mktemp in /tmp": "f=$(mktemp /tmp/XXXXXX); echo 1 > $f; echo 2 >> $f; cat $f; rm $f", "mktemp -d in /tmp": "d=$(mktemp -d /tmp/XXXXXX); echo 1 > $d/x; mv $d/x $d/y; rm -r $d",
    "temp and rename": "echo new > .a.txt.tmp; mv .a.txt.tmp a.txt; grep new a.txt", "emacs lock": "ln -s me@host .#a.txt; rm .#a.txt", "emacs autosave": "echo x > '#a.txt#'; rm '#a.txt#'", "backup": "cp a.txt a.txt~; mv a.txt~ a.txt",
    "vim": "vim -es -c '%s/old/new/' -c wq a.txt; grep new a.txt", "vim new": "vim -es -c 'normal ihello' -c wq dir/new; grep hello dir/new", "ed": "command -v ed >/dev/null || exit 0; printf '1c\\nnew\\n.\\nw\\nq\\n' | ed -s a.txt; grep new a.txt",
    "exclusive create": "set -C; echo x > dir/excl; ! sh -Cc 'echo y > dir/excl'", "fifo": "mkfifo dir/p; (cat dir/p > dir/q &); echo thru > dir/p; sleep .3; grep thru dir/q", "here": "cat > a.txt <<X\nnew\nX\ngrep new a.txt",
    "exec redirect": "exec 5> a.txt; echo new >&5; grep new a.txt", "append many": "for i in 1 2 3 4 5; do echo $i >> a.txt; done; tail -1 a.txt | grep 5", "/dev/null": "echo x > /dev/null; echo y 2> /dev/null", "/dev/stderr": "echo x > /dev/stderr", "/dev/stdout": "echo x > /dev/stdout",
    "/dev/fd": "echo x > /dev/fd/1", "/dev/full": "! sh -c 'echo x > /dev/full'", "script pty": "script -qec 'tty; echo in' /dev/null | grep pts", "flock": "flock a.txt true", "cache": "mkdir -p $TMPDIR/c; echo 1 > $TMPDIR/c/x; rm -r $TMPDIR/c",
    "spool": "echo '{}' > $AIPASS_ROOT/.aipass/spool/run-$AIPASS_RUN/.x; rm $AIPASS_ROOT/.aipass/spool/run-$AIPASS_RUN/.x", "own home": "echo note > .aipass/agents/a/note; cat .aipass/agents/a/note",
    "python open": "python3 -c \"open('a.txt','w').write('new')\"; grep new a.txt", "python pathlib": "python3 -c \"import pathlib; p=pathlib.Path('dir/n/m'); p.mkdir(parents=True); (p/'x').write_text('1'); (p/'x').replace(p/'y')\"; cat dir/n/m/y",
    "python shutil": "python3 -c \"import shutil; shutil.copytree('dir','dir2') if 0 else shutil.copy2('dir/f','a.txt')\"", "python tempfile": "python3 -c \"import tempfile,os; f=tempfile.NamedTemporaryFile('w',dir='dir',delete=False); f.write('1'); f.close(); os.replace(f.name,'a.txt')\"; grep 1 a.txt",
    "python sqlite": "python3 -c \"import sqlite3; c=sqlite3.connect('dir/d.db'); c.execute('pragma journal_mode=wal'); c.execute('create table t(x)'); c.execute('insert into t values(1)'); c.commit(); print(c.execute('select * from t').fetchall())\" | grep 1",
    "python mmap": "python3 -c \"import mmap; f=open('a.txt','r+b'); m=mmap.mmap(f.fileno(),0); m[0:3]=b'new'; m.flush()\"; grep new a.txt", "python xattr": "python3 -c \"import os; os.setxattr('a.txt','user.x',b'1'); assert os.getxattr('a.txt','user.x')==b'1'; os.removexattr('a.txt','user.x')\"",
    "python unnamed": "python3 -c \"import os; f=os.open('dir',os.O_TMPFILE|os.O_RDWR); os.write(f,b'1'); os.link(f'/proc/self/fd/{f}','named',dst_dir_fd=os.open('dir',0),follow_symlinks=True)\"; cat dir/named", "python socket": "python3 -c \"import socket; s=socket.socket(socket.AF_UNIX); s.bind('dir/s'); s.listen(); c=socket.socket(socket.AF_UNIX); c.connect('dir/s')\"",
    "python tcp": "python3 -c \"import socket; s=socket.create_server(('127.0.0.1',0)); c=socket.create_connection(s.getsockname()); print(c.getpeername())\"", "python asyncio": "python3 -c \"import asyncio; asyncio.run(asyncio.create_subprocess_exec('true'))\"", "python venv": "python3 -m venv --without-pip dir/venv; dir/venv/bin/python -c 1",
    "python bytecode": "echo 'x=1' > dir/mod.py; cd dir; env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX=$TMPDIR python3 -c 'import mod'; ls $TMPDIR/*/*/*/ > /dev/null; test ! -e __pycache__", "node write": "node -e \"require('fs').writeFileSync('a.txt','new')\"; grep new a.txt", "node stream": "node -e \"require('fs').createWriteStream('a.txt').end('new')\"; grep new a.txt",
    "node mkdir": "node -e \"const f=require('fs'); f.mkdirSync('dir/p/q',{recursive:true}); f.mkdirSync('dir/p/q',{recursive:true}); f.writeFileSync('dir/p/q/x','1'); f.renameSync('dir/p/q/x','dir/p/q/y'); f.rmSync('dir/p',{recursive:true})\"", "node atomic": "node -e \"const f=require('fs'); f.writeFileSync('a.txt.tmp.1.2','new'); f.renameSync('a.txt.tmp.1.2','a.txt')\"; grep new a.txt",
    "git init in own": "git init -q $TMPDIR/g; cd $TMPDIR/g; echo 1 > x; git add x; git -c user.name=a -c user.email=a@b commit -qm 1; git log --oneline | grep 1", "git clone": "git init -q $TMPDIR/g; git -C $TMPDIR/g -c user.name=a -c user.email=a@b commit -q --allow-empty -m 1; git clone -q $TMPDIR/g $TMPDIR/h",
    "gcc": "echo 'int main(){return 0;}' > dir/m.c; gcc -o dir/m dir/m.c; dir/m", "make": "printf 'dir/out: dir/f\\n\\tcp dir/f dir/out\\n' > $TMPDIR/M; make -sf $TMPDIR/M; cat dir/out", "scratch": "mkdir -p target/x; echo 1 > target/x/y; rm -r target", "umask": "umask 077; echo > dir/private; stat -c %a dir/private | grep 600",
    "rename over folder": "mkdir dir/e dir/f2; mv -T dir/e dir/f2; ls -d dir/f2", "exchange": "python3 -c \"import ctypes; L=ctypes.CDLL(None); assert L.renameat2(-100,b'a.txt',-100,b'dir/f',2)==0\"; grep old dir/f", "name with spaces": "mkdir 'dir/a b'; echo 1 > 'dir/a b/c\nd'; ls dir/*/*", "not UTF-8": "echo 1 > dir/$(printf '\\377\\376'); ls dir",
    "long name": "n=$(printf 'x%.0s' $(seq 200)); mkdir -p dir/$n/$n; echo 1 > dir/$n/$n/$n; rm -r dir/$n", "cd": "cd dir; echo new > f; cd ..; echo new > ./dir/../a.txt", "unlinked": "exec 5> dir/gone; rm dir/gone; echo x >&5; echo y > /proc/self/fd/5", "signal while waiting": "mkfifo dir/w; timeout 0.3 sh -c 'echo 1 > dir/w' || test $? = 124",
}  # fmt: skip


def test_every_honest_save_goes_through(house):
    assert len(SAVES) >= 80
    foreign(house)
    (house.root / "dir/hard").unlink()
    lines = []
    for number, script in enumerate(SAVES.values()):
        lines.append(
            f"rm -rf dir a.txt 2>/dev/null; mkdir -p dir; echo old > a.txt; echo file > dir/f\n"
            f"cat > $TMPDIR/save <<'SAVE_END'\nset -e\n{script}\nSAVE_END\n"
            f"if timeout 60 sh $TMPDIR/save > $TMPDIR/out 2>&1 < /dev/null; then echo {number} ok; else echo {number} failed $(head -c 300 $TMPDIR/out | tr '\\n' '|'); fi\n"
        )
    before = snapshot(house.root / "b.txt", house.root / "bdir")
    done = house.sh("a", "".join(lines))
    verdicts = dict(line.split(" ", 1) for line in done.out.splitlines())
    names = list(SAVES)
    # What is not installed here saves nothing.
    missing = {
        n
        for n, said in verdicts.items()
        if (one := re.search(r"([\w.+-]+): not found", said)) and not shutil.which(one[1])
    }
    assert {names[int(n)]: said for n, said in verdicts.items() if said != "ok" and n not in missing} == {}, (
        done.paths
    )
    assert len(verdicts) == len(SAVES)
    assert len(missing) < len(SAVES) / 2
    assert snapshot(house.root / "b.txt", house.root / "bdir") == before
    # Editors try whether a folder can be written with a name of their own; all else was asked for rightly.
    assert set(done.paths) - {"4913", "5036", "5159"} <= {"b.txt"}, done.paths


def test_two_agents_save_side_by_side_in_one_folder(own):
    code = (
        "import os, sys\n"
        "name = sys.argv[1]\n"
        "for n in range(1000):\n"
        "    with open(f'shared/{name}.txt.tmp', 'w') as f: f.write(name * 100)\n"
        "    os.replace(f'shared/{name}.txt.tmp', f'shared/{name}.txt')\n"
        "    try: open(f'shared/{\"ab\".replace(name, \"\")}.txt', 'w').write('foreign')\n"
        "    except PermissionError: pass\n"
    )
    own.territory(2, a=["/shared/a.txt"], b=["/shared/b.txt"])
    for name in "ab":
        own.write(f"shared/{name}.txt", name * 100)
    runs = [own.start(name, sys.executable, "-c", code, name) for name in "ab"]
    seen = {"a": set(), "b": set()}
    while not all(any(m["tell"] == "ended" and m["run"] == run for m in own.said) for run in runs):
        for name in "ab":
            seen[name].add((own.root / f"shared/{name}.txt").read_text())
    ended = [own.end(run) for run in runs]
    assert [done.exit for done in ended] == [0, 0], ended
    for name in "ab":
        assert seen[name] == {name * 100}
    assert sum(m["count"] for m in own.said if m["tell"] == "denied") == 2000


def test_who_writes_first_holds_and_the_other_is_told_by_whom_and_since_when(own):
    own.territory(2, a=None, b=None)
    own.write("free.txt", "as it was")
    before = time.time()
    first = own.start("a", "sh", "-c", "echo a > free.txt; echo ready; sleep 100")
    own.until_says(first, "ready")
    second = own.sh("b", "echo b > free.txt; echo b > other.txt; rm free.txt; mv other.txt free.txt")
    assert (own.root / "free.txt").read_text() == "a\n"
    assert "run 1 of a holds it" in second.err + json.dumps(second.denied)
    assert second.denied[0]["owner"] == "a"
    assert before <= second.denied[0]["since"] <= time.time()
    own.supervisors.stop_run(first, "cancelled", "enough")
    own.end(first)
    assert own.sh("b", "echo b > free.txt").exit == 0
    assert (own.root / "free.txt").read_text() == "b\n"


KEEPER = """
import mmap, os, sys, time
f = open('dir/kept', 'r+b'); m = mmap.mmap(f.fileno(), 0)
print('ready', flush=True)
while not os.path.exists(os.environ['TMPDIR'] + '/go'): time.sleep(0.005)
for attempt in (lambda: (f.write(b'descriptor'), f.flush()), lambda: m.__setitem__(slice(0, 4), b'MMAP'),
                lambda: open('dir/kept', 'w'), lambda: os.rename('dir/kept', 'dir/x'), lambda: os.truncate('dir/kept', 0)):
    try: attempt(); print('went')
    except OSError as e: print(e.strerror)
"""


def test_what_was_handed_over_cannot_be_reached_by_old_descriptors_and_mappings(own):
    own.write("dir/kept", "the content\n")
    os.chmod(own.root / "dir/kept", 0o640)
    os.setxattr(own.root / "dir/kept", "user.mark", b"1")
    run = own.start("a", sys.executable, "-c", KEEPER)
    own.until_says(run, "ready")
    told = own.territory(2, a=["/a.txt"], b=["/dir/", "/b.txt"])
    assert told["replaced"] == ["dir/kept"]
    before = snapshot(own.root / "dir")
    mode = (own.root / "dir/kept").stat().st_mode & 0o777
    Path(f"/tmp/aipass-{os.geteuid()}/{own.base.name}-{run}/go").touch()
    done = own.end(run)
    assert done.out.split("\n")[1:6] == [
        "went",
        "went",
        "Permission denied",
        "Permission denied",
        "Permission denied",
    ]
    assert snapshot(own.root / "dir") == before
    assert (own.root / "dir/kept").read_text() == "the content\n"
    assert mode == 0o640
    assert os.getxattr(own.root / "dir/kept", "user.mark") == b"1"


def test_a_file_that_nobody_has_open_keeps_its_inode_at_a_hand_over(own):
    own.write("dir/closed", "x")
    run = own.start("a", "sh", "-c", "echo y > dir/closed; echo ready; sleep 30")
    own.until_says(run, "ready")
    inode = (own.root / "dir/closed").stat().st_ino
    assert own.territory(2, a=[], b=["/dir/"])["replaced"] == []
    assert (own.root / "dir/closed").stat().st_ino == inode
    own.supervisors.stop_run(run, "cancelled", "test")
    own.end(run)


def test_temporary_files_that_never_became_anything_go_to_quarantine(own):
    done = own.sh(
        "a", "echo half > a.txt.tmp; echo whole > .a.txt.swp; mv .a.txt.swp a.txt; echo s > sedABCDEF"
    )
    assert done.exit == 0, done.err
    assert not (own.root / "a.txt.tmp").exists()
    assert (own.root / "a.txt").read_text() == "whole\n"
    record = next(m for m in own.said if m["tell"] == "ended")
    assert record["quarantined"] == ["a.txt.tmp", "sedABCDEF"]
    assert (own.root / ".aipass/quarantine/run-1/a.txt.tmp").read_text() == "half\n"


def test_a_temporary_name_does_not_open_a_file_that_was_there(own):
    for name in ("a.txt.orig", "a.txt~", ".a.txt.swp", "sedABCDEF"):
        own.write(name, "a person's")
    done = own.sh(
        "a",
        "for f in a.txt.orig a.txt~ .a.txt.swp sedABCDEF; do echo x > $f; mv a.txt $f; rm -f $f; done; echo x > b.txt.tmp",
    )
    for name in ("a.txt.orig", "a.txt~", ".a.txt.swp", "sedABCDEF"):
        assert (own.root / name).read_text() == "a person's"
    assert "b.txt.tmp" in done.paths


def test_refusals_of_one_path_in_a_row_are_one_with_their_count(own):
    own.write("b.txt")
    done = own.sh("a", "for i in 1 2 3 4 5; do echo x > b.txt; done; echo x > bdir")
    assert [(m["path"], m["count"]) for m in done.denied] == [("b.txt", 5), ("bdir", 1)]
    assert done.denied[0]["owner"] == "b"
    assert "`owns` of b names it" in done.denied[0]["reason"]
    assert (own.layout.run(1) / "denied.md").read_text().count("b.txt") == 5


def test_two_hundred_runs_that_ask_at_once_stay_responsive_and_a_flood_starves_nobody(own):
    own.territory(2, **{f"w{n}": [f"/w{n}/"] for n in range(60)}, flood=["/flood/"])
    flood = own.start("flood", "sh", "-c", "mkdir flood; while :; do echo x > flood/x; done")
    own.wait(lambda m: (own.root / "flood/x").exists() or True)
    began = time.monotonic()
    runs = [
        own.start(
            f"w{n}", "sh", "-c", f"mkdir w{n}; for i in 1 2 3 4 5 6 7 8 9 10; do echo $i > w{n}/$i; done"
        )
        for n in range(60)
    ]
    assert [own.end(run).exit for run in runs] == [0] * 60
    took = time.monotonic() - began
    assert len(list(own.root.glob("w*/*"))) == 600
    own.supervisors.stop_run(flood, "cancelled", "enough")
    own.end(flood)
    print(f"60 runs beside a flood: {took:.1f} s")


def test_a_bug_in_the_decider_refuses_and_the_supervisor_lives(own):
    # A path that cannot be decoded as anything sensible, folders that vanish, descriptors that are none.
    code = (
        "import os, ctypes\n"
        "L = ctypes.CDLL(None, use_errno=True)\n"
        "for number, args in ((257, (10**9, 8, 1, 0)), (257, (-100, 2**63, 1, 0)), (82, (1, 2)), (280, (-100, 1, 1, 0)), (91, (-5, 0)),"
        " (188, (1, 1, 1, 2**40, 0)), (42, (0, 1, 2**31)), (49, (99, 0, 0)), (76, (0, -1))):\n"
        "    r = L.syscall(number, *[ctypes.c_long(a) for a in args]); print(r, ctypes.get_errno())\n"
    )
    done = own.py("a", code)
    assert all(line.startswith("-1 ") for line in done.out.splitlines()), done.out
    assert own.sh("a", "echo fine > a.txt").exit == 0


def test_nothing_of_the_supervisor_is_inherited(own):
    done = own.py(
        "a",
        "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))); print(os.getcwd()); print(oct(os.umask(0)))",
    )
    handles = json.loads(done.out.splitlines()[0])
    assert handles == [0, 1, 2, 3], done.out  # 3 is the listing itself
    assert done.out.splitlines()[1] == str(own.root)


def test_programs_that_are_not_there_or_not_executable_are_a_failed_start(own):
    own.write("plain", "no program")
    for argv, told in (
        (("no-such-program",), "was not found"),
        ((str(own.root / "plain"),), "cannot be executed"),
    ):
        run = own.start("a", *argv)
        record = own.wait(lambda m, run=run: m["tell"] == "ended" and m["run"] == run)
        assert record["outcome"] == "start-failed"
        assert told in record["reason"]
    assert own.sh("a", "echo ok > a.txt").exit == 0


def test_a_run_is_over_exactly_when_its_last_process_is_gone(own):
    # It scrubs its environment, leaves its session and is nobody's child: only the fence knows of it.
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.execve('/bin/sh', ['sh', '-c', 'sleep 0.6; echo late > dir/late'], {})\n"
        "    os._exit(0)\n"
        "os.wait(); os.makedirs('dir', exist_ok=True)\n"
    )
    other = own.start("b", "sleep", "5")
    run = own.start("a", sys.executable, "-c", code, linger=True)
    own.end(run)
    assert (own.root / "dir/late").read_text() == "late\n"
    own.supervisors.stop_run(other, "cancelled", "test")
    own.end(other)


SWAP = r"""
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static char path[16] = "dir/mine"; static volatile int stop;
static int shared;
static void *swap(void *x) { while (!stop) { memcpy(path, "b.txt\0\0\0", 8); memcpy(path, "dir/mine", 8); } return 0; }
static void *both(void *x) { int m = open("dir/mine", O_RDONLY), f = open("b.txt", O_RDONLY); while (!stop) { dup2(f, shared); dup2(m, shared); } return 0; }
static void *folder(void *x) { while (!stop) { rename("dir/s", "dir/t"); symlink("../bdir", "dir/s"); unlink("dir/s"); rename("dir/t", "dir/s"); } return 0; }
int main(int c, char **v) {
  pthread_t t; int n = atoi(v[1]), hits = 0;
  close(open("dir/mine", O_CREAT | O_WRONLY, 0644)); mkdir("dir/s", 0755);
  pthread_create(&t, 0, swap, 0);
  for (int i = 0; i < n; i++) { int f = open(path, O_WRONLY | O_TRUNC); if (f >= 0) { write(f, "!", 1); close(f); hits++; } }
  stop = 1; pthread_join(t, 0); stop = 0;
  shared = open("dir/mine", O_RDONLY);
  pthread_create(&t, 0, both, 0);
  for (int i = 0; i < n; i++) fchmod(shared, 0600 + (i & 1));
  stop = 1; pthread_join(t, 0); stop = 0;
  pthread_create(&t, 0, folder, 0);
  for (int i = 0; i < n / 5; i++) { int f = open("dir/s/x", O_WRONLY | O_CREAT | O_TRUNC, 0644); if (f >= 0) { write(f, "!", 1); close(f); } }
  stop = 1; pthread_join(t, 0);
  printf("%d\n", hits); return 0; }
"""


@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler")
@in_every_way
def test_racing_threads_never_reach_what_is_not_theirs(house):
    watched = foreign(house)
    (house.root / "dir/mine").unlink()
    program = house.base / "swap"
    subprocess.run(
        ["gcc", "-O2", "-pthread", "-w", "-x", "c", "-", "-o", str(program)],
        input=SWAP,
        text=True,
        check=True,
    )
    before = snapshot(*watched)
    done = house.end(house.start("a", str(program), str(rounds(4000, 40_000))), timeout=2 * PATIENCE)
    assert int(done.out) > 100, "the honest half must go through"
    assert snapshot(*watched) == before


INT80 = r"""
#include <stdio.h>
int main(void) { long r; static char p[] = "b.txt";
  __asm__ volatile ("int $0x80" : "=a"(r) : "a"(5), "b"(p), "c"(1 | 512), "d"(0) : "memory"); printf("%ld\n", r); return 0; }
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler")
def test_calls_of_the_32_bit_interface_do_not_exist(own):
    own.write("b.txt")
    program = own.base / "int80"
    subprocess.run(
        ["gcc", "-static", "-no-pie", "-w", "-x", "c", "-", "-o", str(program)],
        input=INT80,
        text=True,
        check=True,
    )
    assert own.end(own.start("a", str(program))).out.strip() in ("-38", "-14")
    assert (own.root / "b.txt").read_text() == "foreign\n"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its raw calls are x86_64's")
@in_every_way
def test_every_call_returns_what_the_kernel_would_return(house):
    script = shutil.copy(KITS / "differential.py", house.base / "differential.py")
    os.chmod(script, 0o644)
    for folder in ("dir", "bare"):
        (house.root / folder).mkdir()
    house.own_all()
    share = str(rounds(5, 1))
    behind = house.end(house.start("a", house.python, str(script), str(house.root / "dir"), share))
    become = (
        []
        if house.user is None
        else ["setpriv", f"--reuid={house.user}", f"--regid={house.user}", "--clear-groups"]
    )
    bare = subprocess.run(
        [*become, "setsid", house.python, str(script), str(house.root / "bare"), share],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (behind.exit, bare.returncode) == (0, 0), behind.err + bare.stderr
    pairs = list(zip(behind.out.splitlines(), bare.stdout.splitlines(), strict=True))
    assert len(pairs) > rounds(300, 1500)
    assert [(fenced, free) for fenced, free in pairs if fenced != free] == []


FUZZED = r"""
import ctypes, json, os, socket, sys
L = ctypes.CDLL(None)
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
lines = link.makefile("rw")
FLAGS = [os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, os.O_RDONLY | os.O_TRUNC, os.O_RDWR | os.O_NOFOLLOW]

def put(path, flags):
    handle = os.open(path, FLAGS[flags] | os.O_NONBLOCK, 0o666)
    try: os.write(handle, b"fuzz")
    finally: os.close(handle)

def through(path, flags):
    held = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try: put(f"/proc/self/fd/{held}", flags)
    finally: os.close(held)

def at(folder, name):
    held = os.open(folder, os.O_PATH)
    try: os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o666, dir_fd=held))
    finally: os.close(held)

OPS = {"put": put, "through": through, "at": at, "rename": os.rename, "link": os.link, "symlink": os.symlink, "unlink": os.unlink,
       "rmdir": os.rmdir, "mkdir": os.mkdir, "chmod": lambda p: os.chmod(p, 0o777), "utime": os.utime, "truncate": lambda p: os.truncate(p, 1),
       "exchange": lambda a, b: L.renameat2(-100, a.encode(), -100, b.encode(), 2), "chdir": os.chdir,
       "xattr": lambda p: os.setxattr(p, "user.f", b"1")}

def work(steps):
    for name, *arguments in steps:
        try: OPS[name](*arguments)
        except (OSError, ValueError): pass

for line in lines:
    children = []
    for steps in json.loads(line):
        pid = os.fork()
        if not pid:
            work(steps)
            os._exit(0)
        children.append(pid)
    for pid in children: os.waitpid(pid, 0)
    for top, folders, files in os.walk("dir"):
        for folder in folders:
            if not os.path.islink(top + "/" + folder): os.chmod(top + "/" + folder, 0o755)
    print("done", file=lines, flush=True)
"""

_SPOTS = st.sampled_from(
    [
        "b.txt",
        "bdir",
        "bdir/x",
        "bdir/new",
        "bempty",
        "aipass.toml",
        ".git/config",
        "new.txt",
        "dir",
        "dir/one",
        "dir/two",
        "dir/sub",
        "dir/sub/one",
        "dir/l",
        "dir/l/x",
        "dir/m",
        "../b.txt",
        "dir/../b.txt",
        ".",
        "..",
        "dir/l/../b.txt",
        "a.txt",
        "a.txt~",
        ".a.txt.swp",
        "sub",
        "one",
        "../dir/one",
        "/proc/self/cwd/b.txt",
        "dir/sub/../../bdir/x",
    ]
)
_STEPS = st.one_of(
    st.tuples(st.sampled_from(["put", "through"]), _SPOTS, st.integers(0, 5)),
    st.tuples(st.sampled_from(["rename", "link", "symlink", "exchange", "at"]), _SPOTS, _SPOTS),
    st.tuples(
        st.sampled_from(["unlink", "rmdir", "mkdir", "chmod", "utime", "truncate", "chdir", "xattr"]), _SPOTS
    ),
)
_PROGRAMS = st.lists(st.lists(_STEPS, min_size=1, max_size=12), min_size=1, max_size=3)


@in_every_way
@pytest.mark.timeout(1200)
def test_random_programs_never_change_what_is_not_granted(house):
    check_random_programs(house, [path for path in foreign(house) if path.name != "core"], rounds(300, 5000))


def check_random_programs(house, watched, examples):
    listener = socket.create_server(("127.0.0.1", 0))
    run = house.start("a", house.python, "-c", FUZZED, str(listener.getsockname()[1]))
    link = listener.accept()[0]
    lines = link.makefile("rw")
    before, tried = snapshot(*watched), 0

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(_PROGRAMS)
    def check(program):
        nonlocal tried
        tried += 1
        print(json.dumps(program), file=lines, flush=True)
        assert lines.readline() == "done\n"
        assert snapshot(*watched) == before
        assert {p.name for p in house.root.iterdir()} <= known

    known = {p.name for p in house.root.iterdir()} | {"a.txt", "a.txt~", ".a.txt.swp"}
    try:
        check()
    finally:
        lines.close()
        link.close()
        listener.close()
    assert house.end(run).exit == 0
    assert tried >= examples


# -- what an adversary found --------------------------------------------------------------------------------------------


def test_a_folder_of_ones_own_cannot_become_a_link_that_the_next_run_inherits(own):
    script = "mkdir -p dir; ln -s ../.. dir/l; mv -T dir/l .aipass/agents/a; rm -rf .aipass/agents/a; mv $TMPDIR dir/t; ls -d .aipass/agents/a"
    assert own.sh("a", script).exit == 0
    assert not (own.root / ".aipass/agents/a").is_symlink()
    (own.root / ".aipass/agents/a").rmdir()
    (own.root / ".aipass/agents/a").symlink_to("../..")
    run = own.start("a", "true")
    assert "replaced by a link" in own.wait(lambda m: m["tell"] == "ended" and m["run"] == run)["reason"]


def test_a_call_that_fails_takes_nothing(own):
    own.territory(2, a=["/a.txt"], b=["/b.txt"], f=None, g=None)
    code = (
        "import os\n"
        "for make in (lambda: os.mknod('a.txt.orig', 0o30644), lambda: os.symlink('', 'a.txt.orig')):\n"
        "    try: make()\n"
        "    except OSError as e: print(e.errno)\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists('a.txt.orig'): pass\n"
        "try: open('a.txt.orig', 'w')\n"
        "except PermissionError: print('refused')\n"
    )
    run = own.start("a", sys.executable, "-c", code)
    own.until_says(run, "ready")
    own.write("a.txt.orig", "a person's")
    done = own.end(run)
    assert "refused" in done.out
    assert (own.root / "a.txt.orig").read_text() == "a person's"
    holder = own.start("f", "sh", "-c", "rmdir y; mv y z; ln y z; mv . z; echo ready; sleep 100")
    own.until_says(holder, "ready")
    assert own.sh("g", "echo mine > y; echo mine > z").exit == 0
    own.supervisors.stop_run(holder, "cancelled", "enough")
    own.end(holder)


def test_a_removed_file_that_its_owner_still_has_open_is_not_reached(own):
    victim = own.write("bdir/x", "theirs")
    code = (
        "import os\n"
        "f = os.open('bdir/x', os.O_RDONLY)\n"
        "print('ready', flush=True)\n"
        "while os.path.exists('bdir/x'): pass\n"
        "for act in (lambda: os.open(f'/proc/self/fd/{f}', os.O_WRONLY), lambda: os.fchmod(f, 0o777)):\n"
        "    try: act(); print('went')\n"
        "    except OSError as e: print(e.strerror)\n"
    )
    run = own.start("a", sys.executable, "-c", code)
    own.until_says(run, "ready")
    with victim.open("r+") as kept:
        victim.unlink()
        done = own.end(run)
        assert kept.read() == "theirs"
    assert done.out.splitlines()[1:] == ["Permission denied", "Permission denied"]


def test_a_hand_over_is_not_kept_up_by_names_that_are_in_the_way(own):
    own.write("dir/kept", "before")
    code = (
        "import os\n"
        "f = open('dir/kept', 'r+')\n"
        "os.mkdir(f'dir/.aipass-copy-{os.fstat(f.fileno()).st_ino}')\n"
        "print('ready', flush=True)\n"
        "import time; time.sleep(20)\n"
    )
    run = own.start("a", sys.executable, "-c", code)
    own.until_says(run, "ready")
    assert own.territory(2, a=["/a.txt"], b=["/dir/"])["replaced"] == ["dir/kept"]
    own.supervisors.stop_run(run, "cancelled", "enough")
    own.end(run)


@pytest.mark.skipif(os.geteuid() != 0 or bool(no_other_user()), reason="only root can become somebody else")
def test_who_gave_up_being_root_is_not_root_again_through_the_supervisor(own):
    own.write("dir/secret", "root's")
    os.chmod(own.root / "dir/secret", 0o600)
    os.chmod(own.root / "dir", 0o777)
    code = (
        "import os, struct, socket\n"
        "os.setgroups([]); os.setgid(1234); os.setuid(1234)\n"
        "def attempt(name, act):\n"
        "    try: act(); print(name, 'went')\n"
        "    except OSError as e: print(name, e.errno)\n"
        "attempt('read', lambda: open('dir/secret'))\n"
        "attempt('write', lambda: open('dir/secret', 'w'))\n"
        "attempt('chown', lambda: os.chown('dir/secret', 1234, 1234))\n"
        "open('dir/prog', 'w').close()\n"
        "attempt('cap', lambda: os.setxattr('dir/prog', 'security.capability', struct.pack('<IIIII', 0x02000001, 1 << 7, 0, 0, 0)))\n"
        "attempt('trusted', lambda: os.setxattr('dir/prog', 'trusted.x', b'1'))\n"
        "attempt('port', lambda: socket.socket().bind(('127.0.0.1', 81)))\n"
        "d = os.open('dir', os.O_RDONLY)\n"
        "attempt('at', lambda: os.close(os.open('late', os.O_WRONLY | os.O_CREAT, dir_fd=d)))\n"
    )
    done = own.py("a", code)
    assert done.out.split("\n")[:-1] == [
        "read 13",
        "write 13",
        "chown 1",
        "cap 1",
        "trusted 1",
        "port 13",
        "at went",
    ], done
    assert (own.root / "dir/late").stat().st_uid == 1234


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler")
@pytest.mark.parametrize("nice", [0, 5])
def test_at_the_limit_of_descriptors_nothing_is_made_and_nothing_truncated(own, nice):
    """A nice one gets its descriptor later than the file would be truncated."""
    own.write("dir/full", "content")
    code = (
        f"import os, resource; os.nice({nice})\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n"
        "held = []\n"
        "try:\n"
        "    while True: held.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: pass\n"
        "for flags, path in ((os.O_WRONLY | os.O_TRUNC, 'dir/full'), (os.O_WRONLY | os.O_CREAT, 'dir/new')):\n"
        "    try: os.open(path, flags)\n"
        "    except OSError as e: print(e.strerror)\n"
    )
    assert own.py("a", code).out == "Too many open files\nToo many open files\n"
    assert (own.root / "dir/full").read_text() == "content"
    assert not (own.root / "dir/new").exists()


def test_one_that_wants_to_stand_in_the_way_holds_up_nobody(own):
    own.territory(2, a=["/dir/"], b=["/b/"])
    code = (
        "import os, threading\n"
        "os.makedirs('dir', exist_ok=True)\n"
        "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
        "def burn():\n"
        "    while True: pass\n"
        "if os.fork() == 0:\n"
        "    os.nice(0); burn()\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    os.close(os.open('dir/x', os.O_WRONLY | os.O_CREAT))\n"
    )
    slow = own.start("a", sys.executable, "-c", code)
    own.until_says(slow, "ready")
    assert own.sh("b", "mkdir b; for i in 1 2 3 4 5 6 7 8 9 10; do echo $i > b/$i; done").exit == 0
    own.supervisors.stop_run(slow, "cancelled", "enough")
    own.end(slow)


def test_a_run_that_keeps_what_could_not_be_taken_from_it_is_stopped_before_anything_begins(own):
    own.write("dir/kept", "before")
    run = own.start(
        "a",
        sys.executable,
        "-c",
        "f = open('dir/kept', 'a')\nprint('ready', flush=True)\nimport time; time.sleep(60)",
    )
    own.until_says(run, "ready")
    (own.root / ".aipass/handover").write_text("in the way of every copy")
    own.territory(2, a=["/a.txt"], b=["/dir/", "/b.txt"])
    assert [(m["run"], m["path"]) for m in own.said if m["tell"] == "kept"] == [(run, "dir/kept")]
    after = own.sh("b", "echo b >> dir/kept")
    assert after.exit == 0, after.err
    order = [(m["tell"], m["run"]) for m in own.said if m["tell"] in {"started", "ended"}]
    assert order.index(("ended", run)) < order.index(("started", run + 1))
    record = next(m for m in own.said if m["tell"] == "ended" and m["run"] == run)
    assert record["outcome"] == "cancelled"
    assert "dir/kept was handed over and could not be taken from it" in record["reason"]


def test_a_supervisor_that_cannot_follow_a_change_of_owners_ends_its_runs_and_answers(monkeypatch):
    house = FenceHouse(monkeypatch)
    try:
        house.territory(a=["/a.txt"])
        run = house.start("a", "sh", "-c", "echo ready; sleep 30")
        house.until_says(run, "ready")
        house.supervisors.set_territory({"serial": 2, "table": {"owners": "a newer engine's"}, "handed": []})
        house.wait(lambda m: m["tell"] == "territory" and m["serial"] == 2)
        record = next(m for m in house.said if m["tell"] == "ended")
        assert record["outcome"] == "cancelled"
        assert "cannot follow a change of owners" in record["reason"]
        assert "cannot follow" in house.sh("a", "echo x > a.txt").err, "nothing begins on old words"
        house.territory(3, a=["/a.txt"])
        assert house.sh("a", "echo x > a.txt").exit == 0
    finally:
        house.close()


def test_an_open_that_waited_through_a_hand_over_is_decided_again(own):
    path = own.write("dir/kept", "before")
    with path.open() as held:
        # Whoever opens the file for writing waits until this program lets go, or for 45 seconds.
        fcntl.fcntl(held, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        run = own.start("a", "sh", "-c", "echo ready; echo late > dir/kept")
        own.until_says(run, "ready")
        time.sleep(0.3)
        own.territory(2, a=["/a.txt"], b=["/dir/", "/b.txt"])
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        done = own.end(run)
    assert "ermission denied" in done.err
    assert [m["path"] for m in done.denied] == ["dir/kept"]
    assert path.read_text() == "before"


def test_who_owns_a_path_and_wrote_it_holds_it_when_a_plan_reserves_it(own):
    own.write("dir/one", "x")
    run = own.start(
        "a",
        "sh",
        "-c",
        "echo a > dir/one; echo ready; while [ ! -e $TMPDIR/go ]; do sleep 0.01; done; echo b >> dir/one; echo c > dir/two",
    )
    own.until_says(run, "ready")
    own.phases = [{"plan": "1", "id": "p", "agent": "b", "owns": ["/dir/"], "run": None}]
    own.territory(2, a=["/dir/"], b=[])
    Path(f"/tmp/aipass-{os.geteuid()}/{own.base.name}-{run}/go").touch()
    done = own.end(run)
    assert (own.root / "dir/one").read_text() == "a\nb\n"
    assert [m["path"] for m in done.denied] == ["dir/two"]


def test_what_was_exchanged_with_a_temporary_file_goes_to_quarantine(own):
    own.write("a.txt", "old")
    code = (
        "import ctypes, os\n"
        "open('a.txt.tmp', 'w').write('new')\n"
        "assert ctypes.CDLL(None).renameat2(-100, b'a.txt.tmp', -100, b'a.txt', 2) == 0\n"
        "open('a.txt.tmp', 'a').write('er')\n"
    )
    done = own.py("a", code)
    assert done.exit == 0, done.err
    assert (own.root / "a.txt").read_text() == "new"
    assert (own.root / ".aipass/quarantine/run-1/a.txt.tmp").read_text() == "older"


def go(own, run):
    """Let a run go on that waits for this."""
    Path(f"/tmp/aipass-{os.geteuid()}/{own.base.name}-{run}/go").touch()


UNTIL_GO = "echo ready; while [ ! -e $TMPDIR/go ]; do sleep 0.01; done"


def test_a_second_name_reaches_nothing_after_a_hand_over(own):
    own.write("dir/keep", "")
    run = own.start(
        "a", "sh", "-c", f"echo m > dir/one; ln dir/one dir/two; {UNTIL_GO}; echo LATE >> dir/two"
    )
    own.until_says(run, "ready")
    assert own.territory(2, a=["/dir/two"], b=["/dir/one"])["replaced"] == ["dir/one"]
    go(own, run)
    own.end(run)
    assert (own.root / "dir/one").read_text() == "m\n"
    assert own.sh("b", "echo b >> dir/one").exit == 0


def test_two_ways_to_one_name_are_not_two_names(own):
    own.write("dir/keep", "")
    script = f"mkdir dir/d dir/e; echo x > dir/d/x; ln dir/d/x dir/e/x; mv dir/e dir/gone; rm dir/gone/x; ln -s d dir/e; {UNTIL_GO}; echo F >> dir/d/x"
    run = own.start("a", "sh", "-c", script)
    own.until_says(run, "ready")
    (own.root / "bdir").mkdir(exist_ok=True)
    os.link(own.root / "dir/d/x", own.root / "bdir/x")
    go(own, run)
    assert "ermission denied" in own.end(run).err
    assert (own.root / "bdir/x").read_text() == "x\n"


def test_a_folder_of_sandbox_write_opens_no_file_by_its_second_name(own):
    own.write("b.txt", "b's")
    own.write("dir/keep", "")
    store = own.base / "store"
    store.mkdir()
    os.link(own.root / "b.txt", store / "b.txt")
    own.sandbox["outside"] = [str(store)]
    run = own.start(
        "a",
        "sh",
        "-c",
        f"echo F >> {store}/b.txt; echo x > {store}/own; echo m > dir/one; ln dir/one {store}/mine; {UNTIL_GO}; echo LATE >> {store}/mine",
    )
    own.until_says(run, "ready")
    own.territory(2, a=[], b=["/dir/", "/b.txt"])
    go(own, run)
    own.end(run)
    assert (own.root / "b.txt").read_text() == "b's"
    assert (own.root / "dir/one").read_text() == "m\n"
    assert (store / "own").read_text() == "x\n"


def test_a_temporary_file_that_became_anothers_work_stays(own):
    own.write("dir/keep", "")
    own.territory(2, a=["/dir/model"], b=["/dir/model.py"])
    own.phases = [{"plan": "1", "id": "p", "agent": "b", "owns": ["/dir/model.py"], "run": None}]
    own.territory(3, a=["/dir/model"], b=[])
    run = own.start("a", "sh", "-c", f"echo x > dir/model.py; {UNTIL_GO}; echo LATE >> dir/model.py")
    own.until_says(run, "ready")
    own.phases[0]["run"] = run + 1
    own.territory(4, a=["/dir/model"], b=[])
    assert own.sh("b", "echo work > dir/model.py", plan="1", phase="p").exit == 0
    own.phases[0]["run"] = None
    own.territory(5, a=["/dir/model"], b=[])
    go(own, run)
    own.end(run)
    assert (own.root / "dir/model.py").read_text() == "work\n"


def test_a_temporary_name_does_not_beat_who_holds_the_file(own):
    own.territory(2, a=["/dir/model"], b=None)
    own.write("dir/keep", "")
    run = own.start("b", "sh", "-c", f"echo b > dir/model.py; {UNTIL_GO}")
    own.until_says(run, "ready")
    assert "ermission denied" in own.sh("a", "echo F > dir/model.py").err
    assert "ermission denied" in own.sh("a", "rm dir/model.py").err
    go(own, run)
    own.end(run)
    assert (own.root / "dir/model.py").read_text() == "b\n"


@pytest.mark.parametrize("meanwhile", ["saved", "removed", "written"])
def test_a_copy_at_hand_over_loses_nothing_that_came_meanwhile(tmp_path, meanwhile):
    from aipass.supervisor.fence import withdraw

    (tmp_path / ".aipass/handover").mkdir(parents=True)
    file, copy = tmp_path / "f", tmp_path / ".aipass/handover/c"
    file.write_text("old")
    copy.write_text("old")
    folder = os.open(tmp_path, os.O_PATH)
    with file.open() as held:
        before = os.fstat(held.fileno())
        if meanwhile == "saved":
            (tmp_path / "new").write_text("a person's")
            (tmp_path / "new").rename(file)
        elif meanwhile == "removed":
            file.unlink()
        else:
            file.write_text("a person's")
        replaced = withdraw._exchange(str(tmp_path), str(copy), folder, "f", before, held.fileno())
    os.close(folder)
    assert replaced is (meanwhile == "written")
    kept = [path.read_text() for path in (tmp_path / ".aipass/quarantine/handover").glob("*")]
    now = file.read_text() if file.exists() else None
    expected = {"saved": ("a person's", []), "removed": (None, []), "written": ("old", ["a person's"])}
    assert (now, kept) == expected[meanwhile]
    assert list((tmp_path / ".aipass/handover").iterdir()) == []


SOMEBODY_ELSE = """
import os, sys, threading, time
os.mkfifo('dir/fifo'); os.chmod('dir/fifo', 0o666)
pid = os.fork()
if not pid:
    os.setresuid(1234, 1234, 1234)
    print('ready', flush=True)
    try: os.open('dir/fifo', os.O_WRONLY)
    except OSError as e: print(e.strerror, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


@pytest.mark.skipif(os.geteuid() != 0 or bool(no_other_user()), reason="only root can become somebody else")
def test_a_wait_of_somebody_else_leaves_the_supervisor_what_it_is(own):
    own.write("dir/keep", "")
    os.chmod(own.root, 0o755)
    run = own.start("a", sys.executable, "-c", SOMEBODY_ELSE)
    own.until_says(run, "ready")
    time.sleep(0.3)
    own.territory(2, a=["/a.txt"], b=["/dir/", "/b.txt"])
    assert "Permission denied" in own.end(run).out
    done = own.sh("b", "echo b > b.txt")
    assert done.exit == 0, done.err


@pytest.mark.parametrize("wall", [True, False])
def test_the_runs_own_folders_are_its_own_in_every_way(own, wall):
    script = (
        "for D in $AIPASS_ROOT/.aipass/cache/a $AIPASS_ROOT/.aipass/agents/a $TMPDIR; do cd $D; "
        "touch x && chmod 600 x && mkdir d && ln -s x d/y && mv x z && touch -d 2020-01-01 z && ln z zz && rm -r d && chmod 755 . || exit 1; "
        "rmdir $D 2> $TMPDIR/no; mv $D $D.other 2> $TMPDIR/no; done; "
        "cd $AIPASS_ROOT; touch .aipass/cache/b/x; ln $AIPASS_ROOT/b.txt $AIPASS_ROOT/.aipass/cache/a/b; true"
    )
    own.write("b.txt", "b")
    (own.root / ".aipass/cache/b").mkdir(parents=True)
    own.sandbox["wall"] = wall
    done = own.sh("a", script)
    assert done.exit == 0, done.err
    assert not (own.root / ".aipass/cache/b/x").exists()
    assert not (own.root / ".aipass/cache/a/b").exists()
    refused = {m["path"] for m in done.denied}
    assert {".aipass/cache/b/x", ".aipass/cache/a", ".aipass/agents/a"} <= refused
    assert (own.root / ".aipass/cache/a/z").exists()


# -- what was found in the fast path -------------------------------------------------------------------------------------


def test_a_verdict_about_a_folder_is_none_about_what_is_in_it_and_the_other_way_round(own):
    own.territory(2, free=None, b=["/lib/x/secret.txt"], docs=["*.md"], src=["/src/"])
    own.write("lib/x/secret.txt")
    own.write("src/f")
    script = "for i in 1 2 3; do touch lib/x; chmod 755 lib/x; touch lib/x/mine$i; done; (echo mine > lib/x/secret.txt); rm lib/x/secret.txt; mv lib/x/mine1 lib/x/secret.txt"
    done = own.sh("free", script)
    assert (own.root / "lib/x/secret.txt").read_text() == "foreign\n"
    assert set(done.paths) == {"lib/x/secret.txt"}
    own.sh("docs", "mkdir n.md; touch n.md; touch n.md; (echo x > n.md/evil.py); (echo x > n.md/good.md)")
    assert sorted(path.name for path in own.root.glob("n.md/*")) in (["good.md"], [])
    own.sh("src", "touch src/a src/b; rm -r src; (echo x > src)")
    assert not (own.root / "src").is_file()


def test_a_path_that_takes_the_most_room_in_the_journal_is_written_whole(own):
    code = """
import os
os.mkdir('dir'); os.chdir('dir')
name = chr(1) * 255
for _ in range(40):
    try: os.mkdir(name); os.chdir(name)
    except OSError: break
done = 0
for n in range(50):
    for width in (1, 100, 250):
        try:
            os.close(os.open(f'{n:03}' + chr(1) * width, os.O_WRONLY | os.O_CREAT)); done += 1
        except OSError: pass
print(done)
"""
    found = own.py("a", code)
    assert found.exit == 0
    assert len([line for line in found.journal if line[0] == "create"]) >= int(found.out)
    assert own.sh("a", "echo more > a.txt && echo yes").out == "yes\n"


def test_a_folder_that_is_moved_takes_nothing_along_that_was_made_meanwhile(own):
    """One thread moves a folder, another makes files in it: what arrives was judged."""
    own.territory(2, a=["/dir/", "/to/", "!/to/*/evil*"])
    code = """
import os, threading, time
os.makedirs('dir/big', exist_ok=True); os.makedirs('to', exist_ok=True)
for n in range(300): open(f'dir/big/f{n}', 'w').close()
ending = False
def make():
    n = 0
    while not ending:
        n += 1
        try: os.close(os.open(f'dir/big/evil.{n % 50}.txt', os.O_WRONLY | os.O_CREAT)); os.unlink(f'dir/big/evil.{n % 50}.txt')
        except OSError: pass
thread = threading.Thread(target=make); thread.start()
moved = 0
until = time.time() + 4
while time.time() < until:
    try: os.rename('dir/big', 'to/big'); moved += 1
    except OSError: continue
    seen = [name for name in os.listdir('to/big') if name.startswith('evil')]
    if seen: print('EVIL', seen)
    os.rename('to/big', 'dir/big')
ending = True; thread.join(); print('moved', moved)
"""
    found = own.py("a", code)
    assert found.exit == 0, found.err
    assert "EVIL" not in found.out
