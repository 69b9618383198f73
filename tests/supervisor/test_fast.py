"""The compiled fast path: what it is told is never more than what Python would decide, and its parts do as Python's."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from json.encoder import encode_basestring_ascii

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pattern_strategies import PATTERNS, is_pattern
from rounds import rounds

from aipass.supervisor.fence import gitfolder, mode

if not mode.HAS_COMPILED:
    pytest.skip(f"no fast path here: {mode.why_not()}", allow_module_level=True)
from aipass.supervisor.fence import fast
from aipass.supervisor.fence.decide import Allowed, Grant, Hold, Operation, decide, whole
from aipass.supervisor.fence.fenced import Fenced
from aipass.supervisor.fence.glob import Globs
from aipass.supervisor.fence.holds import HoldTable
from aipass.supervisor.fence.permit import Common, PermitCall
from aipass.supervisor.fence.serve import Fence
from aipass.supervisor.fence.territory import Kind, Territory, runs_code

NAMES = st.one_of(
    st.sampled_from(["a", "b", "c", "app", "x.py", "config", "HEAD", "objects", ".git", ".claude", "mise.x.toml", "a-wal", "a~", ".trinity"]),
    st.text("abcx.*", min_size=1, max_size=4).filter(lambda name: name not in (".", "..")),
)  # fmt: skip
FOLDERS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
ONE = st.one_of(
    st.sampled_from(["/a/", "/b/", "/a/b/", "app/", "/c/**", "!/a/b/", "!x.py", "*"]),
    PATTERNS.filter(is_pattern),
)
OWNS = st.lists(ONE, min_size=1, max_size=3)
FILES = (Operation.WRITE, Operation.MARK, Operation.CREATE, Operation.REMOVE)


# -- what is told of a folder ------------------------------------------------------------------------------------------


@settings(max_examples=rounds(250, 10_000), deadline=None)
@given(
    st.dictionaries(st.sampled_from(["me", "you", "they"]), st.one_of(st.none(), OWNS), min_size=1),
    st.lists(st.tuples(st.sampled_from(["me", "you"]), OWNS, st.sampled_from([None, 1, 2])), max_size=2),
    st.lists(PATTERNS.filter(is_pattern), max_size=2),
    st.lists(OWNS, max_size=1),
    st.lists(PATTERNS.filter(is_pattern), max_size=1),
    st.lists(FOLDERS, min_size=4, max_size=8),
    st.lists(NAMES, min_size=2, max_size=4),
)
def test_what_is_said_of_a_whole_folder_holds_for_each_plain_name_in_it(
    owns, phases, scratch, withdrawn, guarded, folders, names
):
    ground = Territory.of(
        {
            "agents": {agent: {"home": f".aipass/agents/{agent}", "owns": those} for agent, those in owns.items()},
            "phases": [
                {"plan": "1", "id": f"{number}", "agent": agent, "owns": those, "run": run}
                for number, (agent, those, run) in enumerate(phases)
            ],
            "scratch": scratch,
            "nested": ["a/b"],
            "guarded": {"app/x.py": "a program", "a/c/b": "a program", **{one.strip("!/"): "odd" for one in guarded if "*" not in one}},
        }
    )  # fmt: skip
    phase = next(
        (f"{number}" for number, (agent, _, run) in enumerate(phases) if run == 1 and agent == "me"), None
    )
    one = Grant(
        1, "me", ground, {}, "1" if phase else None, phase, withdrawn=[Globs(those) for those in withdrawn]
    )
    for folder in folders:
        if (kind := whole(one, folder)) is not None:
            for name in names:
                if name not in ground.named_in(folder) and not fast.is_special(name):
                    check_name(one, kind, f"{folder}/{name}")


def check_name(one, kind, path):
    for operation in Operation:
        verdict = decide(one, operation, (path,))
        assert isinstance(verdict, Allowed), (operation, verdict)
        assert not verdict.temps
        assert not verdict.folders
        assert verdict.hold == ((path,) if operation in FILES and kind is not Kind.PHASE else ())
        # Who holds it keeps others out.
        if kind is not Kind.PHASE:
            held = replace(one, holds={path: Hold(2, "you", 0.0)})
            assert isinstance(decide(held, operation, (path,)), Allowed) is (operation not in FILES)


def test_a_folder_that_is_owned_as_a_whole_is_told_as_a_whole():
    ground = Territory.of(
        {
            "agents": {
                "me": {"home": ".aipass/agents/me", "owns": ["/src/", "!/src/gen/", "lib/*.py"]},
                "free": {"home": ".aipass/agents/free", "owns": None},
            },
            "scratch": ["**/__pycache__/"],
        }
    )
    me, free = (Grant(1, agent, ground, {}) for agent in ("me", "free"))
    told = {
        folder: (whole(me, folder), whole(free, folder))
        for folder in ("src", "src/a", "src/gen", "lib", "docs", "src/.claude", ".git", "")
    }
    assert told == {
        "src": (None, None),
        "src/a": (Kind.AGENTS, None),
        "src/gen": (None, None),
        "lib": (None, None),
        "docs": (None, Kind.FREE),
        "src/.claude": (None, None),
        ".git": (None, None),
        "": (None, None),
    }  # fmt: skip


# -- names ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=rounds(2000, 50_000))
@given(
    st.one_of(
        NAMES,
        st.text(min_size=1, max_size=12),
        st.sampled_from(sorted(gitfolder.READ)).map(lambda name: name.replace("k", "\u212a").replace("s", "\u017f")),
        st.sampled_from(["CONFIG", "conﬁg", "Head.LOCK", "x.CODE-workspace", "Mise.local.toml", ".HUSKY", "AIPASS.toml"]),
    ).filter(lambda name: "/" not in name and "\0" not in name and name not in (".", ".."))
)  # fmt: skip
def test_a_name_that_means_something_in_any_folder_is_special(name):
    name = os.fsdecode(os.fsencode(name.encode("utf-8", "ignore").decode()))
    assume(name and len(os.fsencode(name)) < 256)
    ground = Territory.of({"agents": {"me": {"home": ".aipass/agents/me", "owns": ["/src/"]}}})
    means = (
        gitfolder.is_read(name)
        or runs_code(["src", "deep", name], False)
        or runs_code(["src", "deep", name], True)
    )
    means = means or any(
        ground.owner(f"src/deep/{name}", folder).kind is not Kind.AGENTS for folder in (False, True)
    )
    assert fast.is_special(name) or not means
    assert fast._fast.is_special(desk(), os.fsencode(name)) is fast.is_special(name)


def test_all_letters_that_fold_to_ascii_are_known():
    found = [
        chr(code)
        for code in range(0x80, 0x110000)
        if not 0xD800 <= code < 0xE000 and chr(code).casefold().isascii()
    ]
    assert "".join(found) == fast.FOLDING


_DESKS: list[fast.FastPath] = []


def desk():
    if not _DESKS:
        common = Common("/", lambda *_: None, HoldTable(), {})
        common.look()
        _DESKS.append(fast.FastPath(common))
    return _DESKS[0]._desk


# -- tables ----------------------------------------------------------------------------------------------------------------

PATHS = st.one_of(st.text("ab/", min_size=1, max_size=3), st.integers(0, 2000).map(str))
#: Checks have numbers beyond 32 bits.
RUNS = st.sampled_from([1, 2, 1 << 50])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), PATHS, RUNS),
        st.tuples(st.just("let_go"), PATHS, RUNS),
        st.tuples(st.just("end"), st.just(""), RUNS),
        st.tuples(st.just("many"), st.just(""), RUNS),
    ),
    max_size=60,
)


@settings(max_examples=rounds(150, 3000), deadline=None)
@given(STEPS)
def test_the_compiled_holds_do_as_the_others(steps):
    common = Common("/", lambda *_: None, HoldTable(), {})
    common.look()
    path = fast.FastPath(common)
    plain, compiled = HoldTable(), path.holds
    for step, name, run in steps:
        if step == "claim":
            assert plain.claim(name, run, "a") is compiled.claim(name, run, "a")
        elif step == "let_go":
            plain.let_go(name, run), compiled.let_go(name, run, forced=True)
        elif step == "many":
            for number in range(300):
                assert plain.claim(str(number), run, "a") is compiled.claim(str(number), run, "a")
        else:
            plain.end(run), compiled.end(run)
        found = compiled.get(name)
        assert (found and found.run) == ((wanted := plain.get(name)) and wanted.run)
    assert {name: hold.run for name, hold in compiled.items()} == {
        name: hold.run for name, hold in plain.items()
    }
    os.close(path.wake)


def test_a_hold_that_another_call_of_the_run_relies_on_outlives_the_failure_of_the_first():
    common = Common("/", lambda *_: None, HoldTable(), {})
    common.look()
    path = fast.FastPath(common)
    assert path.holds.claim("x", 1, "a") is True
    path.holds.let_go("x", 1)
    assert path.holds.get("x") is None
    assert [path.holds.claim("x", 1, "a"), path.holds.claim("x", 1, "a")] == [True, None]
    path.holds.let_go("x", 1)
    assert path.holds.claim("x", 2, "b") is False
    path.holds.let_go("x", 1, forced=True)
    assert path.holds.claim("x", 2, "b") is True
    os.close(path.wake)


def test_of_many_that_claim_one_path_one_holds_it():
    common = Common("/", lambda *_: None, HoldTable(), {})
    common.look()
    path = fast.FastPath(common)
    won: list[tuple[int, int]] = []
    begin = threading.Barrier(8)

    def claim(run):
        begin.wait()
        won.extend((number, run) for number in range(3000) if path.holds.claim(str(number), run, "a"))

    threads = [threading.Thread(target=claim, args=(run,)) for run in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in won) == list(range(3000))
    assert {name: hold.run for name, hold in path.holds.items()} == {str(number): run for number, run in won}
    os.close(path.wake)


@settings(max_examples=rounds(2000, 50_000))
@given(
    st.one_of(
        st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=20)
    ).filter(lambda path: b"\0" not in path)
)
def test_a_path_is_journalled_as_python_would(path):
    assert fast._fast.escape(path) == encode_basestring_ascii(os.fsdecode(path))[1:-1].encode()


# -- what waits ---------------------------------------------------------------------------------------------------------


def test_what_waits_for_the_threads_is_done_in_order_whenever_they_are_idle():
    """A newer change of rights that is in force before an older one would be undone by it."""
    fence, done = Fence("/", lambda *_: None, ()), []

    class Busy:
        def __init__(self, *said):
            self.said = list(said)

        def is_idle(self):
            return self.said.pop(0) if self.said else True

    path, run = Busy(False, False, True), Busy()
    fence._until_idle = [
        (path, lambda: done.append("older")),
        (path, lambda: done.append("newer")),
        (run, lambda: done.append("run")),
    ]
    fence._look_for_idle()
    assert done == ["run"]
    fence._look_for_idle()
    assert done == ["run"]
    fence._look_for_idle()
    assert done == ["run", "older", "newer"]


def test_an_exchange_that_fails_leaves_no_hold():
    common = Common("/", lambda *_: None, HoldTable(), {})
    common.look()
    path = fast.FastPath(common)
    common.holds = path.holds
    ground = Territory.of({"agents": {"a": {"home": ".aipass/agents/a", "owns": None}}})
    run = Fenced(Grant(1, "a", ground, path.holds), "/run", "/", ())
    work = PermitCall(common, run, None, {})
    asked = [(Operation.REMOVE, "x", Allowed(("x",))), (Operation.WRITE, "x", Allowed(("x",)))]
    work._claim(asked)
    assert path.holds.get("x").run == 1
    work.close()
    assert path.holds.get("x") is None
    os.close(path.wake)


def test_many_that_ask_for_a_freeze_wait_together_once(monkeypatch):
    common = Common("/", lambda *_: None, HoldTable(), {})
    common.look()
    path, slept = fast.FastPath(common), []
    monkeypatch.setattr(fast.FastPath, "is_idle", lambda self: False)
    monkeypatch.setattr(fast, "FREEZE_PAUSE_S", 1000)
    monkeypatch.setattr(fast.time, "sleep", slept.append)
    with path.frozen() as idle:
        assert not idle
    waited = len(slept)
    for _ in range(50):
        with path.frozen() as idle:
            assert not idle
    assert waited
    assert len(slept) == waited
    os.close(path.wake)


# -- which is used ---------------------------------------------------------------------------------------------------------


def test_the_environment_chooses():
    assert mode.mode({mode.CHOICE: "python"}) == "python"
    assert mode.described({mode.CHOICE: "python"}) == "Python: AIPASS_FENCE=python"
    assert [mode.mode(env) for env in ({}, {mode.CHOICE: "mixed"})] == ["compiled", "mixed"]
    assert mode.described({}) == "compiled"
