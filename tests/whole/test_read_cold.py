"""What a cold reading of the code found: each by a test of the rule that was broken."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time

import pytest
from fence_kit import NO_FENCE, NO_WALL, FenceHouse
from git_kit import GitBench
from patience import PATIENCE, until
from repository import agent

from aipass.cli import doctor
from aipass.config import reading
from aipass.core.notices import Notice, Notices
from aipass.errors import AipassError
from aipass.features.dispatch.supervisors import connect
from aipass.features.ownership import advice, confine, guarded
from aipass.git import filters
from aipass.git.ref_changes import ReflogEntry, _marks
from aipass.sources import home, inotify
from aipass.sources.filesystem import Filesystem
from aipass.sources.home import Home
from aipass.sources.observation import Seen
from aipass.supervisor import held, lockers, process, wire
from aipass.testing import Bench
from aipass.workspace.layout import Layout

pytestmark = pytest.mark.slow

linux = pytest.mark.skipif(sys.platform != "linux", reason="it is about Linux")
fenced = pytest.mark.skipif(bool(NO_FENCE or NO_WALL), reason=NO_FENCE or NO_WALL or "-")
TOML = '[agents.w]\ndriver = "command"\ncommand = ["cat"]\n'


def test_without_proc_every_process_reads_the_same_time_of_birth():
    code = "import os, sys; from aipass.supervisor import process; print(process._table_by_ps()[int(sys.argv[1])].start)"
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(os.getpid())],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert process._table_by_ps()[os.getpid()].start == int(said.pop())


# -- git's lock, and the tree ------------------------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path):
    root = tmp_path / "r"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    seen = []
    source = Filesystem(root, baseline=True)
    source.start(seen.extend)
    source._watched.emitter.settled.wait(PATIENCE)
    yield root, seen, source
    source.stop()


def by_git(root, seen, name):
    (root / name).write_text("x")
    done = until(
        lambda: [one for one in seen if isinstance(one, Seen) and one.path == name and one.complete],
        lambda: seen,
    )
    return done[0].git


@linux
def test_a_lock_of_git_counts_while_git_has_it_open(watched):
    """`git commit` leaves its lock while the editor is open, and a killed git for ever: what is saved then is no git's."""
    root, seen, _ = watched
    lock = root / ".git/index.lock"
    with lock.open("w") as file:
        file.write("half")
        file.flush()
        time.sleep(0.2)
        assert by_git(root, seen, "a") is True
    time.sleep(0.3)
    assert by_git(root, seen, "b") is False
    lock.unlink()
    with lock.open("w"):
        assert by_git(root, seen, "c") is True, "the next git counts again"


@linux
def test_scans_that_are_asked_for_many_times_are_made_once(watched, monkeypatch):
    root, _, source = watched
    emitter = source._watched.emitter
    reasons = []
    scan = emitter._scan
    monkeypatch.setattr(
        emitter, "_scan", lambda top, reason: (reasons.append(reason), time.sleep(0.05), scan(top, reason))
    )
    ignore = root / ".gitignore"
    for number in range(60):
        ignore.write_text(f"{number}\n")
    time.sleep(0.3)
    assert 1 <= reasons.count("ignore") < 30
    before = len(reasons)
    for _ in range(20):
        ignore.chmod(0o600)
        ignore.chmod(0o644)
    time.sleep(0.3)
    assert len(reasons) == before, "a mode is no other content"


@linux
def test_who_asks_for_a_scan_after_the_end_writes_into_no_other_file(tmp_path):
    source = Filesystem(tmp_path, baseline=True)
    source.start(lambda _: None)
    emitter = source._watched.emitter
    source.stop()
    numbers = [os.open(tmp_path / f"f{n}", os.O_RDWR | os.O_CREAT) for n in range(64)]
    emitter.ask_scan("", "asked")
    assert [os.fstat(number).st_size for number in numbers] == [0] * 64
    for number in numbers:
        os.close(number)


def test_a_home_that_cannot_be_watched_is_looked_for(tmp_path, monkeypatch):
    def none(self, path, mask=0):
        raise inotify.WatchLimitError(errno.ENOSPC, "no watches")

    monkeypatch.setattr(inotify.Inotify, "add", none)
    monkeypatch.setattr(home, "LOOK_S", 0.02)
    layout = Layout(tmp_path / "r")
    layout.state.mkdir(parents=True)
    told = []
    source = Home(layout)
    source.start(told.extend)
    layout.root.rename(tmp_path / "away")
    until(lambda: told)
    source.stop()


def test_the_same_move_twice_within_a_second_is_two():
    entries = tuple(
        ReflogEntry(str(n % 2), str((n + 1) % 2), 7.0, "checkout: moving from a to b") for n in range(6)
    )
    assert len(set(_marks(entries))) == 6
    assert _marks(entries)[:4] == _marks(entries[:4]), "what is known stays known by the same"


# -- what is guarded ---------------------------------------------------------------------------------------------------


def guards(root, text):
    (root / "aipass.toml").write_text(text)
    layout = Layout(root)
    return guarded.of(layout, reading.load(layout.config)).tree


def test_a_program_is_guarded_where_the_runs_own_path_finds_it(tmp_path):
    tool = tmp_path / "tools/mytool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    text = (
        f'[agents.w]\ndriver = "command"\ncommand = ["mytool"]\nenv = {{ PATH = "{tool.parent}:/usr/bin" }}\n'
    )
    assert "tools/mytool" in guards(tmp_path, text)
    layout = Layout(tmp_path)
    assert not list(advice._of_agents(layout, reading.load(layout.config)))
    assert [one.found for one in doctor._repository(layout) if one.what == "agent w"] == [str(tool)]


def test_a_path_that_comes_from_the_shell_is_read_there(tmp_path, monkeypatch):
    text = '[agents.w]\ndriver = "command"\ncommand = ["sh"]\nenv = { PATH = { from_env = "MY_PATH" } }\n'
    monkeypatch.setenv("MY_PATH", "/usr/bin:/bin")
    assert not list(advice._of_agents(Layout(tmp_path), reading.parse(text)))


def test_a_module_that_is_not_there_yet_is_nobodys_to_make(tmp_path):
    found = guards(tmp_path, '[agents.w]\ndriver = "command"\ncommand = ["python3", "-m", "mytool.sub"]\n')
    assert {"mytool/__init__.py", "mytool/sub/__main__.py", "mytool/sub.py"} <= found.keys()


@pytest.mark.parametrize(
    ("owns", "warned"),
    [("src/agent.py", False), ("agent.py", True), ("/agent.py", True), ('*.py", "!/agent.py', False)],
)
def test_a_warning_is_of_what_may_really_be_written(tmp_path, owns, warned):
    for path in ("agent.py", "src/agent.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    (tmp_path / "aipass.toml").write_text(
        f'[agents.w]\ndriver = "command"\ncommand = ["python3", "agent.py"]\nowns = ["{owns}"]\n'
    )
    layout = Layout(tmp_path)
    assert (
        any("agent.py" in text for text in guarded.warnings(layout, reading.load(layout.config), fenced=True))
        is warned
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("core.sshCommand", "tools/x.sh -v"),
        ("credential.helper", "!tools/x.sh"),
        ("gpg.program", "./tools/x.sh"),
        ("filter.f.clean", "sh tools/x.sh"),
        ("alias.go", "!sh tools/x.sh"),
        ("diff.d.textconv", "$PWD/tools/x.sh"),
        ("filter.f.smudge", '"$(git rev-parse --show-toplevel)"/tools/x.sh'),
        ("filter.f.process", "cd tools && ./x.sh"),
        *((name, "tools/x.sh") for name in (
            "interactive.diffFilter", "difftool.d.cmd", "difftool.d.path", "mergetool.m.cmd", "trailer.t.cmd", "trailer.t.command",
            "gpg.ssh.defaultKeyCommand", "tar.t.command", "remote.origin.uploadpack", "remote.origin.receivepack", "core.gitProxy",
            "sendemail.tocmd", "browser.b.cmd", "guitool.g.cmd", "uploadpack.packObjectsHook", "core.alternateRefsCommand",
            "merge.m.driver", "rebase.instructionFormat", "some.future.setting",
        )),
    ],
)  # fmt: skip
def test_what_git_starts_out_of_the_tree_is_nobodys(tmp_path, name, value):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/x.sh").write_text("#!/bin/sh\n")
    (tmp_path / "tools/x.sh").chmod(0o755)
    subprocess.run(["git", "config", name, value], cwd=tmp_path, check=True)
    assert "tools/x.sh" in guards(tmp_path, TOML)


@pytest.mark.parametrize(
    ("command", "unsafe"),
    [
        ("git-lfs clean -- %f", False), ("sed -e s/a/b/ -e 's/$Id$/x/'", False), ("$(git rev-parse --show-toplevel)/tools/f", True), ("`pwd`/tools/f", True), ("sed -e s/a/b/", False), ("/usr/bin/openssl enc -k x", False), ("cat", False),
        ("tools/f %f", True), ("sh tools/f", True), ("~/r/tools/f", True), ("$HOME/r/tools/f", True), ("${HOME}/r/tools/f %f", True), ("$PWD/tools/f", True),
        ("cd tools && sh f", True), ("eval \"$X\"", True), ("sh tools/not-there-yet", True), ("$WHERE/f", True), ("~/elsewhere/f", False),
    ],
)  # fmt: skip
def test_a_filter_is_started_only_where_it_is_certain_that_it_lies_elsewhere(
    tmp_path, monkeypatch, command, unsafe
):
    monkeypatch.setenv("HOME", str(tmp_path))
    bench = GitBench(tmp_path / "r", {"tools/f": "#!/bin/sh\n"})
    found = filters.judged([f"filter.f.clean\n{command}"], bench.root, bench.top, trusted=["f"])
    assert bool(found.unsafe) is unsafe


@fenced
def test_no_run_makes_what_speaks_for_all_folders_below_a_shared_one(monkeypatch):
    house = FenceHouse(monkeypatch)
    house.territory(a=[])
    names = [
        ".envrc",
        "conftest.py",
        ".git",
        "HEAD",
        "aipass.toml",
        "package.json",
        ".npmrc",
        f"fine-{os.getpid()}",
    ]
    code = "import os, sys\nfor name in sys.argv[2:]:\n  for make in (lambda p: os.close(os.open(p, os.O_CREAT | os.O_WRONLY | os.O_EXCL)), os.mkdir):\n    try: make(sys.argv[1] + name); print(name, 'made')\n    except OSError as exc: print(name, exc.errno)\n"
    for top in ("/dev/shm/", "/tmp/", "/var/tmp/"):
        there = [name for name in names if os.path.lexists(top + name)]
        done = house.py("a", code, top, *[name for name in names if name not in there])
        made = [line for line in done.out.splitlines() if line.endswith("made")]
        for line in made:
            place = top + line.split()[0]
            os.rmdir(place) if os.path.isdir(place) else os.unlink(place)
        assert [line.split()[0] for line in made] == [names[-1]], done
    below = house.py(
        "a",
        f"import os\nos.makedirs('/dev/shm/mine-{os.getpid()}/x/.git'); open('/dev/shm/mine-{os.getpid()}/x/package.json', 'w').close(); print('made')",
    )
    assert below.out == "made\n", below
    subprocess.run(["rm", "-rf", f"/dev/shm/mine-{os.getpid()}"], check=True)
    house.close()


# -- engine and supervisor ---------------------------------------------------------------------------------------------

SANDBOXED = """
import ctypes, fcntl, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
class Filter(ctypes.Structure): _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]
class Program(ctypes.Structure): _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]
allow = Filter(0x06, 0, 0, 0x7fff0000)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(Program(1, ctypes.pointer(allow)))) == 0
handle = open(sys.argv[1], "rb")
fcntl.fcntl(handle, fcntl.F_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 1, 0))
print("locked", flush=True); time.sleep(60)
"""


@linux
def test_a_program_of_the_persons_in_a_sandbox_of_its_own_is_no_run(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    viewer = subprocess.Popen([sys.executable, "-c", SANDBOXED, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert viewer.stdout.readline() == "locked\n"
        assert lockers._having({path.stat().st_ino: {(path.stat().st_dev, path.stat().st_ino)}}) == {
            viewer.pid
        }
        assert lockers.end_of_runs(path) == []
        assert viewer.poll() is None
    finally:
        viewer.kill()
        viewer.wait()
        viewer.stdout.close()


@linux
def test_a_file_of_another_disk_with_the_same_number_is_not_the_locked_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    viewer = subprocess.Popen([sys.executable, "-c", SANDBOXED, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert viewer.stdout.readline() == "locked\n"
        number = path.stat().st_ino
        assert lockers._having({number: {(path.stat().st_dev + 1, number)}}) == set()
    finally:
        viewer.kill()
        viewer.wait()
        viewer.stdout.close()


def test_nothing_is_lost_where_nobody_can_be_asked_who_locks_the_ledger(tmp_path, monkeypatch):
    from aipass.errors import LedgerError

    bench = Bench(tmp_path, TOML)
    engine = bench.engine
    commit = engine._commit

    def locked(*_):
        error = LedgerError("locked")
        error.locked = True
        raise error

    monkeypatch.setattr(engine, "_commit", locked)

    def nobody(*_):
        raise AipassError("no supervisor")

    engine.core.when_locked[:] = [nobody]
    (tmp_path / "inbox/w").mkdir(parents=True, exist_ok=True)
    (tmp_path / "inbox/w/a.md").write_text("do")
    bench.engine.tell_now([Seen("inbox/w/a.md", *_identity(tmp_path / "inbox/w/a.md"))])
    assert engine.step()
    assert engine._held
    monkeypatch.setattr(engine, "_commit", commit)
    bench.advance(5)
    assert bench.running() == [1]
    bench.close()


def _identity(path):
    from aipass.sources.observation import identity_of

    return identity_of(path.lstat()), True


def test_after_its_end_no_notice_is_delivered_and_none_waited_for():
    told, go = [], threading.Event()
    notices = Notices(lambda notice: (go.wait(PATIENCE), told.append(notice.text)))
    notices.start()
    notices.tell(Notice("first"))
    stopping = threading.Thread(target=notices.stop)
    stopping.start()
    time.sleep(0.1)
    notices.tell(Notice("late"))
    assert not go.is_set(), "it has not waited for the one before"
    go.set()
    stopping.join()
    assert told == ["first"]


def test_what_only_a_restart_lets_the_engine_write_is_said(monkeypatch):
    before, now = (
        reading.parse(TOML),
        reading.parse(TOML + '[sandbox]\nwrite = ["~/x/"]\n[pr]\nforge = "gh"\n'),
    )
    assert confine.after_restart(before, now) == [], "it is not enclosed here"
    monkeypatch.setattr(confine, "_enclosed", True)
    assert confine.after_restart(before, now) == ["~/x/", "the files of `gh`"]
    assert confine.after_restart(now, now) == []


@fenced
def test_a_refusal_is_kept_for_an_engine_whoever_else_comes_by(repository):
    repository.write("aipass.toml", agent("w", "w.py", "owns = []"))
    repository.write("kept.txt", "x")
    repository.write(
        "w.py",
        "import time\ntime.sleep(2)\nfor _ in range(3):\n    try: open('kept.txt', 'w')\n    except OSError: pass\n",
    )
    repository.aipass("up", "--detach")
    repository.aipass("send", "w", "go")
    repository.wait_for(lambda: "1 running" in repository.aipass("status").stdout, "the run")
    repository.aipass("down")
    time.sleep(3)
    version = (
        next((repository.root / ".aipass").glob("supervisor-*.sock"))
        .name.removeprefix("supervisor-")
        .removesuffix(".sock")
    )
    with connect(repository.root / ".aipass", version) as link:
        link.sendall(wire.pack({"do": "stop", "run": 999, "why": "x", "reason": "y"}))
        link.settimeout(1)
        assert b"hello" in link.recv(65536)
    repository.aipass("up", "--detach")
    repository.wait_for(
        lambda: "kept.txt" in repository.aipass("events", "--kind", "write.denied").stdout, "the refusal"
    )


@fenced
def test_a_run_that_makes_and_removes_shared_memory_for_ever_fills_nothing(monkeypatch):
    house = FenceHouse(monkeypatch)
    house.territory(a=[])
    code = "import ctypes\nL = ctypes.CDLL(None)\nfor _ in range(6000):\n    n = L.shmget(0, 4096, 0o600)\n    assert n >= 0 and L.shmctl(n, 0, None) == 0\nprint('done')"
    assert house.py("a", code).out == "done\n"
    house.close()


# -- held folders ------------------------------------------------------------------------------------------------------


@linux
def test_a_file_moves_to_a_free_name_in_one_step(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    monkeypatch.setattr(
        os, "link", lambda *_, **__: pytest.fail("a second name, and what is saved under the first is lost")
    )
    folder = os.open(tmp_path, os.O_RDONLY)
    assert held.try_move(folder, "a", folder, "c")
    assert not held.try_move(folder, "c", folder, "b")
    assert ((tmp_path / "c").read_text(), (tmp_path / "b").read_text()) == ("a", "b")
    os.close(folder)


def test_what_goes_or_changes_its_kind_while_it_is_removed_is_removed(tmp_path, monkeypatch):
    folder = os.open(tmp_path, os.O_RDONLY)
    (tmp_path / "x").mkdir()
    real = os.stat

    def gone(name, **how):
        if name == "x" and (tmp_path / "x").exists():
            (tmp_path / "x").rmdir()
        return real(name, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", gone)
        held.remove(folder, "x")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/y").write_text("")
    unlink, done = os.unlink, []

    def changes(name, **how):
        if name == "y" and not done:
            done.append(1)
            unlink(name, **how)
            (tmp_path / "x/y").mkdir()
            raise IsADirectoryError(errno.EISDIR, "it is a folder now")
        return unlink(name, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", changes)
        held.remove(folder, "x")
    assert not list(tmp_path.iterdir())
    os.close(folder)


# -- what people are told ----------------------------------------------------------------------------------------------


def test_a_broken_configuration_is_told_whatever_else_is(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("inbox/w/empty.md", "")
    repository.aipass("up", "--until-idle")
    repository.write("aipass.toml", "[")
    said = repository.aipass("status").stdout
    assert "aipass.toml is not valid" in said
    assert "inbox/ has 1 rejected file" in said
    (repository.root / "inbox/w/empty.md").unlink()
    assert "rejected file" not in repository.aipass("status").stdout


def test_why_knows_names_that_folders_have_as_well_and_paths_with_dots(repository):
    repository.write("aipass.toml", agent("docs", "w.py"))
    repository.write("w.py", "print('x')")
    repository.write("docs/page.md", "x")
    repository.write("sub/b", "")
    repository.aipass("up", "--detach")
    repository.aipass("send", "docs", "go", "--wait")
    repository.write("a.py", "x")
    assert "docs, succeeded" in repository.aipass("why", "docs").stdout
    repository.wait_for(
        lambda: "file.closed" in repository.aipass("why", "a.py", check=None).stdout, "the event"
    )
    said = subprocess.run(
        [sys.executable, "-m", "aipass", "why", "../a.py"],
        cwd=repository.root / "sub",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "file.closed a.py" in said


def test_a_bench_that_restarts_leaves_no_threads(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    bench = Bench(tmp_path, TOML, whole=True)
    first = threading.active_count()
    for _ in range(3):
        bench.restart()
    assert threading.active_count() <= first + 1
    bench.close()
