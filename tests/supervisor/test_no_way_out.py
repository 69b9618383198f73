"""Ways out that outsiders found, and their siblings: each is tried by a program behind fence and wall, as root and as an ordinary user."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fence_kit import NO_FENCE, NO_WALL, OTHER_USER, SYSTEM_PYTHON, FenceHouse, no_other_user
from patience import until

from aipass.supervisor import mark
from aipass.supervisor.fence import kernel
from aipass.supervisor.fence.decide import Grant, Hold, leads_to_another
from aipass.supervisor.fence.fenced import MOST_TERMINALS, Fenced
from aipass.supervisor.fence.territory import Territory
from aipass.supervisor.refusals import Unheard

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(NO_FENCE), reason=NO_FENCE or "-"),
    pytest.mark.skipif(bool(NO_WALL), reason=NO_WALL or "-"),
]
USERS = [
    None,
    pytest.param(OTHER_USER, marks=pytest.mark.skipif(bool(no_other_user()), reason=no_other_user() or "-")),
]
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(params=USERS, ids=["as ourselves", "as another user"])
def house(request, monkeypatch):
    made = FenceHouse(monkeypatch, request.param)
    made.territory(a=["/a.txt", "/dir/"], b=["/b.txt", "/bdir/"], free=None, wide=["**"])
    yield made
    said = made.bugs()
    made.close()
    assert "bug" not in said, said


def tried(house, agent: str, code: str, *words: str) -> dict[str, str]:
    """What became of each attempt: `code` has functions named try_*; "done" or the error's name."""
    whole = (
        "import ctypes, errno, fcntl, json, mmap, os, signal, struct, sys, termios, time\n"
        "L = ctypes.CDLL(None, use_errno=True); L.syscall.restype = ctypes.c_long\n"
        "def call(n, *a):\n"
        "    r = L.syscall(ctypes.c_long(n), *[x if isinstance(x, (bytes, ctypes.Array)) or x is None else ctypes.c_long(x) for x in a])\n"
        "    if r < 0: raise OSError(ctypes.get_errno(), 'call')\n"
        "    return r\n"
        f"{code}\n"
        "found = {}\n"
        "for name, attempt in list(globals().items()):\n"
        "    if name.startswith('try_'):\n"
        "        try: attempt(); found[name[4:]] = 'done'\n"
        "        except OSError as exc: found[name[4:]] = errno.errorcode.get(exc.errno, str(exc))\n"
        "        except termios.error as exc: found[name[4:]] = errno.errorcode[exc.args[0]]\n"
        "print(json.dumps(found))\n"
    )
    done = house.py(agent, whole, *words)
    assert done.exit == 0, done.err
    return json.loads(done.out.splitlines()[-1])


X86 = sys.platform == "linux" and kernel.MACHINE == "x86_64"


@pytest.mark.skipif(not X86, reason="the numbers are x86_64's")
def test_other_programs_signals_keys_clocks_and_queues_are_out_of_reach(house):
    """Each call changes nothing where it gets through: the value that is there, or an object that does not exist."""
    code = """
def try_perf(): call(298, ctypes.create_string_buffer(struct.pack('=IIQQQQQ', 1, 120, 1, 1000, 0, 0, 0), 120), int(sys.argv[1]), -1, -1, 0)
def try_perf_of_its_own(): call(298, ctypes.create_string_buffer(struct.pack('=IIQQQQQ', 1, 120, 1, 1000, 0, 0, 0), 120), 0, -1, -1, 0)
def try_add_key(): call(248, b'user', b'x', b'y', 1, -4)
def try_keyctl_search(): call(250, 10, -4, b'user', b'x', 0)
def try_keyctl_join(): call(250, 1, None)
def try_request_key(): call(249, b'user', b'x', None, -4)
def try_adjtimex(): call(159, ctypes.create_string_buffer(400))
def try_clock_adjtime(): call(305, 0, ctypes.create_string_buffer(400))
def try_settimeofday(): call(164, None, None)
def try_syslog_console(): call(103, 8, None, 4)
def try_syslog_clear(): call(103, 5, None, 0)
def try_vhangup(): call(153)
def try_mq_open(): call(240, b'q', os.O_RDWR | os.O_CREAT, 0o600, None)
def try_mq_read(): call(240, b'q', os.O_RDONLY, 0, None)
def try_put_off_the_mark(): call(160, 15, struct.pack('QQ', 5, 5))
def try_put_off_the_mark_by_prlimit(): call(302, 0, 15, struct.pack('QQ', 5, 5), None)
def try_loop(): fcntl.ioctl(os.open('/dev/loop-control', os.O_RDONLY), 0x4C82)
def try_tun(): fcntl.ioctl(os.open('/dev/net/tun', os.O_RDONLY), 0x400454CA, bytes(40))
def try_console(): fcntl.ioctl(os.open('/dev/tty1', os.O_RDONLY | os.O_NOCTTY), 0x4B45, 99)
def try_interface():
    import socket
    s = socket.socket(); fcntl.ioctl(s, 0x8914, fcntl.ioctl(s, 0x8913, struct.pack('16sH14x', b'lo', 0)))
def try_module(): call(175, b'', 0, b'')
def try_sethostname(): call(170, b'x', 1)
"""
    found = tried(house, "a", code, str(os.getpid()))
    assert [name for name, how in found.items() if how == "done"] == []
    allowed = {"perf": "EACCES", "add_key": "ENOSYS", "keyctl_join": "ENOSYS", "mq_open": "ENOSYS", "put_off_the_mark": "EPERM", "put_off_the_mark_by_prlimit": "EPERM"}  # fmt: skip
    assert {name: found[name] for name in allowed} == allowed


IPC = """
SHM, SEM, MSG = (29, 30, 31), (64, 65, 66), (68, 69, 71)
shm, sem, msg = map(int, sys.argv[1:4])
L.shmat.restype = ctypes.c_void_p
def try_attach():
    if L.shmat(shm, None, 0) in (None, ctypes.c_void_p(-1).value): raise OSError(ctypes.get_errno(), '')
def try_remove_memory(): call(31, shm, 0, None)
def try_pin(): call(31, shm, 11, None)
def try_unpin(): call(31, shm, 12, None)
def try_set_memory(): call(31, shm, 1, ctypes.create_string_buffer(200))
def try_up(): call(65, sem, struct.pack('Hhh', 0, 1, 0), 1)
def try_timed(): call(220, sem, struct.pack('Hhh', 0, 1, 0), 1, None)
def try_set(): call(66, sem, 0, 16, 5)
def try_remove_semaphores(): call(66, sem, 0, 0)
def try_send(): call(69, msg, struct.pack('l8s', 1, b'x'), 1, 0o4000)
def try_receive(): call(70, msg, ctypes.create_string_buffer(100), 10, 0, 0o4000)
def try_remove_queue(): call(71, msg, 0, None)
"""
OWN_IPC = """
def try_own():
    m = call(29, 0, 4096, 0o1600); L.shmat.restype = ctypes.c_void_p
    at = L.shmat(m, None, 0); ctypes.memmove(at, b'mine', 4); call(31, m, 0, None)
    s = call(64, 0, 2, 0o1600); call(65, s, struct.pack('Hhh', 0, 1, 0), 1); call(66, s, 0, 16, 3); call(66, s, 0, 0)
    q = call(68, 0, 0o1600); call(69, q, struct.pack('l8s', 1, b'x'), 1, 0); call(70, q, ctypes.create_string_buffer(100), 10, 0, 0); call(71, q, 0, None)
def try_by_key():
    key = 0x41000000 | os.getpid(); m = call(29, key, 4096, 0o1600); assert call(29, key, 4096, 0o600) == m; call(31, m, 0, None)
def try_left_over(): print('left', call(29, 0, 4096, 0o1600))
"""


@pytest.mark.skipif(not X86, reason="the numbers are x86_64's")
def test_what_another_program_made_of_system_v_is_not_a_runs_and_its_own_ends_with_it(house):
    def as_user(code):
        words = (
            []
            if house.user is None
            else ["setpriv", f"--reuid={house.user}", f"--regid={house.user}", "--clear-groups"]
        )
        python = SYSTEM_PYTHON if house.user is not None else sys.executable
        return subprocess.run(
            [*words, python, "-c", "import ctypes; L = ctypes.CDLL(None)\n" + code],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()

    numbers = as_user("print(L.shmget(0, 4096, 0o1600), L.semget(0, 1, 0o1600), L.msgget(0, 0o1600))")
    try:
        found = tried(house, "a", IPC, *numbers)
        assert set(found.values()) == {"EACCES"}, found
        own = house.py(
            "a",
            "import ctypes, os, struct\nL = ctypes.CDLL(None, use_errno=True); L.syscall.restype = ctypes.c_long\n"
            "def call(n, *a):\n    r = L.syscall(ctypes.c_long(n), *[x if isinstance(x, (bytes, ctypes.Array)) or x is None else ctypes.c_long(x) for x in a])\n"
            "    if r < 0: raise OSError(ctypes.get_errno(), f'call {n}')\n    return r\n"
            + OWN_IPC
            + "\ntry_own(); try_by_key(); try_left_over()",
        )
        assert own.exit == 0, own.err
        left = int(own.out.split()[1])
        assert libc.shmctl(left, 2, ctypes.create_string_buffer(200)) == -1, "what a run leaves is removed"
        assert any("another program has made it" in m["reason"] for m in house.said if m["tell"] == "denied")
    finally:
        as_user(
            f"L.shmctl({numbers[0]}, 0, None); L.semctl({numbers[1]}, 0, 0); L.msgctl({numbers[2]}, 0, None)"
        )


TERMINAL = """
import array
def try_termios():
    t = termios.tcgetattr(f()); t[3] ^= termios.ECHO; termios.tcsetattr(f(), termios.TCSANOW, t)
def f(): return os.open(sys.argv[1], os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
def try_size(): fcntl.ioctl(f(), termios.TIOCSWINSZ, struct.pack('HHHH', 7, 7, 0, 0))
def try_stop(): termios.tcflow(f(), termios.TCOOFF)
def try_exclusive(): fcntl.ioctl(f(), termios.TIOCEXCL)
def try_type(): fcntl.ioctl(f(), termios.TIOCSTI, b'x')
def try_steal(): os.setsid() if os.getpid() != os.getsid(0) else None; fcntl.ioctl(f(), termios.TIOCSCTTY, 1)
def try_discipline(): fcntl.ioctl(f(), termios.TIOCSETD, struct.pack('i', 0))
def try_flush(): termios.tcflush(f(), termios.TCIOFLUSH)
def try_write(): os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_NOCTTY), b'x')
def try_mode(): os.chmod(sys.argv[1], 0o666)
def try_owner(): os.chown(sys.argv[1], -1, os.getgid())
def try_by_proc(): os.write(os.open(f'/proc/self/fd/{f()}', os.O_WRONLY | os.O_NOCTTY), b'x')
"""


@pytest.mark.skipif(
    bool(NO_WALL) or kernel.landlock_version() < 5, reason="Landlock knows control of devices from 5 on"
)
def test_the_users_terminal_is_nobodys_though_it_may_be_opened_to_read(house):
    ours, theirs = os.openpty()
    name = os.ttyname(theirs)
    if house.user is not None:
        os.chown(name, house.user, house.user)
    try:
        found = tried(house, "a", TERMINAL, name)
        assert [one for one, how in found.items() if how == "done"] == [], found
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_terminal_that_takes_the_number_within_a_tick_of_the_clock_is_anothers(tmp_path):
    run = Fenced(None, tmp_path, str(tmp_path), ())
    reused = 0
    for _ in range(200):
        mine, theirs = os.openpty()
        name, number = os.ttyname(theirs), os.minor(os.fstat(theirs).st_rdev)
        os.close(theirs)
        run.remember_terminal(number, os.open(name, os.O_PATH))
        held = os.open(name, os.O_PATH)
        assert run.is_own_terminal(number, held)
        os.close(held)
        os.close(mine)
        mine, theirs = os.openpty()
        held = os.open(os.ttyname(theirs), os.O_PATH)
        reused += os.ttyname(theirs) == name
        assert not run.is_own_terminal(os.minor(os.fstat(theirs).st_rdev), held)
        for one in (mine, theirs, held):
            os.close(one)
    assert reused > 10
    run.close()


def test_of_many_terminals_only_so_many_are_remembered(tmp_path):
    run = Fenced(None, tmp_path, str(tmp_path), ())
    pairs = [os.openpty() for _ in range(MOST_TERMINALS + 10)]
    for _, theirs in pairs:
        run.remember_terminal(os.minor(os.fstat(theirs).st_rdev), os.open(os.ttyname(theirs), os.O_PATH))
    assert len(run.terminals) == MOST_TERMINALS
    for pair in pairs:
        for one in pair:
            os.close(one)
    run.close()
    assert not run.terminals


def test_a_number_of_a_terminal_that_was_closed_is_not_its_next_ones(house):
    code = """
mine = [os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY) for _ in range(4)]
numbers = [struct.unpack('i', fcntl.ioctl(m, 0x80045430, bytes(4)))[0] for m in mine]
own = os.open(f'/dev/pts/{numbers[0]}', os.O_RDWR | os.O_NOCTTY) if fcntl.ioctl(mine[0], 0x40045431, struct.pack('i', 0)) is not None else -1
os.chmod(f'/dev/pts/{numbers[0]}', 0o600); os.close(os.open(f'/dev/pts/{numbers[0]}', os.O_RDWR | os.O_NOCTTY)); termios.tcgetattr(own)
for m in mine: os.close(m)
open(os.environ['TMPDIR'] + '/closed', 'w').close()
while not os.path.exists(os.environ['TMPDIR'] + '/go'): time.sleep(.01)
"""
    run = house.start(
        "a",
        house.python,
        "-c",
        "import fcntl, os, struct, sys, termios, time\n"
        + code
        + "\nos.write(os.open(open(os.environ['TMPDIR'] + '/go').read(), os.O_WRONLY | os.O_NOCTTY), b'x')",
    )
    place = Path(
        f"/tmp/aipass-{house.user if house.user is not None else os.geteuid()}/{house.base.name}-{run}"
    )
    until((place / "closed").exists)
    victims = [os.openpty() for _ in range(4)]
    try:
        (place / "go.tmp").write_text(os.ttyname(victims[0][1]))
        (place / "go.tmp").rename(place / "go")
        done = house.end(run)
        assert "Permission denied" in done.err, done
        os.set_blocking(victims[0][0], False)
        with pytest.raises(BlockingIOError):
            os.read(victims[0][0], 10)
    finally:
        for pair in victims:
            for one in pair:
                os.close(one)


@pytest.mark.parametrize(
    "move",
    [
        "os.rename(p, 'dir/final')",
        "os.link(p, 'dir/final')",
        "os.replace(p, 'a.txt')",
        "os.rename('a.txt', p + '-out')",
    ],
)
def test_what_lies_outside_does_not_move_into_the_tree_with_its_descriptors(house, move):
    """Another run may have it open, or mapped: `mv` copies instead, as between two disks."""
    house.write("a.txt", "old\n")
    house.own_all()
    code = f"""
import errno, os, shutil
os.makedirs('dir', exist_ok=True); p = '/tmp/fence-move-' + os.environ['AIPASS_RUN'] + '-' + str(os.getpid()); open(p, 'w').write('new')
try: {move}
except OSError as exc: assert exc.errno == errno.EXDEV, exc
else: raise SystemExit('it moved')
shutil.move(p, 'dir/moved'); print(open('dir/moved').read())
"""
    done = house.py("a", code)
    assert done.exit == 0, done.err
    assert done.out.strip() == "new"


HIDDEN = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, '-c', "import os, time; f = os.open('dir/x', os.O_RDWR | os.O_CREAT); print(flush=True)\\nfor i in range(2000): os.pwrite(f, b'hidden %d' % i, 0); time.sleep(.02)"], {})
    os._exit(0)
os.wait()
while not os.path.exists('dir/x'): time.sleep(.01)
print('hidden', flush=True); time.sleep(float(sys.argv[1]))
"""


def left_of(house, run: int) -> set[int]:
    return mark.bearers(mark.of(str(house.root), run))


@pytest.mark.parametrize("end", ["cancel", "its own end", "the supervisor is killed"])
@pytest.mark.slow
def test_a_process_that_hides_is_its_runs_and_ends_with_it(house, end):
    """Emptied environment, session of its own, no parent; and other runs live, whose it might be."""
    others = [house.start("b", house.python, "-c", "import time; print('other', flush=True); time.sleep(60)")]
    house.until_says(others[0], "other")
    (house.root / "dir").mkdir(exist_ok=True)
    house.own_all()
    run = house.start("a", house.python, "-c", HIDDEN, "0.3" if end == "its own end" else "60")
    house.until_says(run, "hidden")
    assert len(left_of(house, run)) >= (1 if end == "its own end" else 2)
    if end == "cancel":
        house.supervisors.stop_run(run, "cancelled", "enough")
        house.end(run)
    elif end == "its own end":
        house.end(run)
    else:
        os.kill(house.supervisor_pid(), signal.SIGKILL)
        house.wait(lambda message: message["tell"] == "gone")
        house.supervisors.adopt(run, "a")
        house.end(run)
    assert left_of(house, run) == set()
    if end != "the supervisor is killed":
        assert left_of(house, others[0]), "and nobody else's is ended"
        house.supervisors.stop_run(others[0], "cancelled", "enough")
        house.end(others[0])
    else:
        house.supervisors.adopt(others[0], "b")
        house.end(others[0])


def test_the_mark_is_of_the_root_and_the_run():
    assert mark.of("/a", 1) != mark.of("/a", 2) != mark.of("/b", 2)
    assert mark.of("/a", 1) >> 62 == 1
    assert mark.read(os.getpid()) is None
    with subprocess.Popen(["sleep", "30"]) as made:
        mark.put(made.pid, "/x", 7)
        assert mark.read(made.pid) == mark.of("/x", 7)
        assert mark.bearers(mark.of("/x", 7)) == {made.pid}
        made.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to lose")
def test_a_run_of_roots_has_what_a_container_has(monkeypatch):
    house = FenceHouse(monkeypatch)
    try:
        house.territory(a=["/dir/"])
        done = house.sh(
            "a",
            "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status; mkdir dir; echo 1 > dir/x; chown 1234 dir/x; chmod 4755 dir/x; stat -c '%u %a' dir/x",
        )
        lines = done.out.splitlines()
        for line in lines[:3]:
            assert int(line.split()[1], 16) & ~kernel.KEPT_CAPABILITIES == 0, line
        assert lines[3] == "1234 4755", "and acts on its own files as before"
    finally:
        house.close()


MODES = """
def try_close(): os.chmod(sys.argv[1], 0)
def try_read_only(): os.chmod(sys.argv[1], 0o500)
def try_hide(): os.chmod(sys.argv[1], 0o600)
def try_acl(): os.setxattr(sys.argv[1], 'system.posix_acl_default', struct.pack('<IHHIHHIHHI', 2, 1, 0, 0xffffffff, 4, 0, 0xffffffff, 32, 0, 0xffffffff))
def try_owner(): os.chown(sys.argv[1], os.getuid(), os.getgid())
def try_by_descriptor(): os.fchmod(os.open(sys.argv[1], os.O_RDONLY), 0)
"""


@pytest.mark.parametrize("folder", ["services", "services/api", "held"])
def test_a_folder_that_leads_to_anothers_files_stays_open(house, folder):
    house.territory(2, helper=None, api=["services/api/"], other=None)
    house.write("services/api/x.py")
    house.write("held/y", "y")
    house.own_all()
    holder = house.start("other", "sh", "-c", "echo mine > held/z; echo ready; sleep 60")
    house.until_says(holder, "ready")
    found = tried(house, "helper", MODES, folder)
    assert [name for name, how in found.items() if how == "done"] == [], found
    assert (
        house.sh(
            "helper",
            f"mkdir -p new; chmod 700 new; chmod 0 new; chmod 755 new; touch -d 2001-01-01 {folder if folder != 'services/api' else 'new'}",
        ).exit
        == 0
    )
    house.supervisors.stop_run(holder, "cancelled", "enough")
    house.end(holder)
    assert (house.root / folder).stat().st_mode & 0o700 == 0o700


@pytest.mark.parametrize(
    ("folder", "held", "made", "other"),
    [
        ("services", {}, (), "api"), ("services/api", {}, (), "api"), ("services/api/deep", {}, (), "api"), ("docs", {}, (), None), ("docs", {"docs/x": 2}, (), "two"),
        ("docs", {"docs/x": 1}, (), None), ("docs", {"docs2/x": 2}, (), None), ("services", {}, ("services",), None), ("", {"x": 2}, (), "two"),
    ],
)  # fmt: skip
def test_whom_a_folder_leads_to(folder, held, made, other):
    agents = {
        "one": {"home": "h1", "owns": None},
        "api": {"home": "h2", "owns": ["services/api/"]},
        "two": {"home": "h3", "owns": None},
    }
    holds = {path: Hold(run, "one" if run == 1 else "two", 0.0) for path, run in held.items()}
    grant = Grant(1, "one", Territory.of({"agents": agents}), holds, made=set(made))
    assert leads_to_another(grant, folder) == other


GIT = {
    "bare": "git init -q --bare {0}", "piece by piece": "mkdir -p {0}/objects {0}/refs; echo 'ref: refs/heads/main' > {0}/HEAD",
    "head last": "mkdir -p {0}/refs {0}/objects; echo 'ref: x' > {0}/../x; cp {0}/../x {0}/HEAD", "a worktree's": "mkdir -p {0}; echo .. > {0}/commondir; echo 'ref: refs/heads/main' > {0}/HEAD",
    "by rename of its parts": "mkdir -p {0}/o {0}/r {0}/h; mv {0}/o {0}/objects; mv {0}/r {0}/refs; echo 'ref: x' > {0}/h/x; mv {0}/h/x {0}/HEAD",
    "as a folder that is moved in": "mkdir -p {0}-x/s/objects {0}-x/s/refs; echo 'ref: x' > {0}-x/s/HEAD; mv {0}-x/s {0}", "by links": "mkdir -p {0} {0}-o; ln -s ../o {0}/objects; ln -s ../o {0}/refs; ln -s x {0}/HEAD",
    "through a link to its folder": "mkdir -p {0}; ln -s x {0}-l; mkdir -p {0}/objects {0}/refs; echo x > {0}-l/HEAD || echo x > {0}/HEAD", "exchanged": "mkdir -p {0}/objects {0}/refs; echo 'ref: x' > {0}/x; mv {0}/x {0}/HEAD",
    "cp -r of one in the temporary folder": "git init -q --bare $TMPDIR/g; mkdir -p dir; cp -r $TMPDIR/g {0}",
}  # fmt: skip


@pytest.mark.parametrize("how", GIT)
def test_no_agent_makes_a_git_folder_under_any_name(house, how):
    done = house.sh("wide", GIT[how].format("dir/store"))
    store = house.root / "dir/store"
    is_one = all(os.path.lexists(store / name) for name in ("HEAD", "objects", "refs")) or all(
        os.path.lexists(store / name) for name in ("HEAD", "commondir")
    )
    assert not is_one, f"{done.out}{done.err}"
    assert done.paths, "and it is told"


def test_a_git_folder_of_a_persons_is_nobodys_under_any_name(house):
    subprocess.run(["git", "init", "-q", "--bare", str(house.root / "vendor/.bare")], check=True)
    house.own_all()
    attempts = {
        "config": "echo x >> vendor/.bare/config", "hook": "echo x > vendor/.bare/hooks/post-commit", "attributes": "echo x > vendor/.bare/info/attributes", "lock": "echo x > vendor/.bare/config.lock; mv vendor/.bare/config.lock vendor/.bare/config",
        "ref": "echo x > vendor/.bare/refs/heads/x", "move": "mv vendor/.bare vendor/mine", "by git": "git --git-dir=vendor/.bare config core.fsmonitor x", "remove": "rm -r vendor/.bare/hooks", "mode": "chmod 777 vendor/.bare/hooks/*", "case": "echo x > vendor/.bare/Config; false",
    }  # fmt: skip
    before = sorted(
        (str(path), path.read_bytes() if path.is_file() else b"")
        for path in (house.root / "vendor/.bare").rglob("*")
    )
    for name, script in attempts.items():
        done = house.sh("wide", script)
        assert done.exit != 0, name
    after = sorted(
        (str(path), path.read_bytes() if path.is_file() else b"")
        for path in (house.root / "vendor/.bare").rglob("*")
    )
    assert after == before


def test_bytecode_beside_a_module_is_nobodys(house):
    house.write("bdir/app.py", "answer = 42\n")
    house.write("pkg/mod.py", "x = 1\n")
    house.own_all()
    for agent in ("a", "free", "wide"):
        done = house.sh(
            agent,
            "mkdir -p bdir/__pycache__ pkg/__pycache__ 2>&1; echo x > pkg/__pycache__/mod.cpython-311.pyc; echo x > bdir/__pycache__/app.cpython-311.pyc",
        )
        assert done.exit != 0
    assert not (house.root / "pkg/__pycache__").exists() or not list(
        (house.root / "pkg/__pycache__").iterdir()
    )


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="only root mounts")
def test_one_disk_at_two_places_of_the_tree_is_written_at_neither(monkeypatch):
    house = FenceHouse(monkeypatch)
    places = [house.root / "dir/disk", house.root / "bdir/disk"]
    try:
        house.territory(a=["/dir/"], b=["/bdir/"])
        for place in places:
            place.mkdir(parents=True)
        if subprocess.run(
            ["mount", "-t", "tmpfs", "none", str(places[0])], check=False, capture_output=True
        ).returncode:
            pytest.skip("nothing can be mounted here")
        assert house.sh("a", "echo 1 > dir/disk/x").exit == 0, "one place is fine"
        subprocess.run(["mount", "--bind", str(places[0]), str(places[1])], check=True)
        done = house.sh("a", "echo 2 > dir/disk/x")
        assert done.exit != 0
        assert "mounted at another place" in done.denied[0]["reason"]
    finally:
        for place in places[::-1]:
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
        house.close()


def test_what_is_refused_while_no_engine_listens_is_told_later_all_of_it():
    unheard = Unheard(100)
    for number in range(1000):
        unheard.append({"tell": "denied", "run": 1, "path": f"b/{number}", "reason": "it is b's", "count": 1})
    unheard.append({"tell": "denied", "run": 2, "path": "THE-ONE", "reason": "it is c's", "count": 3})
    for number in range(300):
        unheard.append({"tell": "stalled", "run": 1, "number": number})
    told = []
    while unheard:
        told.append(unheard.popleft())
    denied = [one for one in told if one["tell"] == "denied"]
    assert [one["path"] for one in denied[:100]] == [f"b/{number}" for number in range(100)]
    assert sum(one["count"] for one in denied) == 1003
    assert any(one["path"] == "THE-ONE" and one["count"] == 3 for one in denied)
    assert "one of 900 further refusals" in denied[-1]["reason"]
    assert [one["number"] for one in told if one["tell"] == "stalled"] == list(range(200, 300))
