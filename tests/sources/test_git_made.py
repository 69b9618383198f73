"""Which changes of files git itself made: told from those of people and agents by the order of the kernel's own events."""

import os
import queue
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest
from git_kit import git
from patience import PATIENCE, until

from aipass.ledger import Ledger
from aipass.sources import contents, young
from aipass.sources.filesystem import Filesystem
from aipass.sources.known import Known
from aipass.sources.observation import Gone, Listing, Moved, ScanEnd, Seen

#: Slow: left out of the inner loop (`make fast`).
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/sys/fs/inotify"), reason="there is no inotify here"),
]


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "r"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    for number in range(20):
        (root / f"f{number}").write_text(f"{number}\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    git(root, "checkout", "-q", "-b", "side")
    (root / "new").mkdir()
    for number in range(10):
        (root / f"f{number}").write_text(f"side {number}\n")
        (root / f"new/n{number}").write_text("n\n")
    (root / "f19").unlink()
    git(root, "add", "-A")
    git(root, "commit", "-qm", "side 1")
    (root / "f10").write_text("side\n")
    git(root, "commit", "-qam", "side 2")
    git(root, "checkout", "-q", "main")
    (root / "f18").write_text("main\n")
    git(root, "commit", "-qam", "main")
    told = queue.SimpleQueue()
    source = Filesystem(root, baseline=True)
    source.start(lambda batch: [told.put(one) for one in batch])
    assert source._watched.emitter.settled.wait(PATIENCE)

    def seen():
        """Paths that were seen to change since the last time, and whether git did it."""
        seen.by_hand = set()  # though git may have written it afterwards
        mark = root / f"mark{time.time_ns()}"
        mark.write_text("")
        found = {}
        while True:
            one = told.get(timeout=PATIENCE)
            if isinstance(one, Seen) and one.path == mark.name:
                return found
            if isinstance(one, Seen | Gone) and not one.path.startswith("mark") and one.path != "new":
                found[one.path] = one.git or one.back
                if not found[one.path]:
                    seen.by_hand.add(one.path)
            elif isinstance(one, Moved):
                found[one.new] = found[one.old] = one.git or one.back
                if not found[one.new]:
                    seen.by_hand |= {one.new, one.old}
            elif isinstance(one, Listing) and not one.quiet and not one.ignoring:
                found |= {entry.path: one.git for entry in one.entries}
            assert not isinstance(one, ScanEnd) or one.reason in {"start", "new", "ignore"}

    seen()
    yield root, seen
    source.stop()


@pytest.fixture
def patient(monkeypatch):
    """What was written rests longer before it is told: however busy the machine is, this other git is in time."""
    monkeypatch.setattr(young, "REST_S", 1.0)
    monkeypatch.setattr(young, "LAST_WAIT_S", PATIENCE)


SIDE = {f"f{n}" for n in range(11)} | {"f19"} | {f"new/n{n}" for n in range(10)}


@pytest.mark.parametrize(
    ("before", "words", "paths"),
    [
        ((), ("checkout", "-q", "side"), SIDE | {"f18"}),
        ((), ("merge", "-q", "-m", "x", "side"), SIDE),
        ((), ("reset", "-q", "--hard", "HEAD~1"), {"f18"}),
        ((), ("cherry-pick", "side"), {"f10"}),
        ((), ("revert", "--no-edit", "HEAD"), {"f18"}),
        ((), ("restore", "--source", "side", "f3", "f4"), {"f3", "f4"}),
        ((("checkout", "-q", "side"),), ("rebase", "-q", "main"), SIDE | {"f18"}),
    ],
    ids=["checkout", "merge", "reset", "cherry-pick", "revert", "restore", "rebase"],
)
def test_what_git_writes_is_marked(tree, before, words, paths):
    root, seen = tree
    for one in before:
        git(root, *one)
    seen()
    git(root, *words)
    found = seen()
    # What git makes and takes away again on its way may be seen, or not.
    assert set(found) | {"f19"} == paths | {"f19"}
    assert all(found.values()), {path for path, by_git in found.items() if not by_git}


def test_a_stash_and_its_return_are_marked(tree):
    root, seen = tree
    (root / "f3").write_text("mine\n")
    assert seen() == {"f3": False}
    git(root, "stash", "-q")
    assert seen() == {"f3": True}
    git(root, "stash", "pop", "-q")
    assert seen() == {"f3": True}


@contextmanager
def watching(root):
    """What is told of a tree from now on, as it comes."""
    told = queue.SimpleQueue()
    source = Filesystem(root, baseline=True)
    source.start(lambda batch: [told.put(one) for one in batch])
    try:
        assert source._watched.emitter.settled.wait(PATIENCE)
        yield told
    finally:
        source.stop()


def put_aside(root, *, while_away=lambda: None):
    """As the program pre-commit does with what is not staged."""
    patch = root.parent / "patch"
    patch.write_text(git(root, "diff", "--binary"))
    git(root, "checkout", "-q", "--", ".")
    while_away()
    git(root, "apply", "--whitespace=nowarn", str(patch))


@pytest.mark.parametrize("pause", [0, 0.7])
def test_what_git_takes_away_and_brings_back_without_a_lock_is_gits(tree, pause):
    root, seen = tree
    (root / "f3").write_text("mine\n")
    (root / "f4").write_text("mine too\n")
    assert seen() == {"f3": False, "f4": False}
    for _ in range(2):
        put_aside(root, while_away=lambda: time.sleep(pause))
        assert seen() == {"f3": True, "f4": True}
        assert (root / "f3").read_text() == "mine\n"


def test_what_git_brings_back_and_takes_away_again_is_gits(tree):
    root, seen = tree
    (root / "f3").unlink()
    assert seen() == {"f3": False}
    put_aside(root, while_away=lambda: time.sleep(0.7))
    assert seen() == {"f3": True}
    assert not (root / "f3").exists()
    (root / "f3").write_text("anew\n")
    assert seen() == {"f3": False}
    (root / "f3").unlink()
    assert seen() == {"f3": False}


def test_what_was_changed_before_anybody_looked_comes_back_as_well(tmp_path):
    root = tmp_path / "r"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    for name in ("a", "b"):
        (root / name).write_text("1\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    (root / "a").write_text("mine\n")
    with watching(root) as told:
        put_aside(root)
        (root / "end").write_text("")
        found = {}
        while not found.get("end"):
            one = told.get(timeout=PATIENCE)
            if isinstance(one, Seen):
                found[one.path] = [*found.get(one.path, []), one.git or one.back]
        assert set(found["a"]) == {True}


def test_what_comes_back_otherwise_than_it_was_is_a_persons(tree):
    root, seen = tree
    (root / "f3").write_text("mine\n")
    seen()
    git(root, "checkout", "-q", "--", ".")
    seen()
    (root / "f3").write_text("mine again\n")
    assert seen() == {"f3": False}
    # And once it is told, the same text is a save like any other.
    (root / "f3").write_text("mine again\n")
    assert seen() == {"f3": False}


def test_what_comes_back_much_later_is_a_persons(tmp_path, monkeypatch):
    file = tmp_path / "f"
    file.write_text("mine\n")
    now = [1000.0]
    monkeypatch.setattr(contents.time, "monotonic", lambda: now[0])
    known = contents.Contents()

    def comes_back_after(seconds):
        assert not known.is_back("f", str(file))
        known.take("f")
        now[0] += seconds
        return known.is_back("f", str(file))

    assert comes_back_after(contents.AWAY_S - 1)
    assert not comes_back_after(contents.AWAY_S + 1)


def test_whoever_watches_reads_for_a_tenth_of_the_time(tmp_path, monkeypatch):
    """How much is saved agents decide: what is not read is told as a save, which it is as long as nobody knows better."""
    now, read = [1000.0], []
    monkeypatch.setattr(contents.time, "monotonic", lambda: now[0])

    def digest(absolute):
        read.append(now[0])
        now[0] += 0.02
        return absolute.encode()

    monkeypatch.setattr(contents, "_digest", digest)
    known = contents.Contents()
    for number in range(3000):
        assert not known.is_back(f"f{number}", f"f{number}")
        now[0] += 0.001
    spent = 0.02 * len(read)
    assert contents.AT_ONCE_S <= spent <= contents.AT_ONCE_S + (now[0] - 1000) * contents.READING + 0.02
    now[0] += 60
    known.is_back("later", "later")
    assert read[-1] > now[0] - 1, "who saves quietly is read"


def test_only_so_many_files_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "LOOK_S", PATIENCE)
    known = contents.Contents()
    (tmp_path / "f").write_text("mine\n")
    (tmp_path / "large").write_bytes(bytes(contents.LARGEST_BYTES + 1))
    known.note((f"f{number}", str(tmp_path / "f")) for number in range(contents.MOST + 50))
    known.note([("large", str(tmp_path / "large"))])
    for path, file in (("f0", "f"), ("large", "large")):
        known.take(path)
        assert not known.is_back(path, str(tmp_path / file))
    known.take(f"f{contents.MOST}")
    assert known.is_back(f"f{contents.MOST}", str(tmp_path / "f"))


@pytest.mark.parametrize(
    "script",
    [
        "echo mine > f1; git stash -q; git stash pop -q",
        "echo mine > f15; git commit -qam x; git rebase -q side",
        "echo mine > f18; git stash -q; git checkout -q side; git checkout -q main; git stash pop -q",
        "sed -i s/18/mine/ f18; git rebase -q --autostash HEAD~0",
        "echo mine > .new; mv .new f1; git stash -q; git stash pop -q",
    ],
)
def test_what_a_person_saved_just_before_git_wrote_it_is_told_as_theirs(tree, script):
    root, seen = tree
    path = next(name for name in ("f18", "f15", "f1") if name in script)
    subprocess.run(["sh", "-c", script.replace("s/18/mine/", "s/main/mine/")], cwd=root, check=True)
    seen()
    assert path in seen.by_hand


def test_a_checkout_by_a_git_that_renames_each_file_into_place_is_marked(tree):
    """As JGit does it: the index is locked and closed at once, every file is written under another name, the log comes last."""
    root, seen = tree
    blobs = {path: git(root, "show", f"side:{path}") for path in ("f0", "f1", "f2")}
    old, new = (git(root, "rev-parse", name).strip() for name in ("HEAD", "side"))
    (root / ".git/index.lock").touch()
    for path, text in blobs.items():
        (root / f"._{path}123.tmp").write_text(text)
        (root / f"._{path}123.tmp").rename(root / path)
    (root / ".git/index.lock").rename(root / ".git/index.old")
    with (root / ".git/logs/HEAD").open("a") as log:
        log.write(f"{old} {new} A <a@b.c> {int(time.time())} +0000\tcheckout: moving from main to side\n")
    found = seen()
    assert {path: found[path] for path in blobs} == dict.fromkeys(blobs, True)


def test_what_git_takes_out_of_the_plans_is_marked(tree):
    root, seen = tree
    files(root, "plans/p.md")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "A plan")
    seen()
    git(root, "checkout", "-q", "HEAD~1")
    assert seen()["plans/p.md"] is True


def test_the_log_of_a_repository_that_has_just_come_is_watched(tmp_path):
    root = tmp_path / "r"
    root.mkdir()
    source = Filesystem(root, baseline=True)
    source.start(lambda batch: None)
    try:
        emitter = source._watched.emitter
        assert emitter.settled.wait(PATIENCE)
        git(root, "init", "-q", "-b", "main")
        (root / "a").write_text("1")
        git(root, "add", "a")
        git(root, "commit", "-qm", "first")
        until(lambda: emitter._git._log_watch >= 0)
    finally:
        source.stop()


def test_of_a_single_repository_inside_a_root_that_is_none_git_is_known(tmp_path):
    root = tmp_path / "r"
    (root / "sub").mkdir(parents=True)
    git(root / "sub", "init", "-q", "-b", "main")
    (root / "sub/a").write_text("1\n")
    git(root / "sub", "add", "a")
    git(root / "sub", "commit", "-qm", "first")
    (root / "sub/a").write_text("2\n")
    with watching(root) as told:
        git(root / "sub", "checkout", "-q", "--", "a")
        while not (isinstance(one := told.get(timeout=PATIENCE), Seen) and one.path == "sub/a"):
            pass
        assert one.git


def test_a_push_into_a_repository_while_nobody_looked_is_gits(house, tmp_path):
    git(house.root, "config", "receive.denyCurrentBranch", "updateInstead")
    git(tmp_path, "clone", "-q", str(house.root), "theirs")
    (tmp_path / "theirs/f2").write_text("theirs\n")
    git(tmp_path / "theirs", "commit", "-qam", "theirs")
    git(tmp_path / "theirs", "push", "-q", "origin", "main")
    assert house.looks() == {"f2": True}


def test_moves_that_do_not_follow_each_other_cost_a_few_questions(house, monkeypatch):
    from aipass.sources import gitwork

    head, side = git(house.root, "rev-parse", "main").strip(), git(house.root, "rev-parse", "side").strip()
    with (house.root / ".git/logs/HEAD").open("a") as log:
        for number in range(800):
            old, new = (head, side) if number % 2 else (side, head)
            line = f"{old} {new} A <a@b.c> {int(time.time())} +0000\tcheckout: moving from main to side\n"
            log.write(line + line.replace("checkout: moving", "commit: x").replace(old, "1" * 40))
    asked = []
    real = gitwork.ask
    monkeypatch.setattr(gitwork, "ask", lambda *words, **more: (asked.append(words), real(*words, **more))[1])
    house.looks()
    assert len(asked) <= 2 * gitwork.MAX_MOVES


def test_what_a_person_writes_and_adds_and_commits_at_once_is_theirs(tree):
    root, seen = tree
    for number in range(30):
        script = f"echo {number} > f1; echo {number} > made{number}; git add -A; git commit -qm x"
        subprocess.run(["sh", "-c", script], cwd=root, check=True)
        found = seen()
        assert {"f1", f"made{number}"} <= found.keys()
        assert not any(found.values())


def test_a_patch_by_am_is_marked(tree):
    root, seen = tree
    patch = git(root, "format-patch", "-1", "--stdout", "side")
    git(root, "am", "-q", stdin=patch.encode())
    assert seen() == {"f10": True}


def test_a_save_in_a_hook_of_a_commit_is_the_persons(tree):
    root, seen = tree
    # What a hook does, somebody else may do meanwhile; with `-a` git holds the lock all the time.
    hook = root / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\necho mine > f5\necho mine > made\n")
    hook.chmod(0o755)
    (root / "f1").write_text("x")
    assert seen() == {"f1": False}
    git(root, "commit", "-qam", "x")
    assert seen() == {"f5": False, "made": False}


def test_while_an_editor_is_open_for_a_commit_nothing_is_gits(tree, tmp_path):
    root, seen = tree
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho mine > f5\necho message > "$1"\n')
    editor.chmod(0o755)
    (root / "f1").write_text("x")
    git(root, "-c", f"core.editor={editor}", "commit", "-qa")
    assert seen() == {"f1": False, "f5": False}


def test_a_lock_that_a_killed_git_has_left_hides_nothing(tree):
    root, seen = tree
    handle = os.open(root / ".git/index.lock", os.O_CREAT | os.O_WRONLY)
    files(root, "f1")
    assert seen() == {"f1": True}
    os.close(handle)
    files(root, "f2")
    assert seen() == {"f2": False}


def files(root, *names, text="x\n"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_another_worktree_is_another_tree(tree):
    root, seen = tree
    git(root, "worktree", "add", "-q", ".claude/worktrees/x", "-b", "x")
    files(root, ".claude/worktrees/x/mine.py", "beside.py")
    assert seen() == {"beside.py": False}
    git(root, "worktree", "remove", "--force", ".claude/worktrees/x")
    assert not [path for path in seen() if path.endswith(".py")]


def test_a_repository_that_comes_and_what_its_git_does_is_marked(tree, tmp_path):
    root, seen = tree
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q", "-b", "main")
    for version in "12":
        files(library, *(f"l{number}.py" for number in range(5)), text=version)
        git(library, "add", "-A")
        git(library, "commit", "-qm", version)
    git(root, "clone", "-q", str(library), "clone")
    git(root, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "lib")
    found = seen()
    assert {"lib/l1.py", "clone/l1.py"} <= found.keys()
    assert all(by_git for path, by_git in found.items() if not path.startswith(".gitmodules")), found
    for inner in ("lib", "clone"):
        git(root / inner, "checkout", "-q", "HEAD~1")
        assert seen() == {f"{inner}/l{number}.py": True for number in range(5)}
        files(root, f"{inner}/l1.py", text="mine")
        assert seen() == {f"{inner}/l1.py": False}


def move_by_another_git(root, to, *, says, but=frozenset()):
    """As libgit2 does it: the files first, then the index, locked for a moment, and the log at last. `but`: files it leaves alone."""
    old, new = (git(root, "rev-parse", one).strip() for one in ("HEAD", to))
    lines = [
        line.split("\t") for line in git(root, "diff", "--name-status", "--no-renames", old, new).splitlines()
    ]
    texts = {path: None if status == "D" else git(root, "show", f"{new}:{path}") for status, path in lines}
    for path in texts.keys() - but:
        if texts[path] is None:
            (root / path).unlink()
        else:
            files(root, path, text=texts[path])
    lock = root / ".git/index.lock"
    lock.write_bytes((root / ".git/index").read_bytes())
    lock.rename(root / ".git/index")
    with (root / ".git/logs/HEAD").open("a") as log:
        log.write(f"{old} {new} A <a@b.c> {int(time.time())} +0000\t{says}\n")


@pytest.mark.parametrize(
    ("says", "by_git"),
    [
        ("checkout: moving from main to side", True),
        ("reset: moving to side", True),
        ("commit: checkout of books", False),
    ],
)
def test_a_git_that_locks_late_is_known_by_its_log(tree, says, by_git, patient):
    root, seen = tree
    move_by_another_git(root, "side", says=says)
    assert seen() == dict.fromkeys(SIDE | {"f18"}, by_git)


def test_what_a_person_saved_just_before_head_moved_is_theirs(tree, patient):
    root, seen = tree
    files(root, "f1", "fresh", text="mine\n")
    move_by_another_git(root, "side", says="checkout: moving from main to side", but={"f1"})
    found = seen()
    assert not found.pop("f1")
    assert not found.pop("fresh")
    assert all(found.values())


@pytest.mark.parametrize("way", ["reset --soft", "reset", "checkout -b"])
def test_a_move_of_head_that_writes_no_file_takes_no_save_away(tree, way):
    root, seen = tree
    moves = {
        "reset --soft": "git reset -q --soft HEAD~1",
        "reset": "git reset -q HEAD~1",
        "checkout -b": "git checkout -q -b new",
    }
    script = f"echo mine > f1; git commit -qam x; {moves[way]}"
    subprocess.run(["sh", "-c", script], cwd=root, check=True)
    assert seen() == {"f1": False}


def test_who_writes_a_file_last_has_written_it(tree):
    root, seen = tree
    subprocess.run(["sh", "-c", "echo x > f1; git checkout -q -- f1; echo y >> f1"], cwd=root, check=True)
    assert seen() == {"f1": False}


def test_a_tree_that_calls_a_watched_folder_its_git_hides_nothing(tree):
    root, seen = tree
    files(root, "src/a.py")
    files(root, "lies/.git", text="gitdir: ../src\n")
    seen()
    files(root, "src/b.py", "lies/c.py")
    (root / "src/index.lock").write_text("")
    files(root, "src/d.py")
    found = seen()
    assert {"src/b.py", "src/d.py"} <= found.keys()
    assert not found["src/b.py"]
    assert not found["src/d.py"], "only its own tree would be marked"


@pytest.mark.parametrize("way", ["moved away", "removed"])
def test_a_repository_that_is_replaced_is_watched_as_the_one_before(tree, way):
    root, seen = tree
    (root / ".git").rename(root.parent / "old")
    if way == "removed":
        shutil.rmtree(root.parent / "old")
    files(root, "f1")
    seen()
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "anew")
    files(root, "f1", text="mine\n")
    assert seen() == {"f1": False}
    git(root, "reset", "-q", "--hard")
    assert seen() == {"f1": True}


# -- while nobody looked -----------------------------------------------------------------------------------------------


class Ledgered:
    """A tree that is looked at from time to time; what came of it is in a ledger."""

    def __init__(self, root, ledger):
        self.root, self.ledger, self.known = root, ledger, Known(ledger)
        self.since = 0.0

    def looks(self):
        """What is told at a start: path -> whether git did it; None where different things are told of a path."""
        told = []
        source = Filesystem(self.root, baseline=self.since == 0.0, since=self.since)
        self.since = time.time()
        source.start(told.extend)
        try:
            assert source._watched.emitter.settled.wait(PATIENCE)
        finally:
            source.stop()
        found = {}
        with self.ledger.transaction():
            for seen in told:
                for fact in self.known.settle(seen):
                    found.setdefault(fact.path, set()).add(fact.detail.get("git", False))
        return {path: next(iter(words)) if len(words) == 1 else None for path, words in found.items()}


@pytest.fixture
def house(tmp_path):
    root = tmp_path / "r"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    files(root, *(f"f{number}" for number in range(6)), "gone/x")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    git(root, "checkout", "-q", "-b", "side")
    files(root, "f0", "f1", "new/y", text="side\n")
    (root / "gone/x").unlink()
    git(root, "add", "-A")
    git(root, "commit", "-qm", "side")
    git(root, "checkout", "-q", "main")
    ledger = Ledger.open(tmp_path / "ledger.db")
    house = Ledgered(root, ledger)
    assert house.looks() == {}
    yield house
    ledger.close()


MOVED = {"f0": True, "f1": True, "new/y": True, "gone/x": True}


def test_what_git_did_while_nobody_looked_is_gits(house):
    git(house.root, "checkout", "-q", "side")
    assert house.looks() == MOVED
    git(house.root, "checkout", "-q", "main")
    git(house.root, "merge", "-q", "side")
    assert house.looks() == {path: True for path in MOVED if path != "gone/x"}, "written anew, by git"
    git(house.root, "reset", "-q", "--hard", "HEAD~1")
    assert house.looks() == MOVED


def test_what_a_person_saved_while_nobody_looked_is_theirs_whatever_git_did(house):
    root = house.root
    files(root, "f5", text="before\n")
    git(root, "checkout", "-q", "side")
    files(root, "f0", text="after\n")
    files(root, "fresh", "gone/x", text="after\n")
    (root / "new/y").unlink()
    assert house.looks() == {"f5": False, "f1": True, "f0": False, "fresh": False, "gone/x": False}
    # Committed at once, and with the time of before: it stays a person's.
    before = (root / "f1").stat()
    files(root, "f1", text="Side\n")
    os.utime(root / "f1", ns=(before.st_atime_ns, before.st_mtime_ns - 10**9))
    git(root, "commit", "-qam", "mine")
    assert house.looks() == {"f1": False}


def test_a_move_that_was_told_when_it_was_made_says_nothing_of_later(house):
    git(house.root, "checkout", "-q", "side")
    house.looks()
    files(house.root, "f0", text="mine\n")
    (house.root / "new/y").unlink()
    assert house.looks() == {"f0": False, "new/y": False}


def test_logs_that_are_rubbish_hide_nothing(house):
    log = house.root / ".git/logs/HEAD"
    log.write_bytes(
        b"\xff" * 300_000 + b"\n" + b"1" * 40 + b" " + b"2" * 40 + b" A <a> 9999999999 +0000\tcheckout: x\n"
    )
    files(house.root, "f0", text="mine\n")
    assert house.looks() == {"f0": False}
    log.unlink()
    os.mkfifo(log)
    files(house.root, "f0", text="more\n")
    assert house.looks() == {"f0": False}


def test_below_a_repositorys_top_paths_are_those_of_the_root(tmp_path):
    top = tmp_path / "top"
    (top / "inner").mkdir(parents=True)
    git(top, "init", "-q", "-b", "main")
    files(top, "a", "inner/b")
    git(top, "add", "-A")
    git(top, "commit", "-qm", "first")
    ledger = Ledger.open(tmp_path / "ledger.db")
    house = Ledgered(top / "inner", ledger)
    assert house.looks() == {}
    files(top, "a", "inner/b", text="y\n")
    git(top, "commit", "-qam", "second")
    house.looks()
    git(top, "reset", "-q", "--hard", "HEAD~1")
    assert house.looks() == {"b": True}
    ledger.close()


@pytest.mark.parametrize("way", ["--soft", "--mixed"])
def test_a_commit_that_was_taken_back_while_nobody_looked_leaves_a_persons_file(house, way):
    files(house.root, "f0", text="mine\n")
    git(house.root, "commit", "-qam", "x")
    git(house.root, "reset", "-q", way, "HEAD~1")
    assert house.looks() == {"f0": False}


def test_a_merge_with_a_conflict_while_nobody_looked_is_gits_but_for_what_was_solved(house):
    root = house.root
    files(root, "f0", text="main\n")
    git(root, "commit", "-qam", "main")
    house.looks()
    git(root, "merge", "-q", "side", check=False)
    files(root, "f0", text="both\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "merged")
    assert house.looks() == MOVED | {"f0": False}


def test_a_rebase_of_very_many_commits_while_nobody_looked_is_gits(house):
    root = house.root
    git(root, "checkout", "-q", "side")
    git(root, "checkout", "-q", "-b", "many", "main")
    for number in range(70):
        git(root, "commit", "-q", "--allow-empty", "-m", str(number))
    house.looks()
    git(root, "rebase", "-q", "--empty=keep", "side")
    assert house.looks() == MOVED


def test_a_cherry_pick_that_was_solved_by_hand_while_nobody_looked_is_a_persons(house):
    root = house.root
    files(root, "f0", text="main\n")
    git(root, "commit", "-qam", "main")
    house.looks()
    git(root, "cherry-pick", "side", check=False)
    files(root, "f0", text="both\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "picked")
    assert house.looks()["f0"] is False
