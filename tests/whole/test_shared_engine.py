"""One thread serves all: what a single run can make it do is bounded, and never at another's cost. Found by a third adversary."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import re
import time
import tracemalloc
from dataclasses import replace

import pytest
from aipass_plugins.secrets import MOST_FOUND, MOST_IN_PIECE, find_secrets
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE, until
from rounds import few

from aipass.config.model import State
from aipass.core import budget
from aipass.features.filesystem.feature import MOST_OF_RULES
from aipass.features.git.fair_share import FairShare
from aipass.features.memory import safe_files as place
from aipass.features.memory.document import FaultError
from aipass.features.memory.model import OBSERVATIONS, parse
from aipass.features.memory.safe_files import ASIDE, Places
from aipass.features.memory.state_files import LOOKS_AT_ONCE, MOST_MOVED_HALVES, StateFiles, StateSaved
from aipass.features.ownership import attribution as authors_module
from aipass.features.ownership.attribution import MOST_SWEPT, Attribution
from aipass.ledger import Ledger
from aipass.ledger.sqlite import _text, storable
from aipass.sources import emitter, inotify
from aipass.sources.filesystem import Filesystem
from aipass.sources.ignore import MAX_LINES, MAX_WEIGHT, IgnoreRules, weight
from aipass.sources.known import MOST_CARRIED, Known
from aipass.sources.observation import FileVersion, Listing, Moved, ScanEnd, Seen, Unused
from aipass.sources.young import UnsettledFiles
from aipass.supervisor.fence.glob import Globs, compile_segment
from aipass.text.secret import masked
from aipass.workspace.layout import Layout

#: Left out of the inner loop (`make fast`): each test has processes, or waits for the kernel to tell.
pytestmark = pytest.mark.slow

TOML = (
    '[agents.w]\ndriver = "command"\ncommand = ["cat"]\n[agents.v]\ndriver = "command"\ncommand = ["cat"]\n'
)


@pytest.fixture
def bench(aipass_bench):
    made = aipass_bench(TOML)
    made.ask("send", agent="w", text="go")
    return made


# -- how much is asked -------------------------------------------------------------------------------------------------


def test_a_run_may_ask_for_so_much_within_a_minute_and_a_person_for_more(bench):
    text = "x" * 30_000
    codes = [bench.ask("message", to="v", text=text, by=1)["exit"] for _ in range(80)]
    taken = codes.index(3)
    assert set(codes[:taken]) == {0}
    assert set(codes[taken:]) == {3}
    assert 0.8 < taken * 30_000 / budget.MOST_BYTES < 1.01
    assert len(bench.events("request.flood")) == 1
    assert bench.ask("message", to="v", text=text)["exit"] == 0
    bench.advance(budget.WINDOW_S + 1)
    assert bench.ask("message", to="v", text=text, by=1)["exit"] == 0


def test_what_is_dear_counts_for_more(bench):
    for number in range(40):
        bench.ask("note", do="learning", text=f"note {number}", by=1)
    ids = [row[0] for row in bench.ledger._db.execute("SELECT id FROM memory WHERE source = 'learning'")]
    codes = [bench.ask("forget", memory=number, by=1)["exit"] for number in ids]
    assert 10 <= codes.index(3) < 20


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 3_000_000)), max_size=60))
def test_within_any_window_no_more_is_taken_than_is_allowed(asked):
    spent, now, taken = budget.Budget(), 0.0, []
    for wait, size in asked:
        now += wait
        if spent.take(1, now, size) is None:
            taken.append((now, size))
    for end, _ in taken:
        inside = [size for at, size in taken if end - budget.WINDOW_S <= at <= end]
        assert len(inside) == 1 or sum(inside) <= budget.MOST_BYTES or inside[0] > budget.MOST_BYTES


# -- secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"://a:{n:x}@" for n in range(3000)),
        "".join(f"://a:b{n:x}@\r\n" for n in range(3000)),
        "ghp_" * 2000 + " ghp_" + "a1B2" * 9,
        "x " + "".join(f"https://user:pass{n}@host/ " for n in range(MOST_IN_PIECE + 5)),
    ],
    ids=["one line", "many lines", "like a token", "just too many"],
)
def test_a_text_full_of_secrets_shows_none_of_them(text):
    shown, kinds = masked(find_secrets, text)
    assert kinds
    assert "@" not in shown.replace("masked]@", "")
    assert "a1B2a1B2" not in shown
    assert len(find_secrets(text)) <= MOST_FOUND + MOST_IN_PIECE + 2


@pytest.mark.parametrize("before", [0, 1990, 3950, 5990, 20_000])
def test_a_key_is_found_whole_wherever_it_lies_in_a_long_line(before):
    key = "sk-ant-" + "aB3" * 30
    shown, _ = masked(find_secrets, " " * before + key + " " * 3000)
    assert "aB3" not in shown


@pytest.mark.parametrize("spaces", [1, 4, 5, 50])
def test_a_key_is_found_however_many_spaces_stand_between_its_name_and_itself(spaces):
    key = "aB3_" * 11
    shown, kinds = masked(find_secrets, f"ibm_cloud_iam_key{' ' * spaces}={' ' * spaces}{key}")
    assert kinds
    assert "aB3" not in shown


# -- what is forgotten, and by whom --------------------------------------------------------------------------------------


def test_what_was_said_to_others_only_a_person_takes_back(bench):
    bench.ask("message", to="v", text="the zanzibar affair", by=1)
    bench.ask("note", do="learning", text="the zanzibar affair", by=1)
    said, noted = (
        bench.ledger._db.execute("SELECT id FROM memory WHERE source = ?", (source,)).fetchone()[0]
        for source in ("message", "learning")
    )
    refused = bench.ask("forget", memory=said, by=1)
    assert (refused["exit"], "only a person" in refused["message"]) == (3, True)
    assert bench.ask("forget", memory=noted, by=1)["exit"] == 0
    told = [event.detail for event in bench.events("request.received") if event.detail["verb"] != "forget"]
    assert [one["text"] for one in told] == ["go", "the zanzibar affair", "(forgotten)"]
    assert bench.ask("forget", memory=said)["exit"] == 0


# -- whose work comes first ----------------------------------------------------------------------------------------------


def test_no_agent_puts_its_work_before_a_persons(bench):
    for priority in (100, 0, -5):
        bench.ask(
            "send", agent="v", text=f"of an agent {priority}", priority=priority, key=str(priority), by=1
        )
    bench.ask("send", agent="v", text="a person's", priority=1, key="mine")
    queued = {row["key"]: row["priority"] for row in bench.dispatches()}
    assert (queued["100"], queued["0"], queued["-5"], queued["mine"]) == (0, 0, -5, 1)


# -- state files -------------------------------------------------------------------------------------------------------


def test_a_program_that_saves_without_end_is_read_now_and_then_and_its_last_word_counts(tmp_path):
    shelf, told = a_shelf(tmp_path, {"w": "w"})
    folder = tmp_path / "w/.trinity"
    until(folder.is_dir)
    for number in range(10 * LOOKS_AT_ONCE):
        half = folder / ".half"
        half.write_text(json.dumps({"schema": 1, "agent": "w", "observations": [{"text": f"note {number}"}]}))
        half.rename(folder / OBSERVATIONS)
        time.sleep(0.002)
    last = f"note {10 * LOOKS_AT_ONCE - 1}"
    until(
        lambda: any(
            last == one.saved.lists["observation"][0].text for one in told if isinstance(one, StateSaved)
        )
    )
    until(shelf.is_settled)
    shelf.stop()
    assert len(told) <= 2 * LOOKS_AT_ONCE


def a_shelf(root, homes):
    """A shelf over the state files of these agents, and what it tells."""
    told = []
    shelf = StateFiles(Layout(root), lambda text: (text, []))
    (root / ".aipass/quarantine").mkdir(parents=True)
    shelf.start(told.extend)
    shelf.serve(homes, State(), {})
    return shelf, told


def test_what_was_set_aside_fills_no_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(place, "MOST_ASIDE", 5)
    monkeypatch.setattr(place, "MAX_ASIDE_BYTES", 1_000_000)
    places = Places(Layout(tmp_path))
    places.homes = {"w": "w"}
    (tmp_path / ".aipass/quarantine").mkdir(parents=True)
    kept = []
    with places.folder("w") as folder:
        for number in range(9):
            (tmp_path / "w/.trinity/local.json").write_text(f"rubbish {number}")
            kept.append(places.set_aside("w", "local.json", folder))
        assert sorted(one.name for one in (tmp_path / ASIDE / "w").iterdir()) == [
            one.rpartition("/")[2] for one in kept[-5:]
        ]
        (tmp_path / "w/.trinity/local.json").write_bytes(b"x" * 2_000_000)
        places.set_aside("w", "local.json", folder)
    assert len(list((tmp_path / ASIDE / "w").iterdir())) == 1, "the newest stays, whatever its size"


# -- files ---------------------------------------------------------------------------------------------------------------


def file(path, number=1):
    return Seen(path, FileVersion(number, number, number), complete=True)


@pytest.fixture
def known():
    """What lies in `t` or has `run` in its name was made by run 1."""
    ledger = Ledger.in_memory()

    class One:
        def by(self, path):
            return 1 if path.startswith("t/") or "run" in path else None

        last = by

    yield Known(ledger, One())
    ledger.close()


def told(known, *seen):
    return [(fact.kind, fact.path) for one in seen for fact in known.settle(one)]


def test_folders_that_are_renamed_to_and_fro_are_told_by_the_folder_at_last_and_no_file_is_lost(known):
    each = MOST_CARRIED // 10
    told(known, Listing("t/a", tuple(file(f"t/a/{n}", n + 1) for n in range(each)), quiet=True))
    counts = []
    names = ["t/a", "t/b"]
    for _ in range(15):
        counts.append(len(told(known, Moved(*names, folder=True))))
        names.reverse()
    assert counts[:10] == [2 * each] * 10
    assert counts[10:] == [1] * 5
    assert told(known, file("t/b/0", 1)) == []
    assert told(known, file("t/b/0", 5000)) == [("file.changed", "t/b/0"), ("file.closed", "t/b/0")]
    # Nobody else has to suffer for it, and no drop is lost.
    told(known, Listing("mine", tuple(file(f"mine/{n}", n + 1) for n in range(3 * each)), quiet=True))
    for names in (("mine", "yours"), ("yours", "mine")) * 5:
        assert len(told(known, Moved(*names, folder=True))) == 6 * each
    told(known, Moved("t/b", "inbox/w", folder=True))
    assert len(told(known, Moved("inbox/w", "inbox/v", folder=True))) == 2 * each


def test_what_a_gitignore_hides_is_told_and_so_is_what_became_of_it(known):
    told(known, Listing("own", (file("own/a", 1), file("own/b", 2)), quiet=True), file("own/.gitignore", 3))
    hides = Listing("own", (file("own/.gitignore", 3),), ignoring=True, hidden=frozenset(("a", "b")))
    assert told(known, hides) == [("watch.hidden", "own/a")]
    assert told(known, hides) == [], "once, as long as it is so"
    shows = Listing("own", (file("own/.gitignore", 3), file("own/a", 9), file("own/b", 2)), ignoring=True)
    assert told(known, shows) == [("file.changed", "own/a"), ("file.closed", "own/a")]


def test_a_folder_that_a_gitignore_hides_keeps_what_is_known_of_it(known):
    told(known, Listing("own/deep", (file("own/deep/a", 1),), quiet=True))
    end = ScanEnd("", frozenset(("", "own")), "ignore", hidden=frozenset(("own/deep",)))
    assert told(known, end) == [("watch.hidden", "own/deep/a")]
    assert told(known, Listing("own/deep", (file("own/deep/a", 7),))) == [
        ("file.changed", "own/deep/a"),
        ("file.closed", "own/deep/a"),
    ]
    assert told(known, ScanEnd("", frozenset(("", "own")), "start")) == [("file.deleted", "own/deep/a")]


def test_what_is_shown_for_the_first_time_is_no_news_and_what_has_come_is(known):
    entries = (file("x/old", 1), file("x/new", 2), file("x/run", 3))
    shows = Listing("x", entries, ignoring=True, shown=frozenset(("old", "run")))
    assert told(known, shows) == [
        *((kind, "x/new") for kind in ("file.created", "file.closed")),
        *((kind, "x/run") for kind in ("file.created", "file.closed")),
    ], "what a run has made is told in any case"


def test_a_run_that_hides_files_is_named(repository):
    repository.write(
        "aipass.toml",
        '[agents.w]\ndriver = "command"\ncommand = ["sh", "w.sh"]\nowns = ["own/", "own/.gitignore"]\n'
        '[agents.r]\ndriver = "command"\ncommand = ["cat"]\n'
        '[[on]]\nname = "review"\nevent = "file.closed"\npaths = ["own/*.py"]\ndispatch = "r"\ntask = "review"\n',
    )
    repository.write("own/app.py", "1\n")
    repository.write(
        "w.sh",
        "echo '*' > own/.gitignore; sleep 1; echo 22 > own/app.py; sleep 1; rm own/.gitignore; sleep 1\n",
    )
    repository.aipass("up", "--detach")
    repository.aipass("send", "w", "go", "--wait", check=None)
    repository.answer("r/*.md")
    hidden = [
        json.loads(line)
        for line in repository.aipass("events", "--json", "--kind", "watch.hidden").stdout.splitlines()
    ]
    assert hidden
    assert hidden[0]["detail"]["files"] == 1
    assert hidden[0]["path"] == "own/app.py"


def test_patterns_that_take_long_are_not_used_and_ordinary_ones_are(tmp_path):
    refused = []
    ignore = IgnoreRules(tmp_path, (), lambda path, reason: refused.append((path, reason)))
    (tmp_path / ".gitignore").write_text("*.log\n**/build/\n*.py[cod]\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/.gitignore").write_text(
        ("*a" * 40 + "b\n") * (MAX_WEIGHT // weight("*a" * 40 + "b") + 1)
    )
    assert ignore.file("own/x.log")
    assert not ignore.file("own/" + "a" * 90)
    assert [path for path, _ in refused] == ["own/.gitignore"]
    assert "take too long" in refused[0][1]


@pytest.mark.parametrize(
    "line",
    few(["*" + "?" * 97 + "b", "?" * 90 + "*" + "?" * 90 + "b", "[!b]*" + "[!b]" * 60 + "b", "?" * 249 + "b", "a*" + "a" * 200,
     "*a*" + "?" * 100 + "b", "*" + "?" * 126 + "b*", "*?????????????????b*", "*[Dd]ebug*", "**/*????????b*/**/f", "a/**/*b*/**/c", "a/" * 90 + "b", "**/" + "?" * 90 + "*b", "a/" * 20 + "*b", "*.py[" + "cod" * 60 + "]"], 5),
)  # fmt: skip
def test_no_pattern_makes_the_rules_slow(tmp_path, line):
    """Against ordinary patterns, as many as are used, in the same process: every file that appears is held against them."""
    ordinary, hard = tmp_path / "ordinary", tmp_path / "hard"
    for folder, text in (
        (ordinary, "".join(f"*.x{n}\nlogs{n}/\n" for n in range(1000))),
        # As many as are taken.
        (hard, f"{line}\n" * min(MAX_LINES, MAX_WEIGHT // weight(line), 199_000 // (len(line) + 1))),
    ):
        folder.mkdir()
        (folder / ".gitignore").write_text(text)
    name = "a" * 250

    def cost(ignore):
        ignore.file(name)
        begun = time.process_time()
        for _ in range(5):
            ignore.file(name)
        return time.process_time() - begun

    refused = []
    judged = IgnoreRules(hard, (), lambda path, reason: refused.append(reason))
    assert min(cost(judged) for _ in range(3)) < 20 * max(
        0.002, min(cost(IgnoreRules(ordinary)) for _ in range(3))
    )
    assert not refused


@given(
    st.lists(st.sampled_from(["a", "b", "?", "*", "**", "[ab]", "[!a]", "ab"]), min_size=1, max_size=6).map("".join),
    st.text("abc", max_size=6),
)  # fmt: skip
def test_a_segment_matches_as_the_same_regular_expression_does(segment, name):
    words = {"?": ".", "*": ".*"}
    form = "".join(
        one.replace("!", "^") if one.startswith("[") else words.get(one, one)
        for one in re.findall(r"\[[^]]*\]|.", segment)
    )
    assert compile_segment(segment)(name) == (re.fullmatch(form, name, re.DOTALL) is not None)


def test_what_a_folder_costs_does_not_grow_with_those_above(tmp_path, monkeypatch):
    """An agent makes a chain of folders in no time: each is asked about a few times, however deep it lies."""
    asked = []
    real = IgnoreRules.folder
    monkeypatch.setattr(IgnoreRules, "folder", lambda self, path: (asked.append(path), real(self, path))[1])
    told = queue.SimpleQueue()
    source = Filesystem(tmp_path, baseline=True)
    source.start(lambda batch: [told.put(one) for one in batch])
    try:
        assert source._watched.emitter.settled.wait(PATIENCE)
        deep = tmp_path.joinpath(*["d"] * 200)
        deep.mkdir(parents=True)
        (deep / "f").write_text("x")
        while not (isinstance(one := told.get(timeout=PATIENCE), Seen) and one.path.endswith("/f")):
            pass
        assert len(asked) < 200 * 8
    finally:
        source.stop()


def test_only_folders_with_patterns_are_asked(tmp_path):
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("*.log\n!d/keep.log\n")
    (tmp_path / "a/b/.gitignore").write_text("*.foo\n/c/d/one\n")
    ignore = IgnoreRules(tmp_path)
    for path, is_ignored in (
        ("a/b/c/d/x.log", True),
        ("a/b/c/d/x.foo", True),
        ("a/x.foo", False),
        ("a/b/c/d/one", True),
        ("a/b/c/d/two", False),
    ):
        assert ignore.file(path) is is_ignored, path
    assert ignore.has_rules("a")
    assert not ignore.has_rules("a/b/c")
    ignore.file("a/b/c/d/x")
    assert ignore._files["a/b/c/d"].above == "a/b"
    assert ignore._files["a/b"].above == ""
    assert ignore._files[""].above is None


NAMES = st.sampled_from(["a", "b", "ab", "a.x", "b.x"])
PATTERNS = st.lists(
    st.tuples(
        st.sampled_from(["", "!"]),
        st.sampled_from(["", "/", "**/", "a/", "b/**/"]),
        st.sampled_from(["a", "b", "*", "*.x", "a*", "*b", "?"]),
        st.sampled_from(["", "/"]),
    ).map("".join),
    min_size=1,
    max_size=4,
)


@given(PATTERNS, st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=5, unique=True))
def test_files_in_folders_that_are_not_ignored_are_judged_by_their_own_path_as_git_does(
    tmp_path_factory, patterns, paths
):
    from git_kit import git

    root = tmp_path_factory.mktemp("r")
    git(root, "init", "-q")
    (root / ".gitignore").write_text("\n".join(patterns) + "\n")
    for path in paths:
        try:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
    there = [
        os.path.relpath(os.path.join(top, name), root)
        for top, _, names in os.walk(root)
        for name in names
        if "/.git" not in f"{top}/" and name != ".gitignore"
    ]
    said = git(
        root, "check-ignore", "--no-index", "-z", "--stdin", check=False, stdin="\0".join(there).encode()
    )
    by_git = {path for path in said.split("\0") if path}
    ignore = IgnoreRules(root)

    def is_hidden(path):
        above = [path[:at] for at, character in enumerate(path) if character == "/"]
        return any(map(ignore.folder, above)) or ignore.file(path)

    assert set(filter(is_hidden, there)) == by_git, patterns


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbffirst.py\nb.py\n",
        b"log[[:digit:]].py\n[[:upper:]]*.py\n[![:alpha:]]x.py\n[[:space:]a].py\n[[:nosuch:]].py\n[[:digit:][:upper:]_]y.py\n",
        b"# a\x0cfirst.py\n# b\x0bb.py\n# c\xe2\x80\xa8log1.py\n# d\x1clog2.py\r\nX.py\r\n",
        b"first.py\r\nb.py\r\n",
        b"a.py\r\r\nb.py",
    ],
)
def test_lines_and_classes_are_gits(tmp_path, text):
    from git_kit import git

    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_bytes(text)
    names = [
        "first.py",
        "a.py",
        "b.py",
        "log1.py",
        "log2.py",
        "logx.py",
        "X.py",
        "Xz.py",
        "1x.py",
        "zx.py",
        "1y.py",
        "Qy.py",
        "_y.py",
        "dy.py",
        " .py",
    ]
    for name in names:
        (tmp_path / name).touch()
    said = git(tmp_path, "check-ignore", "-z", "--stdin", check=False, stdin="\0".join(names).encode())
    ignore = IgnoreRules(tmp_path)
    assert {name for name in names if ignore.file(name)} == {name for name in said.split("\0") if name}


def test_a_pattern_names_a_path_as_it_covers_it_where_nothing_above_matches():
    globs = Globs(["a/b", "*.x", "c/", "d/**/e"], gitignore=True)
    for path in ("a/b", "q/w.x", "c/", "q/c/", "d/e", "d/1/2/e"):
        assert globs.naming(path) is not None, path
    for path in ("a/b/c", "q/c", "e", "x/a/b", "q/w.x/deep"):
        assert globs.naming(path) is None, path


def test_files_that_are_kept_open_take_turns_to_be_asked_about(tmp_path, monkeypatch):
    authors = Attribution(Layout(tmp_path))
    asked = []
    monkeypatch.setattr(authors, "_look", asked.append)
    many = list(map(str, range(3 * MOST_SWEPT)))
    authors._open = {1: dict.fromkeys(many), 2: {"theirs": None}}
    authors.sweep()
    assert "theirs" in asked, "another run's waits for none of them"
    for _ in range(5):
        authors.sweep()
    assert asked.count("theirs") == 6
    assert sorted(set(asked) - {"theirs"}) == sorted(many)


@given(
    st.text(
        st.characters(min_codepoint=0x10F000) | st.sampled_from("a\ud800\udcff\udfff\U0010f7ff"), max_size=20
    )
)
def test_whatever_a_name_holds_no_two_are_kept_as_one(text):
    kept = storable(text)
    kept.encode()
    assert _text(kept.encode()) == text


def test_no_gitignore_takes_away_what_those_above_may_say(tmp_path):
    refused = []
    ignore = IgnoreRules(tmp_path, (), lambda path, reason: refused.append(path))
    (tmp_path / ".gitignore").write_text("**/*.secret\n*.log\n")
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".gitignore").write_text(
            ("*aaaaaaaaaaaaaaaaa*b\n") * (MAX_WEIGHT // weight("*aaaaaaaaaaaaaaaaa*b") - 5)
        )
    assert not ignore.file("own/x")
    assert not ignore.file("other/x")
    assert ignore.file("own/x.secret")
    assert ignore.file("y.secret")
    assert not refused, "what is beside counts for nothing either"
    (tmp_path / "own/deep").mkdir()
    (tmp_path / "own/deep/.gitignore").write_text("*aaaaaaaaaaaaaaaaa*b\n" * 100)
    assert not ignore.file("own/deep/x")
    assert refused == ["own/deep/.gitignore"]


def test_that_files_are_hidden_is_no_news_after_a_restart(known):
    told(known, Listing("own", (file("own/a", 1),), quiet=True))
    again = Known(known._ledger)
    assert told(again, Listing("own", (), first=True, hidden=frozenset("a"))) == []
    assert told(again, Listing("own", (), ignoring=True, hidden=frozenset("a"))) == []


@pytest.mark.parametrize(
    "word",
    few(
        [
            "artif",
            "jfrog",
            "buildkit",
            "eyJ",
            "ghp_",
            "npm_",
            "NPM_TOKEN",
            "SG.",
            "xoxb-1-",
            "ibm_cloud_iam",
            "softlayer_api_key",
            "ibm_cos_hmac",
            "cloudant_api_key",
            "sq0csp-",
            "rk_live_",
            "AC",
            "SK",
            "AKCp",
            "AIza",
            "sk-ant-",
            "glpat-",
            "://a:b",
            "AKIA",
            "hooks.slack.com/services/",
            "M.",
            *(
                name + between
                for name in (
                    "key",
                    "ibm_cloud_iam_api_key",
                    "cloudant_api_key",
                    "sl_password",
                    "aws token",
                    "NPM_TOKEN",
                )
                for between in (" " * 3990, " " * 40, "    =", "    =    ", "\t" * 3990, "=" * 3990)
            ),
            "x " * 40 + "\n",
            "\n",
        ],
        20,
    ),
)
def test_no_word_makes_the_search_for_secrets_slow(word):
    """Against a plain text of the same length in the same process: what everybody waits for may not hang on what one says."""
    plain, hard = "plain words " * 2000, word * (24_000 // len(word))
    find_secrets(word)

    def cost(text):
        begun = time.process_time()
        find_secrets(text[:24_000])
        return time.process_time() - begun

    assert min(cost(hard) for _ in range(2)) < 60 * max(0.002, min(cost(plain) for _ in range(3)))


@pytest.mark.parametrize("what", ["another folder", "a link"])
def test_who_exchanges_the_whole_folder_is_looked_at_now_and_then_as_well(tmp_path, what):
    shelf, told = a_shelf(tmp_path, {"w": "w"})
    home = tmp_path / "w"
    until((home / ".trinity").is_dir)
    for number in range(5 * LOOKS_AT_ONCE):
        new = home / "new"
        if what == "a link":
            new.symlink_to("nowhere")
        else:
            new.mkdir()
            (new / OBSERVATIONS).write_text(
                json.dumps({"schema": 1, "agent": "w", "observations": [{"text": f"note {number}"}]})
            )
        try:
            os.rename(home / ".trinity", home / f"old{number}")
        except FileNotFoundError:
            pass
        try:
            os.rename(new, home / ".trinity")
        except OSError:
            os.rename(new, home / f"left{number}")  # it was put back meanwhile
        time.sleep(0.005)
    # What the kernel tells of the last exchange may not have been read yet.
    until(
        lambda: shelf.is_settled() and (home / ".trinity").is_dir() and not (home / ".trinity").is_symlink()
    )
    shelf.stop()
    assert 1 <= len(told) <= 2 * LOOKS_AT_ONCE


@pytest.mark.parametrize("what", ["another folder", "a link", "a file", "nothing"])
@pytest.mark.parametrize("is_polled", [False, True])
def test_a_folder_that_is_exchanged_while_its_watch_begins_is_looked_after(
    tmp_path, monkeypatch, what, is_polled
):
    home, add, exchanged = tmp_path / "w", inotify.Inotify.add, []

    def add_late(self, path, mask):
        if not exchanged:
            exchanged.append(os.rename(home / ".trinity", home / "old"))
            if what == "a link":
                (home / ".trinity").symlink_to("old")
            elif what == "a file":
                (home / ".trinity").write_text("x")
            elif what == "another folder":
                (home / ".trinity").mkdir()
        if is_polled:
            raise OSError(errno.ENOSPC, "no more watches")
        return add(self, path, mask)

    monkeypatch.setattr(inotify.Inotify, "add", add_late)
    shelf, told = a_shelf(tmp_path, {"w": "w"})
    until(lambda: exchanged)
    until(lambda: (home / ".trinity").is_dir() and not (home / ".trinity").is_symlink())
    (home / ".trinity" / OBSERVATIONS).write_text(
        json.dumps({"schema": 1, "agent": "w", "observations": [{"text": "a note"}]})
    )
    until(lambda: any(isinstance(one, StateSaved) for one in told))
    shelf.stop()


def test_all_that_a_note_ever_said_is_forgotten_in_one_look(bench, monkeypatch):
    from aipass.features.memory import store as keeper

    for text in ("étage one", "étage two", "plain three"):
        bench.ask("note", do="learning", text=text, by=1)
    number = bench.ledger._db.execute("SELECT id FROM memory WHERE text = 'étage two'").fetchone()[0]
    bench.ledger.run(
        "note_changed", {"id": number, "stamp": 1, "earlier": json.dumps(["étage one", "plain three"])}
    )
    looks = []
    monkeypatch.setattr(
        keeper.StateStore,
        "_scrub",
        lambda self, texts, agent, real=keeper.StateStore._scrub: (
            looks.append(texts),
            real(self, texts, agent),
        ),
    )
    assert bench.ask("forget", memory=number, by=1)["exit"] == 0
    assert looks == [{"étage one", "étage two", "plain three"}]
    noted = [
        event.detail["text"] for event in bench.events("request.received") if event.detail["verb"] == "note"
    ]
    assert noted == ["(forgotten)"] * 3


def test_who_moved_a_folder_is_known_by_the_journals_names_of_its_files(tmp_path):
    from aipass.supervisor.fence.fenced import JOURNAL

    layout, ledger = Layout(tmp_path), Ledger.in_memory()
    layout.run(4).mkdir(parents=True)
    authors = Attribution(layout)
    authors.follow(4)
    known = Known(ledger, authors)
    each = MOST_CARRIED // 10
    told(known, Listing("a", tuple(file(f"a/{n}", n + 1) for n in range(each)), quiet=True))
    names, counts = ["a", "b"], []
    with (layout.run(4) / JOURNAL).open("a") as journal:
        for _ in range(12):
            for n in range(each):
                journal.write(json.dumps(["remove", 1, f"{names[0]}/{n}", 1]) + "\n")
                journal.write(json.dumps(["create", 1, f"{names[1]}/{n}", 1]) + "\n")
            journal.flush()
            authors.refresh()
            counts.append(len(told(known, Moved(*names, folder=True))))
            names.reverse()
    assert counts == [2 * each] * 10 + [1] * 2
    ledger.close()


def test_a_run_that_writes_very_much_takes_nothing_from_what_is_known_of_others(tmp_path, monkeypatch):
    from aipass.supervisor.fence.fenced import JOURNAL

    monkeypatch.setattr(authors_module, "MAX_KNOWN", 300)
    monkeypatch.setattr(authors_module, "FORGOTTEN_AT_ONCE", 10)
    layout = Layout(tmp_path)
    authors = Attribution(layout)
    wrote = {1: [f"v/{n}" for n in range(100)], 2: [f"e/{n}" for n in range(2000)]}
    for run, paths in wrote.items():
        layout.run(run).mkdir(parents=True)
        authors.follow(run)
        with (layout.run(run) / JOURNAL).open("a") as journal:
            for path in paths:
                (tmp_path / path).parent.mkdir(exist_ok=True)
                (tmp_path / path).touch()
                journal.write(json.dumps(["write", 1, path, 1]) + "\n")
        if run == 1:
            authors.ended(1, time.time() + 60)
    authors.refresh()
    assert authors.written_by(1) == wrote[1]
    kept = authors.written_by(2)
    assert kept == wrote[2][-len(kept) :], "of its own the newest stay"
    assert 180 <= len(kept) <= 200
    assert len(authors.known()) <= 300


def test_files_like_ours_in_a_state_folder_that_is_moved_cost_others_nothing(tmp_path):
    """Found: 12,000 of them took 49 s, in which no save of another agent was read."""
    shelf, told = a_shelf(tmp_path, {"w": "w", "v": "v"})
    folder = tmp_path / "w/.trinity"
    until(lambda: (tmp_path / "v/.trinity").is_dir())
    many = 1000
    for number in range(many):
        entry = {"schema": 1, "agent": "w", "observations": [{"text": f"note {number}"}]}
        (folder / f".{OBSERVATIONS}.{number:08x}").write_text(json.dumps(entry))
    (folder / ".passport.json.0123abcd").mkdir()  # what cannot be removed as a file stands in nobody's way
    folder.rename(tmp_path / "w/moved")
    (tmp_path / "w/moved").rename(folder)
    entry = {"schema": 1, "agent": "v", "observations": [{"text": "theirs"}]}
    (tmp_path / "v/.trinity/.half").write_text(json.dumps(entry))
    (tmp_path / "v/.trinity/.half").rename(tmp_path / "v/.trinity" / OBSERVATIONS)
    until(lambda: any(one.agent == "v" for one in told if isinstance(one, StateSaved)))
    until(lambda: len(list(folder.iterdir())) < many / 10)
    until(shelf.is_settled)
    shelf.stop()
    assert sum(one.agent == "w" for one in told) <= 2 * LOOKS_AT_ONCE


def test_who_moves_the_folder_to_and_fro_with_files_like_ours_is_looked_at_now_and_then(tmp_path):
    shelf, told = a_shelf(tmp_path, {"w": "w"})
    folder = tmp_path / "w/.trinity"
    until(folder.is_dir)
    for turn in range(10 * LOOKS_AT_ONCE):
        for number in range(20):
            with contextlib.suppress(FileNotFoundError):  # it is just being made again
                (folder / f".{OBSERVATIONS}.{turn:04x}{number:04x}").write_text("rubbish")
        with contextlib.suppress(OSError):
            folder.rename(tmp_path / "w/moved")
            (tmp_path / "w/moved").rename(folder)
        time.sleep(0.002)
    shelf.stop()
    assert len(told) <= 2 * LOOKS_AT_ONCE * MOST_MOVED_HALVES


def test_of_folders_that_were_set_aside_few_are_kept(tmp_path):
    places = Places(Layout(tmp_path))
    places.homes = {"w": "w"}
    (tmp_path / ".aipass/quarantine").mkdir(parents=True)
    kept = []
    with places.folder("w") as folder:
        for number in range(9):
            (tmp_path / "w/.trinity/local.json").mkdir()
            (tmp_path / f"w/.trinity/local.json/{number}").write_text("large")
            kept.append(places.set_aside("w", "local.json", folder))
    assert sorted(one.name for one in (tmp_path / ASIDE / "w").iterdir()) == [
        one.rpartition("/")[2] for one in kept[-place.MOST_ASIDE_FOLDERS :]
    ]


def test_agents_that_are_gone_from_the_configuration_wait_for_nothing(tmp_path):
    shelf, _ = a_shelf(tmp_path, {"w": "w"})
    folder = tmp_path / "w/.trinity"
    until(folder.is_dir)
    until(shelf.is_settled)
    for _ in range(3 * LOOKS_AT_ONCE):
        (folder / OBSERVATIONS).write_text("rubbish")
        time.sleep(0.002)
    until(lambda: not shelf.is_settled())
    shelf.serve({}, State(), {})
    until(shelf.is_settled)
    assert not shelf._late
    shelf.stop()
    assert not list((tmp_path / ".aipass").glob("crash*"))


# -- what a round of the watching thread costs ---------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A tree that is watched, the rounds that its thread makes, and the scans."""
    rounds, scans = [], []
    real_wait, real_scan = emitter.TreeEmitter._wait, emitter.TreeEmitter._scan
    monkeypatch.setattr(emitter.TreeEmitter, "_wait", lambda self: (rounds.append(1), real_wait(self))[1])
    monkeypatch.setattr(
        emitter.TreeEmitter,
        "_scan",
        lambda self, top, reason: (scans.append((top, reason)), real_scan(self, top, reason))[1],
    )
    told = queue.SimpleQueue()
    source = Filesystem(tmp_path, baseline=True)
    source.start(lambda batch: [told.put(one) for one in batch])
    assert source._watched.emitter.settled.wait(PATIENCE)

    def settle():
        mark = tmp_path / f"mark{time.time_ns()}"
        mark.write_text("")
        while not (isinstance(one := told.get(timeout=PATIENCE), Seen) and one.path == mark.name):
            pass

    yield tmp_path, rounds, scans, settle
    source.stop()


def test_rules_that_wait_for_their_scan_keep_no_thread_busy(watched):
    root, rounds, _, settle = watched
    settle()
    rounds.clear()
    (root / ".gitignore").write_text("*.log\n")
    settle()
    assert len(rounds) < 60


def test_folders_that_are_exchanged_have_nobody_look_through_the_tree(watched):
    from aipass.files import exchange

    root, _, scans, settle = watched
    for name in ("a", "b", "c/d/e"):
        (root / name).mkdir(parents=True)
    settle()
    scans.clear()
    folder = os.open(root, os.O_RDONLY)
    for _ in range(5):
        exchange.exchange(folder, "a", folder, "b")
    os.close(folder)
    settle()
    (root / "a/new").write_text("")
    (root / "b/other").write_text("")
    settle()
    assert ("a", "asked") in scans
    assert not [top for top, _ in scans if top not in {"a", "b"}]


def test_a_file_whose_time_is_set_without_end_is_told_as_touched():
    young = UnsettledFiles()
    young.touch("a")
    due = young.due()
    young.touch("a")
    assert young.due() == due


def test_a_scan_for_another_reason_takes_nothing_from_what_is_told_of_hidden_files(known):
    told(known, Listing("s", (file("s/a"),), quiet=True))
    hides = Listing("s", (), hidden=frozenset({"a"}))
    assert told(known, hides) == []
    assert told(known, ScanEnd("", frozenset({"s"}), "asked")) == []
    assert told(known, replace(hides, ignoring=True)) == [("watch.hidden", "s/a")]
    assert told(known, replace(hides, ignoring=True)) == []
    # What was hidden before anybody looked is no news.
    told(
        known, Listing("t", (file("t/a"),), quiet=True), Listing("t", (), hidden=frozenset({"a"}), first=True)
    )
    assert told(known, Listing("t", (), hidden=frozenset({"a"}), ignoring=True)) == []


def test_a_persons_folders_are_told_file_by_file_whoever_wrote_them_before(tmp_path):
    from aipass.supervisor.fence.fenced import JOURNAL

    layout = Layout(tmp_path)
    layout.run(4).mkdir(parents=True)
    (layout.run(4) / JOURNAL).write_text(json.dumps(["write", 1, "a/x", 1]) + "\n")
    authors = Attribution(layout)
    authors.follow(4)
    authors.refresh()
    assert authors.last("a/x") == 4
    authors.ended(4, time.time())
    assert authors.last("a/x") is None


def test_who_hides_a_file_is_the_one_whose_pattern_does(tmp_path):
    (tmp_path / "own/deep").mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("*.log\nown/deep/\n")
    (tmp_path / "own/.gitignore").write_text("*.txt\n")
    ignore = IgnoreRules(tmp_path)
    assert ignore.hider("own/x.log") == ".gitignore"
    assert ignore.hider("own/x.txt") == "own/.gitignore"
    assert ignore.hider("own/deep/x") == ".gitignore"
    assert ignore.hider("own/x.py") is None


def test_many_gitignores_that_are_not_used_give_a_few_notices(aipass_bench):
    made = aipass_bench(TOML)
    for number in range(30):
        made.engine._own.append(Unused(f"d{number}/.gitignore", "larger than 200 kB"))
    made.settle()
    notices = [notice for notice in made.notices() if ".gitignore" in notice]
    assert len(notices) == MOST_OF_RULES + 1
    assert len(made.events("watch.unused")) == 30


def test_a_folder_that_has_just_been_made_changes_no_rules(watched):
    """`mkdir -p`: it was looked into before the kernel's word of it is read, so it is known already."""
    root, _, scans, settle = watched
    settle()
    scans.clear()
    (root / "/".join("d" * 60)).mkdir(parents=True)
    settle()
    assert not [scan for scan in scans if scan[1] == "ignore"]
    # Another folder with other rules in its place does.
    (root / "d/.gitignore").write_text("*.log\n")
    settle()
    scans.clear()
    (root / "d").rename(root / "e")
    (root / "new").mkdir()
    (root / "new/.gitignore").write_text("*.txt\n")
    (root / "new").rename(root / "d")
    settle()
    until(lambda: [scan for scan in scans if scan[1] == "ignore"])


def test_files_deep_down_ask_of_the_folders_above_once_a_scan(watched, monkeypatch):
    root, _, _, settle = watched
    deep = root / "/".join("d" * 200)
    deep.mkdir(parents=True)
    for number in range(50):
        (deep / f"f{number}").write_text("")
    settle()
    asked = []
    real = IgnoreRules.folder
    monkeypatch.setattr(IgnoreRules, "folder", lambda self, path: (asked.append(path), real(self, path))[1])
    (root / ".gitignore").write_text("*.log\n")
    settle()
    settle()
    assert len(asked) < 200 * 10


def test_what_a_run_brings_back_after_git_took_it_away_is_its_own(known):
    for path, by_git in (("mine/a", True), ("t/a", False)):
        known.settle(file(path, 1))
        (fact, *_) = known.settle(replace(file(path, 2), back=True))
        assert fact.detail.get("git", False) is by_git, path


@pytest.mark.parametrize(
    "document",
    [
        {"todos": [], "learnings": [1] * 300_000},
        {"todos": [{}] * 200_000, "learnings": []},
        {"todos": [{"text": "x", "tags": [1] * 300_000}], "learnings": []},
        {"todos": [[]] * 300_000, "learnings": []},
        {"todos": [], "learnings": [], **{f"k{n}": 1 for n in range(60_000)}},
        {"todos": [{"text": "x", **{f"k{n}": 1 for n in range(60_000)}}], "learnings": []},
        {"todos": [], "learnings": [], "now": {f"k{n}": 1 for n in range(60_000)}},
    ],
    ids=["learnings", "todos", "tags", "lists", "keys", "keys of an entry", "keys of now"],
)
def test_a_save_with_very_much_that_is_wrong_costs_little(document):
    text = json.dumps(document)
    tracemalloc.start()
    try:
        with pytest.raises(FaultError):
            parse("local.json", text.encode(), State())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * len(text), "a thousand bytes an error would be a hundred times as much"


def test_who_had_others_wait_has_a_share_of_a_minute():
    share = FairShare()
    share.spend("a", 10.0, 0.7)
    share.spend("a", 20.0, 0.7)
    assert (share.taken("a", 30.0), share.taken("b", 30.0)) == (1.4, 0)
    assert share.taken("a", 71.0) == 0.7
    assert share.taken("a", 81.0) == 0
