"""Taking files from a living run while another becomes their owner: nothing foreign comes, nothing is lost, nobody hangs."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from fence_kit import NO_FENCE, OTHER_USER, FenceHouse, no_other_user

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}"),
]
#: What the little programs here begin with.
START = """
import errno, os, sys, time
def until(name):
    while not os.path.exists(os.environ['TMPDIR'] + '/' + name): time.sleep(0.005)
def say(*words): print(*words, flush=True)
def insist(what):
    while True:
        try: return what()
        except PermissionError: pass
"""


@pytest.fixture
def own(monkeypatch):
    """A house of this user's."""
    made = FenceHouse(monkeypatch)
    made.territory(a=["/dir/"], b=["/b.txt"])
    yield made
    said = made.bugs()
    made.close()
    assert said == "", said


@pytest.fixture
def others(monkeypatch):
    """A house of an ordinary user's."""
    if reason := no_other_user():
        pytest.skip(reason)
    made = FenceHouse(monkeypatch, OTHER_USER)
    made.territory(a=["/dir/"], b=["/b.txt"])
    yield made
    made.close()


def go(house, run, name="go"):
    """Let a run go on that waits for this."""
    user = house.user if house.user is not None else os.geteuid()
    Path(f"/tmp/aipass-{user}/{house.base.name}-{run}/{name}").touch()


def begin(house, agent, code, says="ready"):
    run = house.start(agent, house.python, "-c", START + code)
    house.until_says(run, says)
    return run


def hand_over(house, serial=2):
    """What was a's is b's."""
    return house.territory(serial, a=["/a.txt"], b=["/dir/", "/elsewhere/"])


@pytest.mark.parametrize(
    "how",
    [
        "with open('dir/big', 'r+b') as f: f.seek(16 * n); f.write(b'%016d' % n)",
        "os.truncate('dir/big', size - n)",
        "os.chmod('dir/big', 0o600 | n)",
        "os.link('dir/big', f'dir/name{n}')",
        "os.rename('dir/big', 'dir/moved')",
        "os.rename('dir', 'elsewhere')",
    ],
    ids=["write", "truncate", "chmod", "link", "rename", "rename its folder"],
)
def test_what_the_new_owner_does_while_a_file_is_taken_away_holds(own, how):
    """It waits for the copy: otherwise what it did would be done to the old writers' file, and go with that."""
    size = 200_000_000
    path = own.write("dir/big", "")
    with path.open("wb") as file:
        for _ in range(size // 1_000_000):
            file.write(bytes(1_000_000))
    inode = path.stat().st_ino
    code = (
        "import os, sys\n"
        "with open('dir/big', 'r+b') as old:\n"
        " print('ready', flush=True)\n"
        " while not os.path.exists(os.environ['TMPDIR'] + '/go'): pass\n"
        " old.write(b'x' * 16)\n"
    )
    old = own.start("a", own.python, "-c", code)
    own.until_says(old, "ready")
    code = (
        "import os\n"
        f"size = {size}\n"
        "print('ready', flush=True)\n"
        "done = []\n"
        "while len(done) < 20:\n"
        " try:\n"
        "  n = len(done) + 1\n"
        f"  {how}\n"
        "  done.append(n)\n"
        " except PermissionError: pass\n"
        " except FileNotFoundError: break\n"
        "print(done[-1])\n"
    )
    new = own.start("b", own.python, "-c", code)
    own.until_says(new, "ready")
    assert own.territory(2, a=["/a.txt"], b=["/dir/", "/elsewhere/"])["replaced"] == ["dir/big"]
    done = own.end(new)
    go(own, old)
    assert own.end(old).exit == 0
    assert done.exit == 0, done.err
    count = int(done.out.split()[-1])
    moved = {1: own.root / "dir/moved"}.get(count, path) if "rename('dir/big'" in how else path
    path = own.root / "elsewhere/big" if "elsewhere" in how else moved
    assert path.stat().st_ino != inode
    content = path.read_bytes()
    assert content[:16] == bytes(16)
    match how.partition("(")[0]:
        case "with open":
            assert content[16 : 16 * 21] == b"".join(b"%016d" % n for n in range(1, 21))
        case "os.truncate":
            assert len(content) == size - 20
        case "os.chmod":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600 | 20
        case "os.link":
            assert path.stat().st_nlink == 21
    assert own.bugs() == ""


def test_a_file_that_was_made_nameless_in_an_own_folder_gets_no_name_in_the_tree(own):
    """Its descriptor says for ever that it lies in the own folder, where the run may write."""
    own.write("dir/keep", "")
    code = """
cache = os.environ['AIPASS_ROOT'] + '/.aipass/cache/a'
made = os.open(cache, os.O_TMPFILE | os.O_RDWR, 0o644)
try: os.link(f'/proc/self/fd/{made}', 'x', dst_dir_fd=os.open('dir', os.O_RDONLY), follow_symlinks=True)
except OSError as exc: say(errno.errorcode[exc.errno])
"""
    done = own.py("a", START + code)
    assert done.out.strip() == "EXDEV", done.err
    made = "made = os.open('dir', os.O_TMPFILE | os.O_RDWR, 0o644); os.write(made, b'x')\n"
    done = own.py(
        "a",
        START
        + made
        + "os.link(f'/proc/self/fd/{made}', 'y', dst_dir_fd=os.open('dir', os.O_RDONLY), follow_symlinks=True)",
    )
    assert done.exit == 0, done.err
    assert (own.root / "dir/y").read_text() == "x"


def test_a_rename_to_the_same_name_makes_nothing_the_runs_for_good(own):
    own.write("dir/x", "a's\n")
    reopen = """
try:
    os.write(os.open(f'/proc/self/fd/{held}', os.O_WRONLY | os.O_APPEND), b'FOREIGN'); say('went')
except OSError as exc: say(errno.errorcode[exc.errno])
"""
    code = "os.rename('dir/x', 'dir/x'); held = os.open('dir/x', os.O_RDONLY); say('ready'); until('go')\n"
    old = begin(own, "a", code + reopen)
    hand_over(own)
    code = "held = os.open('dir/x', os.O_RDWR); os.unlink('dir/x'); say('ready'); until('go'); say(os.pread(held, 99, 0))"
    new = begin(own, "b", code)
    go(own, old)
    assert own.end(old).out.split()[-1] == "EACCES"
    go(own, new)
    assert "FOREIGN" not in own.end(new).out


def test_nobody_opens_what_a_run_keeps_before_that_run_is_gone(own):
    own.write("dir/x", "old\n")
    code = """
import signal
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)
held = os.open('dir/x', os.O_WRONLY); say('ready')
while True: os.pwrite(held, b'FOREIGN\\n', 0); time.sleep(0.001)
"""
    old = begin(own, "a", code)
    (own.root / ".aipass/handover").write_text("in the way")
    code = """
say('ready')
held = insist(lambda: os.open('dir/x', os.O_RDWR | os.O_TRUNC))
os.pwrite(held, b"b's", 0); time.sleep(1); say(os.pread(held, 99, 0))
"""
    new = begin(own, "b", code)
    hand_over(own)
    assert own.end(new).out.split("\n")[1] == repr(b"b's")
    assert [(m["run"], m["path"]) for m in own.said if m["tell"] == "kept"] == [(old, "dir/x")]


def test_what_cannot_be_looked_at_is_kept_and_not_gone(others):
    others.write("dir/up/sub/x", "a's\n")
    others.own_all()
    code = "held = os.open('dir/up/sub/x', os.O_WRONLY | os.O_APPEND); os.chmod('dir/up', 0); say('ready'); until('go')"
    old = begin(others, "a", code)
    hand_over(others)
    record = next(m for m in others.said if m["tell"] == "ended" and m["run"] == old)
    assert record["outcome"] == "cancelled"
    assert "could not be taken from it: Permission denied" in record["reason"]
    done = others.sh("b", "chmod 755 dir/up && echo b >> dir/up/sub/x")
    assert done.exit == 0, done.err


def test_a_socket_in_a_lost_folder_is_no_reason_to_stop_a_run(own):
    own.write("dir/keep", "")
    code = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('dir/sock'); say('ready'); until('go'); say('done')"
    run = begin(own, "a", code)
    hand_over(own)
    go(own, run)
    assert own.end(run).out.split() == ["ready", "done"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler here")
def test_signals_do_not_show_to_calls_that_wait_for_a_hand_over(own):
    """A call that the kernel never interrupts ends by itself, in every thread, whatever handlers there are."""
    path = own.write("dir/big", "")
    with path.open("wb") as file:
        for _ in range(400):
            file.write(bytes(1_000_000))
    source = own.base / "waits.c"
    source.write_text(WAITS)
    program = own.base / "waits"
    subprocess.run(["cc", "-O1", "-pthread", "-o", program, source], check=True)
    old = begin(own, "a", "held = os.open('dir/big', os.O_WRONLY); say('ready'); until('go')")
    new = own.start("b", str(program))
    own.until_says(new, "ready")
    assert hand_over(own)["replaced"] == ["dir/big"]
    done = own.end(new)
    go(own, old)
    own.end(old)
    assert sorted(done.out.splitlines()[1:]) == ["main 0", "thread 0"]


WAITS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static void on(int s) {}
static void *act(void *who) {
  int failed;
  while ((failed = chmod("dir/big", 0640) ? errno : 0) == EACCES) ;
  printf("%s %d\n", (char *)who, failed); fflush(stdout);
  return 0;
}
int main(void) {
  struct sigaction to; memset(&to, 0, sizeof to); to.sa_handler = on; to.sa_flags = SA_RESTART; sigaction(SIGUSR1, &to, 0);
  pthread_t thread; pid_t me = getpid();
  if (!fork()) { for (int i = 0; i < 4000; i++) { usleep(1000); if (kill(me, SIGUSR1)) break; } _exit(0); }
  printf("ready\n"); fflush(stdout);
  pthread_create(&thread, 0, act, "thread");
  act("main");
  pthread_join(thread, 0);
}
"""


def test_a_folder_is_moved_as_fast_while_thousands_of_files_are_taken_away(own):
    own.territory(2, a=["/dir/"], d=["/d/"])
    (own.root / "dir").mkdir()
    for number in range(1000):
        own.write(f"d/one/{number}", "")
    code = """
for number in range(5000): os.close(os.open(f'dir/file-number-{number}', os.O_WRONLY | os.O_CREAT))
say('ready'); until('go')
"""
    old = begin(own, "a", code)
    code = """
say('ready'); until('go')
before = time.monotonic(); os.rename('d/one', 'd/two'); alone = time.monotonic() - before
say('once'); until('again')
before = time.monotonic(); os.rename('d/two', 'd/one'); say((time.monotonic() - before) / alone)
"""
    mover = begin(own, "d", code)
    go(own, mover)
    own.until_says(mover, "once")
    table = {
        name: {"home": f".aipass/agents/{name}", "owns": owns}
        for name, owns in (("b", ["/dir/"]), ("d", ["/d/"]), ("a", []))
    }
    own.supervisors.set_territory(
        {"serial": 3, "table": {"agents": table, "scratch": [], "temp": [], "phases": []}, "handed": []}
    )
    go(own, mover, "again")
    slower = float(own.end(mover).out.split()[-1])
    go(own, old)
    own.end(old)
    # It used to be a hundred times; a busy machine makes it a few.
    assert slower < 30


def test_a_sign_in_may_be_written_and_nothing_else_of_it(own):
    """What lies beside it, and what could be put in its place, is the user's alone: the next run is granted what stands there."""
    home = own.base / "user"
    home.mkdir()
    (own.root / "dir").mkdir()
    sign_in, other = home / "auth.json", home / "auth.json.work"
    sign_in.write_text("old")
    other.write_text("another account's")
    code = f"""
ROOT = os.environ['AIPASS_ROOT']
os.chdir({str(home)!r})
open('auth.json', 'w').write('refreshed')
def attempt(what):
    try: what(); say('DONE', what)
    except OSError as exc: say(errno.errorcode[exc.errno])
attempt(lambda: open('auth.json.work', 'w'))
attempt(lambda: open('auth.json.tmp', 'w'))
attempt(lambda: os.unlink('auth.json'))
attempt(lambda: os.rename('auth.json', 'gone'))
attempt(lambda: os.symlink('/etc/passwd', 'auth.json.lock'))
attempt(lambda: os.link('auth.json', 'second'))
attempt(lambda: os.link('auth.json', ROOT + '/dir/second'))
open(ROOT + '/dir/plain', 'w').close()
os.symlink('/etc/passwd', ROOT + '/dir/link')
for name in ('plain', 'link'): attempt(lambda: os.rename(ROOT + '/dir/' + name, 'auth.json'))
attempt(lambda: os.mkdir('auth.json.d'))
"""
    done = own.py("a", START + code, files=[str(sign_in)])
    assert done.exit == 0, done.err
    assert "DONE" not in done.out
    assert sorted(path.name for path in home.iterdir()) == ["auth.json", "auth.json.work"]
    assert (sign_in.read_text(), other.read_text()) == ("refreshed", "another account's")
    os.link(sign_in, home / "second")
    again = own.py("a", "open(" + repr(str(sign_in)) + ", 'w')", files=[str(sign_in)])
    assert "ermission denied" in again.err, "a file of two names may be something else's"
