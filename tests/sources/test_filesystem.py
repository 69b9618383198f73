"""The filesystem source on a real tree: what is told, once, whoever saw it first."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE, until
from rounds import rounds

from aipass.ledger import Ledger
from aipass.sources import emitter, inotify, writers, young
from aipass.sources.filesystem import Filesystem
from aipass.sources.ignore import IgnoreRules
from aipass.sources.known import Known
from aipass.sources.observation import FileVersion, Gone, Listing, Moved, ScanEnd, Seen
from aipass.sources.young import UnsettledFiles

#: Left out of the inner loop (`make fast`): each test waits for the kernel to tell.
pytestmark = pytest.mark.slow


class Tree:
    """A watched folder, and the facts that came of it."""

    def __init__(self, root: Path, ledger: Ledger | None = None, *, baseline: bool = False, patterns=()):
        self.root, self.ledger = root, ledger or Ledger.in_memory()
        self.facts, self._lock = [], threading.Lock()
        self.known = Known(self.ledger)
        self.paused = threading.Event()
        self.filesystem = Filesystem(root, patterns, baseline=baseline)

    def tell(self, batch):
        while self.paused.is_set():
            time.sleep(0.005)
        with self._lock, self.ledger.transaction():
            for seen in batch:
                self.facts += [(fact.kind, fact.path) for fact in self.known.settle(seen)]

    def __enter__(self):
        self.filesystem.start(self.tell)
        self.wait(self.filesystem.is_settled)
        return self

    def __exit__(self, *error):
        self.paused.clear()
        self.filesystem.stop()

    def wait(self, condition, timeout=PATIENCE):
        until(condition, lambda: self.facts[-30:], timeout)

    def wait_for(self, *expected):
        self.wait(lambda: all(fact in self.facts for fact in expected))
        time.sleep(0.05)

    def known_files(self):
        return {
            os.fsdecode(row[0] + b"/" + row[1] if row[0] else row[1]) for row in self.ledger.all("all_files")
        }


@pytest.fixture
def tree(tmp_path):
    with Tree(tmp_path.resolve()) as made:
        yield made


def test_a_file_is_closed_when_its_writer_closes_it(tree):
    with (tree.root / "a").open("w") as file:
        file.write("1")
        file.flush()
        tree.wait_for(("file.created", "a"))
        assert ("file.closed", "a") not in tree.facts
    tree.wait_for(("file.closed", "a"))
    assert tree.facts == [("file.created", "a"), ("file.closed", "a")]


def test_a_file_renamed_into_place_is_complete_and_its_rename_known(tree):
    (tree.root / ".tmp1").write_text("new")
    (tree.root / "target").write_text("old")
    tree.wait_for(("file.closed", "target"))
    tree.facts.clear()
    (tree.root / ".tmp1").rename(tree.root / "target")
    tree.wait_for(("file.closed", "target"))
    assert tree.facts == [("file.moved", "target"), ("file.changed", "target"), ("file.closed", "target")]


def test_a_file_from_outside_is_created_and_complete(tree, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x"
    outside.write_text("1")
    outside.rename(tree.root / "x")
    tree.wait_for(("file.created", "x"), ("file.closed", "x"))
    (tree.root / "x").rename(outside)
    tree.wait_for(("file.deleted", "x"))


def test_a_linked_file_is_complete_though_nobody_closes_it(tree):
    handle = os.open(tree.root, os.O_TMPFILE | os.O_WRONLY)
    os.write(handle, b"whole")
    folder = os.open(tree.root, os.O_PATH)
    os.link(f"/proc/self/fd/{handle}", "linked", dst_dir_fd=folder, follow_symlinks=True)
    os.close(folder)
    os.close(handle)
    tree.wait_for(("file.closed", "linked"))


def test_new_folders_are_seen_with_what_is_already_in_them(tree):
    for number in range(20):
        folder = tree.root / f"n{number}/deep/er"
        folder.mkdir(parents=True)
        (folder / "f").write_text("x")
    tree.wait_for(*(("file.closed", f"n{number}/deep/er/f") for number in range(20)))
    assert len(tree.facts) == len(set(tree.facts))


def test_a_renamed_folder_takes_its_files_and_its_watches_along(tree):
    (tree.root / "a/b").mkdir(parents=True)
    (tree.root / "a/b/f").write_text("1")
    tree.wait_for(("file.closed", "a/b/f"))
    (tree.root / "a").rename(tree.root / "z")
    tree.wait_for(("file.moved", "z/b/f"))
    (tree.root / "z/b/g").write_text("2")
    tree.wait_for(("file.closed", "z/b/g"))
    assert tree.known_files() == {"z/b/f", "z/b/g"}


def test_ignored_trees_get_no_watch(tmp_path):
    root = tmp_path.resolve()
    for folder in (
        ".git/objects",
        ".aipass/runs",
        "node_modules/x",
        "own",
        "kept/build",
        "nested",
        "gen/a",
        "sub/made",
    ):
        (root / folder).mkdir(parents=True)
    (root / ".gitignore").write_text("gen/\n*.log\n")
    (root / "sub/.gitignore").write_text("made/\n")
    (root / "nested/aipass.toml").write_text("")
    with Tree(root, patterns=("own/", "!kept/build/")) as tree:
        watched, _ = tree.filesystem.counts()
        assert watched == 4  # the root, sub, kept, kept/build
        for path in ("gen/a/x", "own/x", "nested/x", "x.log", "sub/made/x", "node_modules/x/y"):
            (root / path).write_text("1")
        (root / "seen").write_text("1")
        (root / "kept/build/x").write_text("1")
        tree.wait_for(("file.closed", "seen"), ("file.closed", "kept/build/x"))
        assert {path for _, path in tree.facts} == {".gitignore", "sub/.gitignore", "seen", "kept/build/x"}


def test_a_changed_gitignore_is_obeyed_and_tells_no_deletions(tree):
    (tree.root / "gen").mkdir()
    (tree.root / "gen/a").write_text("1")
    tree.wait_for(("file.closed", "gen/a"))
    (tree.root / ".gitignore").write_text("gen/\n")
    tree.wait(lambda: tree.filesystem.counts()[0] == 1)
    (tree.root / "gen/b").write_text("1")
    (tree.root / "c").write_text("1")
    tree.wait_for(("file.closed", "c"))
    assert ("file.deleted", "gen/a") not in tree.facts
    assert ("file.created", "gen/b") not in tree.facts


def test_what_happened_while_nobody_watched_is_found_and_told_once(tmp_path):
    root, ledger = tmp_path.resolve(), Ledger.in_memory()
    (root / "inbox/w").mkdir(parents=True)
    for name in ("kept", "changed", "gone"):
        (root / name).write_text("1")
    (root / "inbox/w/waiting.md").write_text("1")
    with Tree(root, ledger, baseline=True) as tree:
        assert {path for _, path in tree.facts} == {"inbox/w/waiting.md"}
    (root / "changed").write_text("22")
    (root / "gone").unlink()
    (root / "new").write_text("1")
    with Tree(root, ledger) as tree:
        assert sorted(tree.facts) == [
            ("file.changed", "changed"),
            ("file.closed", "changed"),
            ("file.closed", "new"),
            ("file.created", "new"),
            ("file.deleted", "gone"),
        ]
    with Tree(root, ledger) as tree:
        assert tree.facts == []


def test_a_file_that_is_being_written_at_the_start_is_not_complete(tmp_path):
    root = tmp_path.resolve()
    (root / "inbox/w").mkdir(parents=True)
    with (root / "inbox/w/slow.md").open("w") as file:
        file.write("half")
        file.flush()
        with Tree(root) as tree:
            assert tree.facts == [("file.created", "inbox/w/slow.md")]
            file.write(" whole")
            file.close()
            tree.wait_for(("file.closed", "inbox/w/slow.md"))


def test_the_kernel_is_asked_who_still_writes(tmp_path):
    path = tmp_path / "x"
    path.write_text("1")
    mtime = path.stat().st_mtime_ns
    assert writers.is_complete(str(path), mtime)
    with path.open("a"):
        assert not writers.is_complete(str(path), mtime)
    assert writers.is_complete(str(path), mtime)


def test_without_leases_the_files_age_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "has_writer", lambda path: None)
    assert not writers.is_complete("x", time.time_ns())
    assert writers.is_complete("x", time.time_ns() - 2_000_000_000)


@pytest.mark.slow
@pytest.mark.parametrize("overflow", [False, True])
def test_a_storm_leaves_every_final_state_known(tmp_path, overflow):
    """Far more files than the kernel's queue holds, with and without the kernel's queue overflowing because nobody reads it."""
    root, count = tmp_path.resolve(), rounds(20_000, 100_000)
    for number in range(100):
        (root / f"d{number}").mkdir()
    with Tree(root) as tree:
        if overflow:
            tree.paused.set()
        for number in range(count):
            handle = os.open(root / f"d{number % 100}/f{number}", os.O_WRONLY | os.O_CREAT)
            os.write(handle, b"x")
            os.close(handle)
        tree.paused.clear()
        for number in range(0, count, 100):
            (root / f"d{number % 100}/f{number}").write_text("changed")
            (root / f"d{number % 100}/f{number}").rename(root / f"d{number % 100}/moved{number}")
        tree.wait(lambda: tree.ledger.one("file", (b"d0", f"moved{count - 100}".encode())) is not None, 100)
        expected = {f"d{n % 100}/f{n}" for n in range(count) if n % 100} | {
            f"d{n % 100}/moved{n}" for n in range(0, count, 100)
        }
        tree.wait(
            lambda: (
                tree.ledger._db.execute("SELECT count(*) FROM files WHERE ino IS NOT NULL").fetchone()[0]
                == count
            ),
            100,
        )
        assert tree.known_files() == expected
        if overflow:  # a slow machine may overflow without being forced to
            assert ("watch.overflow", None) in tree.facts
        closed = [
            path
            for kind, path in tree.facts
            if kind == "file.closed" and "/f" in path and int(path.split("/f")[1]) % 100 != 0
        ]
        assert len(closed) == len(set(closed))


def test_where_no_watch_is_left_the_rest_is_polled_visibly(tmp_path, monkeypatch):
    monkeypatch.setattr(emitter, "POLL_S", 0.05)
    root = tmp_path.resolve()
    (root / "inbox/w").mkdir(parents=True)
    for number in range(10):
        (root / f"d{number}").mkdir()
    add = inotify.Inotify.add

    add_state = {"n": 0}

    def limited_add(self, path):
        if add_state["n"] >= 4:
            raise inotify.WatchLimitError(28, "No space left on device")
        add_state["n"] += 1
        return add(self, path)

    monkeypatch.setattr(inotify.Inotify, "add", limited_add)
    with Tree(root) as tree:
        assert ("watch.limited", None) in tree.facts
        assert tree.filesystem.counts() == (4, 9)
        for number in range(10):
            (root / f"d{number}/f").write_text("1")
        (root / "inbox/w/x.md").write_text("1")
        tree.wait_for(("file.closed", "inbox/w/x.md"), *(("file.closed", f"d{n}/f") for n in range(10)))
        (root / "d5/sub").mkdir()
        (root / "d5/sub/g").write_text("1")
        tree.wait_for(("file.closed", "d5/sub/g"))


def test_without_inotify_everything_is_polled(tmp_path, monkeypatch):
    monkeypatch.setattr(emitter, "POLL_S", 0.05)

    def none(self):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(inotify.Inotify, "__init__", none)
    with Tree(tmp_path.resolve()) as tree:
        (tree.root / "a").write_text("1")
        tree.wait_for(("file.closed", "a"))
        (tree.root / "a").unlink()
        tree.wait_for(("file.deleted", "a"))


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "quo'te\"",
        "new\nline",
        "tab\t",
        "-dash",
        "ümläut",
        b"\xff\xfe".decode("utf-8", "surrogateescape"),
        "*?[x]",
    ],
)
def test_any_name_that_a_file_may_have(tree, name):
    folder = tree.root / name
    folder.mkdir()
    (folder / name).write_text("1")
    tree.wait_for(("file.closed", f"{name}/{name}"))
    assert tree.known_files() == {f"{name}/{name}"}


NAMES = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/c"])
WORLD = st.dictionaries(NAMES, st.integers(1, 3))


def listing(world, folder):
    entries = [
        Seen(path, FileVersion(value, value, value), complete=True)
        for path, value in world.items()
        if path.rpartition("/")[0] == folder
    ]
    return Listing(folder, tuple(entries))


def scan(world):
    folders = frozenset({"", *(path.rpartition("/")[0] for path in world)})
    return [*(listing(world, folder) for folder in folders), ScanEnd("", folders, "overflow")]


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["write", "delete", "move", "scan", "list"]), NAMES, NAMES, st.integers(1, 3)
        ),
        max_size=25,
    )
)
def test_whatever_was_seen_and_missed_a_scan_makes_the_ledger_know_the_truth(steps):
    """Events may be lost or told twice at will; after a scan the ledger knows exactly what is there, and says nothing more."""
    ledger = Ledger.in_memory()
    known, world = Known(ledger), {}
    told = []
    for what, name, other, value in steps:
        if what == "write":
            world[name] = value
            seen = [Seen(name, FileVersion(value, value, value), complete=True)] * (
                value - 1
            )  # missed, seen, seen twice
        elif what == "delete":
            world.pop(name, None)
            seen = [Gone(name, folder=False)] * (value - 1)
        elif what == "move" and name in world and name != other:
            world[other] = world.pop(name)
            seen = [Moved(name, other, folder=False, identity=FileVersion(*[world[other]] * 3))] * (value - 1)
        elif what == "list":
            seen = [listing(world, name.rpartition("/")[0])]
        else:
            seen = scan(world)
        for one in seen:
            told += known.settle(one)
    for one in scan(world):
        known.settle(one)
    rows = ledger.all("all_files")
    assert {os.fsdecode(r[0] + b"/" + r[1] if r[0] else r[1]): r[2] for r in rows} == world
    assert [fact for one in scan(world) for fact in known.settle(one) if fact.kind != "watch.overflow"] == []


def test_nested_ignore_rules_and_what_is_always_watched(tmp_path):
    (tmp_path / ".gitignore").write_text("inbox/\n*.md\n!keep.md\n")
    ignore = IgnoreRules(tmp_path)
    assert not ignore.folder("inbox")
    assert not ignore.file("inbox/writer/x.md")
    assert ignore.file("x.md")
    assert not ignore.file("keep.md")
    assert ignore.folder(".git")


def test_on_a_shared_file_system_the_inbox_is_looked_at_though_the_kernel_is_silent(tmp_path, monkeypatch):
    """What comes from the other side of a mount: no event, and nobody who could say who still writes it."""
    monkeypatch.setattr("aipass.sources.filesystem.shared_by", lambda _: "nfs4")
    monkeypatch.setattr(inotify.Inotify, "read", lambda _: [])
    monkeypatch.setattr(emitter, "POLL_S", 0.05)
    monkeypatch.setattr(writers, "SETTLED_S", 0.3)
    root = tmp_path.resolve()
    (root / "inbox/w").mkdir(parents=True)
    with Tree(root) as tree:
        path = root / "inbox/w/x.md"
        for size in range(1, 8):
            path.write_text("x" * size)  # it grows, as over a slow line
            time.sleep(0.06)
        assert ("file.closed", "inbox/w/x.md") not in tree.facts
        tree.wait_for(("file.closed", "inbox/w/x.md"))
        assert tree.facts.count(("file.closed", "inbox/w/x.md")) == 1


def save_by_new_file(path: Path, text: str, beside: str) -> None:
    new = path.with_name(beside)
    new.write_text(text)
    new.replace(path)


def save_with_backup(path: Path, text: str, beside: str) -> None:
    path.rename(path.with_name(beside))
    path.write_text(text)
    path.with_name(beside).unlink()


def save_in_place(path: Path, text: str, beside: str) -> None:
    path.with_name(beside).write_text("a copy, for a crash")
    path.write_text(text)
    path.with_name(beside).unlink()


@pytest.mark.parametrize("save", [save_by_new_file, save_with_backup, save_in_place])
@pytest.mark.parametrize(
    "beside", ["x.md~", ".x.md.swp", "x.md___jb_tmp___", "x.md.8f3a2b", "#x.md#", "sedAb12Cd"]
)
@pytest.mark.slow
def test_one_save_is_one_change_however_it_is_done(tree, save, beside, monkeypatch):
    monkeypatch.setattr(young, "REST_S", 0.3)  # on a busy machine a save takes its time
    monkeypatch.setattr(young, "LAST_WAIT_S", 3.0)
    if beside.startswith("sed") and save is save_with_backup:
        pytest.skip("nobody makes a backup of such a name")
    path = tree.root / "x.md"
    path.write_text("first")
    tree.wait_for(("file.closed", "x.md"))
    tree.facts.clear()
    save(path, "second", beside)
    tree.wait_for(("file.closed", "x.md"))
    time.sleep(2 * young.REST_S)
    assert [fact for fact in tree.facts if fact[0] == "file.closed"] == [("file.closed", "x.md")]


def test_a_time_that_is_set_after_the_close_is_no_second_version(tree):
    path = tree.root / "inbox/w/x.md"
    path.parent.mkdir(parents=True)
    path.write_text("copied")
    tree.wait_for(("file.closed", "inbox/w/x.md"))
    os.utime(path, ns=(0, 1_000_000_000))
    time.sleep(0.2)
    tree.filesystem.scan()
    tree.wait_for(("file.closed", "inbox/w/x.md"))
    assert tree.facts.count(("file.closed", "inbox/w/x.md")) == 1


@pytest.mark.parametrize("time_ns", [0, -1, 2**63 - 1, 2**62])
def test_a_file_of_any_time_is_told_once(tree, time_ns):
    path = tree.root / "x"
    path.write_text("1")
    try:
        os.utime(path, ns=(time_ns, time_ns))
    except OverflowError:
        pytest.skip("this system has no such time")
    tree.wait_for(("file.closed", "x"))
    tree.filesystem.scan()
    time.sleep(0.2)
    assert tree.facts.count(("file.closed", "x")) == 1


def test_names_of_unfinished_files_are_known_once_for_all(tmp_path):
    """The list is one: the inbox and the watching of the tree ask the same."""
    ignore = IgnoreRules(tmp_path)
    for name in ("a.tmp", "a.part", "a~", ".a.swp", "a.crdownload", "#a#", ".#a", "a___jb_tmp___"):
        assert ignore.file(name), name
        assert ignore.file(f"deep/er/{name}"), name
    for name in ("a.md", "part", "tmp.py", "a.partial.md", "template.txt"):
        assert not ignore.file(name), name


# -- what moves and goes rests as well ---------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch):
    """A moment that is long enough for a busy machine."""
    monkeypatch.setattr(young, "REST_S", 0.3)
    monkeypatch.setattr(young, "LAST_WAIT_S", 3.0)


def kinds(tree, path):
    return [kind for kind, where in tree.facts if where == path]


def test_a_file_that_goes_to_come_again_is_changed_and_not_deleted(slow, tree):
    (tree.root / "x.py").write_text("1")
    tree.wait_for(("file.closed", "x.py"))
    tree.facts.clear()
    (tree.root / "x.py").rename(tree.root / "x.py~")  # Emacs, at the first save
    time.sleep(0.05)
    (tree.root / "x.py").write_text("2")
    tree.wait_for(("file.closed", "x.py"))
    assert kinds(tree, "x.py") == ["file.changed", "file.closed"]
    tree.facts.clear()
    (tree.root / "x.py").unlink()
    tree.wait_for(("file.deleted", "x.py"))


def test_two_files_that_are_exchanged_are_both_there(slow, tree):
    from aipass.files import exchange

    for name in ("a", "b"):
        (tree.root / name).write_text(name * 3)
        tree.wait_for(("file.closed", name))
    tree.facts.clear()
    folder = os.open(tree.root, os.O_RDONLY)
    exchange.exchange(folder, "a", folder, "b")
    os.close(folder)
    tree.wait_for(("file.closed", "a"), ("file.closed", "b"))
    assert tree.known_files() == {"a", "b"}
    tree.facts.clear()
    tree.filesystem.scan()
    time.sleep(0.3)
    assert not tree.facts


SWAPS = {
    "two": "mv a t; mv b a; mv t b",
    "a ring of three": "mv a t; mv b a; mv c b; mv t c",
    "a chain": "mv c d; mv b c; mv a b",
    "a save with a backup": "mv a t; mv b a; mv t old",
    "there, and another in its place": "mv a t; echo new > a; mv t a2",
}


@pytest.mark.parametrize("how", SWAPS)
def test_files_that_change_their_names_at_once_are_all_known_afterwards(slow, tree, how):
    for name in ("a", "b", "c"):
        (tree.root / name).write_text(name * 3)
        tree.wait_for(("file.closed", name))
    tree.facts.clear()
    subprocess.run(["sh", "-c", SWAPS[how]], cwd=tree.root, check=True)
    (tree.root / "mark").write_text("")
    tree.wait_for(("file.closed", "mark"))
    there = {path.name for path in tree.root.iterdir()}
    assert tree.known_files() == there
    assert len(set(tree.facts)) == len(tree.facts), "each thing once"
    tree.facts.clear()
    tree.filesystem.scan()
    for name in there - {"mark"}:
        (tree.root / name).unlink()
    tree.wait_for(*(("file.deleted", name) for name in there - {"mark"}))
    assert {kind for kind, _ in tree.facts} == {"file.deleted"}


@settings(max_examples=rounds(25, 400), deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=6))
def test_moves_are_told_so_that_a_small_model_of_the_files_ends_as_the_disk(moves):
    disk = {name: name.upper() for name in "abc"}
    model, young = dict(disk), UnsettledFiles()
    for old, new in moves:
        if old != new and old in disk:
            disk[new] = disk.pop(old)
            young.move(old, new, git=False)
    young.hurry()
    rested = young.take()
    if rested is None:
        assert not [1 for old, new in moves if old != new and old in "abc"]
        return
    for path, other, *_ in rested.back:
        for place in (path, other):
            if place in disk:
                model[place] = disk[place]
    for old, new, _ in rested.moved:
        if new in disk:
            model.pop(old, None)
            model[new] = disk[new]
        elif old not in disk:
            model.pop(old, None)
        if old in disk and old not in {one for _, one, _ in rested.moved}:
            model[old] = disk[old]
    for path, _ in rested.exchanged:
        if path in disk:
            model[path] = disk[path]
    for path, _ in rested.left:
        if path not in disk:
            model.pop(path, None)
    assert model == disk


@pytest.mark.parametrize("back", [True, False])
def test_a_file_that_is_renamed_several_times_at_once_has_moved_once(slow, tree, back):
    (tree.root / "a").write_text("1")
    tree.wait_for(("file.closed", "a"))
    tree.facts.clear()
    for old, new in (("a", "b"), ("b", "c"), ("c", "a" if back else "d")):
        (tree.root / old).rename(tree.root / new)
    (tree.root / "mark").write_text("")
    tree.wait_for(("file.closed", "mark"))
    told = [fact for fact in tree.facts if fact[1] != "mark"]
    assert told == ([] if back else [("file.moved", "d"), ("file.closed", "d")])
    assert tree.known_files() == {"a" if back else "d", "mark"}


def test_a_folder_that_moves_while_its_files_rest_takes_them_with_it(slow, tree):
    (tree.root / "a").mkdir()
    (tree.root / "a/x").write_text("1")
    tree.wait_for(("file.closed", "a/x"))
    (tree.root / "a/x").rename(tree.root / "a/y")
    (tree.root / "a/new").write_text("2")
    (tree.root / "a").rename(tree.root / "b")
    tree.wait(lambda: tree.known_files() == {"b/y", "b/new"})


def test_files_of_a_new_folder_are_told_once_when_they_rest(slow, tree):
    (tree.root / "a/b").mkdir(parents=True)
    for name in ("x", "y"):
        (tree.root / "a/b" / name).write_text("half")
        (tree.root / "a/b" / name).write_text("whole")
    tree.wait_for(("file.closed", "a/b/x"), ("file.closed", "a/b/y"))
    assert kinds(tree, "a/b/x") == kinds(tree, "a/b/y") == ["file.created", "file.closed"]


def test_a_file_whose_place_is_taken_by_another_is_told_once(slow, tree):
    for name in ("f", "f.new"):
        (tree.root / name).write_text(name)
        tree.wait_for(("file.closed", name))
    tree.facts.clear()
    (tree.root / "f").rename(tree.root / "f.bak")
    (tree.root / "f.new").rename(tree.root / "f")
    tree.wait_for(("file.moved", "f"), ("file.moved", "f.bak"))
    assert tree.facts.count(("file.closed", "f")) == 1
    assert tree.known_files() == {"f", "f.bak"}


def test_what_was_overwritten_on_the_way_is_gone(slow, tree):
    for name in ("a", "b", "c"):
        (tree.root / name).write_text(name)
        tree.wait_for(("file.closed", name))
    (tree.root / "a").rename(tree.root / "b")
    (tree.root / "b").rename(tree.root / "c")
    tree.wait_for(("file.deleted", "b"))
    assert tree.known_files() == {"c"}


def test_who_is_touched_without_end_keeps_nothing_of_others_from_being_told():
    times = young.UnsettledFiles()
    times.touch("mine")
    deadline = time.monotonic() + 60
    told = []
    while "mine" not in told and time.monotonic() < deadline:
        times.touch("theirs")
        told += times.touched()
    assert "mine" in told


@pytest.mark.parametrize("way", ["renamed", "removed", "its folder renamed"])
def test_rules_of_a_gitignore_that_is_gone_are_no_more(slow, tree, way):
    (tree.root / "src").mkdir()
    (tree.root / "src/.gitignore").write_text("x.py\n")
    tree.wait_for(("file.closed", "src/.gitignore"))
    if way == "renamed":
        (tree.root / "src/.gitignore").rename(tree.root / "src/notes.txt")
    elif way == "removed":
        (tree.root / "src/.gitignore").unlink()
    else:
        (tree.root / "src").rename(tree.root / "old")
        (tree.root / "src").mkdir()
    (tree.root / "mark").write_text("")
    tree.wait_for(("file.closed", "mark"))
    (tree.root / "src/x.py").write_text("1")
    tree.wait_for(("file.closed", "src/x.py"))
