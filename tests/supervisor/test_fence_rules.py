"""The fence's pure parts: the filter on sample calls, the table against the kernel's headers, patterns, and decisions."""

from __future__ import annotations

import errno
import os
import re
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec
from pattern_strategies import PATHS, PATTERNS, is_pattern

from aipass.supervisor.fence import bpf, kernel
from aipass.supervisor.fence.bpf import ALLOW
from aipass.supervisor.fence.calls import (
    CALLS,
    LAST_KNOWN,
    LET_THROUGH,
    WITHOUT_WALL,
    Treatment,
    data,
    explain,
)
from aipass.supervisor.fence.decide import Allowed, Grant, Hold, Operation, Refused, decide
from aipass.supervisor.fence.glob import Globs, segments_of
from aipass.supervisor.fence.program import ERRNO, NOTIFY, build
from aipass.supervisor.fence.serve import CARRIED
from aipass.supervisor.fence.territory import Kind, Territory
from aipass.text.overlap import common_path

MACHINES = ("x86_64", "aarch64")


def run_filter(program: bytes, seen: bytes) -> int:
    """Classic BPF, as the kernel interprets it."""
    steps = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, yes, no, k = steps[at]
        at += 1
        match code:
            case bpf.LD_ABS:
                accumulator = struct.unpack_from("=I", seen, k)[0]
            case bpf.RET:
                return k
            case bpf.AND:
                accumulator &= k
            case bpf.RSH:
                accumulator >>= k
            case bpf.JMP_JA:
                at += k
            case _:
                holds = {
                    bpf.JEQ: accumulator == k,
                    bpf.JGT: accumulator > k,
                    bpf.JGE: accumulator >= k,
                    bpf.JSET: bool(accumulator & k),
                }[code]
                at += yes if holds else no


@pytest.fixture(scope="module", params=MACHINES)
def ask(request):
    machine = request.param
    program = build(machine)
    numbers = {call.name: call.number(machine) for call in CALLS}

    def ask(name, *arguments, arch=kernel.AUDIT_ARCH[machine]):
        number = numbers[name] if isinstance(name, str) else name
        if number is None:
            pytest.skip(f"{machine} has no {name}")
        return run_filter(program, data(number, arch, arguments))

    ask.machine = machine
    return ask


W, R, C, T, P = os.O_WRONLY, os.O_RDONLY, os.O_CREAT, os.O_TRUNC, os.O_PATH


@pytest.mark.parametrize(
    ("name", "arguments", "verdict"),
    [
        ("openat", (0, 0, R), ALLOW), ("openat", (0, 0, W), NOTIFY), ("openat", (0, 0, R | C), NOTIFY), ("openat", (0, 0, R | T), NOTIFY),
        ("openat", (0, 0, os.O_RDWR), NOTIFY), ("openat", (0, 0, P | W | C), ALLOW), ("openat", (0, 0, os.O_TMPFILE | os.O_RDWR), NOTIFY),
        ("openat", (0, 0, W | 1 << 40), NOTIFY), ("openat", (0, 0, R | 1 << 32), ALLOW), ("open", (0, W), NOTIFY), ("open", (0, R), ALLOW),
        ("creat", (0,), NOTIFY), ("renameat2", (0, 0, 0, 0, 2), NOTIFY), ("renameat2", (0, 0, 0, 0, 4), ERRNO | errno.EINVAL),
        ("mknodat", (0, 0, 0o10600), NOTIFY), ("mknodat", (0, 0, 0o20600), ERRNO | errno.EPERM), ("mknodat", (0, 0, 0o60600 | 1 << 35), ERRNO | errno.EPERM),
        ("openat2", (), ERRNO | errno.ENOSYS), ("clone3", (), ERRNO | errno.ENOSYS), ("clone", (17,), ALLOW), ("clone", (0x10000000,), ERRNO | errno.EPERM),
        ("unshare", (0x200,), ALLOW), ("unshare", (0x20000,), ERRNO | errno.EPERM), ("ioctl", (0, 0x5401), ALLOW), ("ioctl", (0, 0x40086602), ERRNO | errno.ENOTTY),
        ("ioctl", (0, 0x1234567840086602), ERRNO | errno.ENOTTY), ("ioctl", (0, 0x80086601), ALLOW), ("ioctl", (0, 0x40049409), ALLOW), ("ioctl", (0, 0x5412), ERRNO | errno.EPERM),
        ("fcntl", (0, 1024), ERRNO | errno.EINVAL), ("fcntl", (0, 4), ALLOW), ("fcntl", (0, 1024 | 1 << 32), ERRNO | errno.EINVAL), ("socket", (1, 1), ALLOW), ("socket", (1, 2), ERRNO | errno.EACCES),
        ("socket", (1, 2 | os.O_CLOEXEC), ERRNO | errno.EACCES), ("socket", (1, 3), ERRNO | errno.EACCES), ("socket", (2, 2), ALLOW), ("socketpair", (1, 5), ALLOW),
        ("prlimit64", (0, 7, 0), ALLOW), ("prlimit64", (0, 7, 1), ALLOW), ("prlimit64", (5, 7, 1), ERRNO | errno.EPERM), ("prlimit64", (5, 7, 0x700000000), ERRNO | errno.EPERM),
        ("prlimit64", (5, 7, 0), ALLOW), ("prlimit64", (0, 4, 1), ERRNO), ("setrlimit", (4,), ERRNO), ("sched_setaffinity", (0, 8, 1), ALLOW), ("sched_setaffinity", (7, 8, 1), NOTIFY), ("setpriority", (2, 0, 9), ERRNO | errno.EPERM), ("landlock_restrict_self", (), ERRNO | errno.EOPNOTSUPP), ("ioctl", (0, 0xAA00), ERRNO | errno.ENOTTY), ("setrlimit", (7,), ALLOW), ("prctl", (4, 0), ERRNO), ("prctl", (15,), ALLOW),
        ("connect", (), NOTIFY), ("bind", (), NOTIFY), ("fchmod", (), NOTIFY), ("utimensat", (), NOTIFY),
    ],
)  # fmt: skip
def test_the_filter_answers_each_call_as_the_table_says(ask, name, arguments, verdict):
    assert ask(name, *arguments) == verdict


def test_calls_of_other_interfaces_and_later_kernels_do_not_exist(ask):
    other = kernel.AUDIT_ARCH["aarch64" if ask.machine == "x86_64" else "x86_64"]
    for arch, number in ((0x40000003, 5), (other, 1), (kernel.AUDIT_ARCH[ask.machine], LAST_KNOWN + 1)):
        assert ask(number, arch=arch) == ERRNO | errno.ENOSYS
    assert ask(0x40000000 + 2, 0, W) == ERRNO | errno.ENOSYS


def test_a_filter_without_a_wall_refuses_to_trace(ask):
    program = build(ask.machine, wall=False)
    for call in WITHOUT_WALL:
        number = call.number(ask.machine)
        bare = run_filter(program, data(number, kernel.AUDIT_ARCH[ask.machine], (16, W)))
        assert bare & ERRNO, call.name
        assert ask(number, 16, W) == ALLOW


@given(st.integers(0, LAST_KNOWN), st.tuples(*[st.integers(0, 2**64 - 1)] * 6), st.sampled_from(MACHINES))
def test_every_call_has_an_answer_and_the_program_always_ends(number, arguments, machine):
    verdict = run_filter(build(machine), data(number, kernel.AUDIT_ARCH[machine], arguments))
    assert verdict in (ALLOW, NOTIFY) or verdict & 0xFFFF0000 == ERRNO


def test_every_carried_call_has_its_function_and_every_row_its_reason():
    carried = {call.name for call in CALLS if any(rule.treatment is Treatment.CARRIED for rule in call.rules)}
    assert carried == set(CARRIED)
    assert all(call.why and explain(call) for call in CALLS)
    names = [call.name for call in CALLS] + [name for names in LET_THROUGH.values() for name in names.split()]
    twice = {name for name in names if names.count(name) > 1}
    # With a wall these go on; without one they have a row of their own.
    assert twice <= {call.name for call in WITHOUT_WALL}, twice


HEADERS = {
    "x86_64": [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_table_knows_every_call_of_the_kernels_headers_by_its_number(machine):
    header = next((path for path in HEADERS[machine] if path.exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    found = {
        name: int(number)
        for name, number in found.items()
        if not name.endswith("_time64") and not name.endswith("64_time64")
    }
    ours = {call.name: call.number(machine) for call in CALLS}
    through = {name for names in LET_THROUGH.values() for name in names.split()}
    odd = {
        "syscalls",
        "clock_gettime64",
        "clock_settime64",
        "clock_adjtime64",
        "timer_gettime64",
        "timer_settime64",
        "timerfd_gettime64",
        "timerfd_settime64",
    }
    assert [name for name in found if name not in ours and name not in through and name not in odd] == []
    assert {
        name: (number, found[name])
        for name, number in ours.items()
        if number is not None and name in found and found[name] != number
    } == {}
    assert max(number for name, number in found.items() if name not in odd) <= LAST_KNOWN


def test_jumps_that_reach_too_far_go_over_a_long_one():
    items = [
        bpf.load(0),
        bpf.Jump(bpf.JEQ, 7, "far", None),
        *[bpf.mask(0xFFFFFFFF)] * 400,
        bpf.answer(1),
        bpf.Label("far"),
        bpf.answer(2),
    ]
    program = bpf.assemble(items)
    assert run_filter(program, data(7, 0)) == 2
    assert run_filter(program, data(8, 0)) == 1
    with pytest.raises(ValueError, match="only jumps forward"):
        bpf.assemble([bpf.Label("back"), bpf.Jump(bpf.JEQ, 1, "back")])
    with pytest.raises(ValueError, match="no label"):
        bpf.assemble([bpf.Jump(bpf.JEQ, 1, "nowhere")])


# -- patterns ------------------------------------------------------------------------------------------------------------


def by_git(patterns, path):
    """What pathspec, which reads as git does, says; the last pattern that matches decides, also below an excluded folder."""
    try:
        found = GitIgnoreSpec.from_lines(patterns).patterns
    except ValueError:
        return None  # git, too, takes it for no pattern
    verdicts = [bool(one.include) for one in found if one.regex is not None and one.regex.search(path)]
    return bool(verdicts) and verdicts[-1]


@settings(max_examples=1000)
@given(st.lists(PATTERNS.filter(is_pattern), min_size=1, max_size=3), PATHS)
@pytest.mark.slow
def test_gitignores_dialect_reads_as_git_does(patterns, path):
    assert by_git(patterns, path) in (None, Globs(patterns, gitignore=True).match(path))


@settings(max_examples=1000)
@given(PATTERNS.filter(is_pattern), PATHS)
@pytest.mark.slow
def test_owns_reads_as_git_does_but_for_what_lies_in_folders_of_a_wildcards_name(pattern, path):
    pattern = pattern.lstrip("!")
    plain = by_git([pattern], path)
    if plain is None:
        return
    found = Globs([pattern]).match(path)
    if segments_of(pattern).open_end:
        above = path.rstrip("/").rsplit("/", 1)[0] + "/" if "/" in path.rstrip("/") else ""
        in_folder = above and any(
            by_git([pattern], above[: at + 1]) for at, c in enumerate(above) if c == "/"
        )
        alone = by_git([pattern], path)
        assert not found or (alone and not path.endswith("/"))
        if alone and not in_folder and not path.endswith("/"):
            assert found
    else:
        assert found == plain


@pytest.mark.parametrize(
    ("pattern", "path", "named"),
    [
        ("*.md", "a.md", True), ("*.md", "x/a.md", True), ("*.md", "docs.md/x", False), ("*.md", "docs.md/", False), ("docs/*", "docs/a", True),
        ("docs/*", "docs/sub/a", False), ("docs/*", "docs/sub/", False), ("docs/**", "docs/sub/a", True), ("docs/*/", "docs/sub/a", True), ("docs/*/", "docs/a", False),
        ("src/api", "src/api/x", True), ("*", "a", True), ("*", "a/b", True), ("*", "a/", False), ("**", "a/b/", True), ("/*", "a", True), ("/*", "a/b", False),
        ("**/*.py", "a/b.py", True), ("**/*.py", "a.py/b", False), ("a?", "ab/c", False), ("[ab]c", "ac/x", False), ("\\*c", "*c/x", True), ("x/*/y", "x/1/y/z", True),
        ("/src/*.py", "src/a.py", True), ("/src/*.py", "src/b/a.py", False), ("**/", "a/b", True), ("a/**/b*", "a/x/y/b1", True), ("a/**/b*", "a/b1/c", False),
    ],
)  # fmt: skip
def test_a_pattern_that_ends_in_a_wildcard_names_files_only(pattern, path, named):
    assert Globs([pattern]).match(path) is named


@pytest.mark.parametrize("one", ["*.md", "docs/*", "src/**/*.py", "*"])
@pytest.mark.parametrize("other", ["*.py", "docs/*/", "*.rst"])
def test_overlap_is_exact_for_patterns_of_files_only(one, other):
    found = common_path([one], [other])
    names = [
        "a.md",
        "a.py",
        "x.rst",
        "docs/a",
        "docs/a.md/x.py",
        "docs/x/y",
        "src/a.py",
        "src/b/c.py",
        "a.py/b.md",
        "docs/x.rst",
    ]
    both = [path for path in names if Globs([one]).match(path) and Globs([other]).match(path)]
    assert (found is not None) or not both
    assert found is None or (Globs([one]).match(found) and Globs([other]).match(found))
    assert common_path(["*.md"], ["*.py"]) is None


def test_no_pattern_takes_long():
    """Each of these keeps a backtracking matcher busy for longer than anybody lives."""
    worst = [
        "*a" * 40 + "*b",
        "**/a/" * 40 + "b",
        "/".join(["**/*"] * 60) + "/b",
        "[!a]*" * 60 + "b",
        "?*" * 80 + "b",
        "**/" + "*a/**/" * 30 + "b*",
    ]
    paths = ["a" * 250, "/".join(["a"] * 1500), "/".join(["a" * 60] * 60), "a/" * 800 + "c"]
    began = time.perf_counter()
    for gitignore in (False, True):
        globs = Globs(worst, gitignore=gitignore)
        for path in paths:
            globs.match(path)
            globs.may_match_below(path)
    # The longest is 40 groups times 1,500 components: a million comparisons, where one that backtracks needs 10^40.
    assert time.perf_counter() - began < 20


@settings(max_examples=500)
@given(st.lists(PATTERNS.filter(is_pattern), min_size=1, max_size=3), PATHS, PATHS)
def test_what_is_said_of_a_folder_holds_for_what_is_inside(patterns, folder, below):
    globs, folder = Globs(patterns), folder.rstrip("/")
    inside = globs.match(f"{folder}/{below}")
    assert not inside or globs.may_match_below(folder)
    assert inside or not globs.is_whole(folder)


# -- who owns what, and who may -------------------------------------------------------------------------------------------


def territory(**agents):
    return Territory.of(
        {
            "agents": {
                name: {"home": f".aipass/agents/{name}" if name != "home" else "services/home", "owns": owns}
                for name, owns in agents.items()
            },
            "scratch": ["**/__pycache__/", "target/"],
            "temp": ["sed??????"],
            "nested": ["vendor/other"],
            "phases": [
                {"plan": "1", "id": "now", "agent": "p", "owns": ["app/models.py", "app/sub/"], "run": 7},
                {"plan": "1", "id": "later", "agent": "q", "owns": ["app/"], "run": None},
            ],
        }
    )


GROUND = territory(
    free=None,
    other=None,
    home=["/services/home/", ".envrc"],
    two=["shared/"],
    three=["shared/"],
    none=[],
    p=None,
    q=None,
)


@pytest.mark.parametrize(
    ("path", "kind", "agents"),
    [
        ("aipass.toml", Kind.NEVER, ()), ("sub/aipass.toml", Kind.NEVER, ()), (".git/config", Kind.NEVER, ()), ("a/b/.git/HEAD", Kind.NEVER, ()), ("sub/.git", Kind.NEVER, ()),
        ("plans/1.json", Kind.NEVER, ()), ("sub/plans/1.json", Kind.FREE, ()), ("inbox/a/x", Kind.NEVER, ()), ("outbox/x", Kind.NEVER, ()), (".aipass/ledger.db", Kind.NEVER, ()),
        (".aipass/agents/free/x", Kind.OWN, ("free",)), (".aipass/agents/nobody/x", Kind.NEVER, ()), (".aipass/agents/home/x", Kind.NEVER, ()), ("services/home/.trinity/local.json", Kind.OWN, ("home",)),
        ("services/x/.trinity/local.json", Kind.NEVER, ()), ("a/__pycache__/x.pyc", Kind.NEVER, ()), ("target/x", Kind.SCRATCH, ()), ("services/home/a.py", Kind.AGENTS, ("home",)),
        ("shared/x", Kind.AGENTS, ("two", "three")), ("vendor/other/x", Kind.NEVER, ()), ("vendor/x", Kind.FREE, ()), ("app/models.py", Kind.PHASE, ("p",)), ("app/sub/x", Kind.PHASE, ("p",)),
        ("app/x", Kind.RESERVED, ()), (".vscode/settings.json", Kind.NEVER, ()), ("services/home/.vscode/x", Kind.NEVER, ()), (".envrc", Kind.AGENTS, ("home",)), ("sub/.gitattributes", Kind.NEVER, ()),
        ("readme.md", Kind.FREE, ()), ("app", Kind.FREE, ()),
    ],
)  # fmt: skip
def test_the_owner_of_a_path_is_found_by_the_first_rule(path, kind, agents):
    owner = GROUND.owner(path)
    assert (owner.kind, owner.agents) == (kind, agents)


def grant(agent, run=1, **more):
    return Grant(run, agent, GROUND, more.pop("holds", {}), **more)


W_, N, D, M = Operation.WRITE, Operation.CREATE, Operation.REMOVE, Operation.MAKE_FOLDER


@pytest.mark.parametrize(
    ("who", "operation", "path", "allowed"),
    [
        (grant("free"), W_, "readme.md", True), (grant("free"), W_, "services/home/x", False), (grant("free"), W_, "app/x", False), (grant("free"), W_, ".git/x", False),
        (grant("home"), W_, "services/home/x", True), (grant("home"), W_, "readme.md", False), (grant("none"), W_, "readme.md", False), (grant("none"), W_, "target/x", True),
        (grant("none"), W_, ".aipass/agents/none/x", True), (grant("p", 7, plan="1", phase="now"), W_, "app/models.py", True), (grant("p", 7, plan="1", phase="now"), W_, "app/x", False),
        (grant("p", 7, plan="1", phase="now"), W_, "readme.md", False), (grant("p", 8), W_, "app/models.py", False), (grant("p", 7, plan="1", phase="now"), N, "app/models.py.tmp", True),
        (grant("p", 7, plan="1", phase="now"), N, "app/.models.py.swp", True), (grant("p", 7, plan="1", phase="now"), W_, "app/models.py.tmp", False), (grant("p", 7, plan="1", phase="now"), N, "app/sedabcdef", True),
        (grant("p", 7, plan="1", phase="now"), N, "app/models.pyc", False), (grant("p", 7, plan="1", phase="now"), M, "app", True), (grant("p", 7, plan="1", phase="now"), M, "lib", False),
        (grant("home"), N, "services/home/.trinity/local.json", True), (grant("free"), N, "services/home/.trinity/local.json", False), (grant("home"), N, "services/.home.swp", False),
        (grant("free", holds={"x": Hold(2, "other", 0.0)}), W_, "x", False), (grant("free", holds={"x": Hold(1, "free", 0.0)}), W_, "x", True), (grant("two", holds={"shared/x": Hold(2, "three", 0.0)}), D, "shared/x", False),
        (grant("free"), W_, "", False), (grant("free"), M, "anywhere/new", True), (grant("free", withdrawn=[Globs(["gone/"])]), W_, "gone/x", False),
        (grant("p", 7, plan="1", phase="now", withdrawn=[Globs(["app/models.py"])]), W_, "app/models.py", True), (grant("free", temps={"t.tmp"}), W_, "t.tmp", True),
    ],
)  # fmt: skip
def test_decisions_by_table(who, operation, path, allowed):
    assert isinstance(decide(who, operation, (path,)), Allowed) is allowed


NAMES = st.sampled_from(
    [
        "a.py",
        "b.py",
        "app",
        "models.py",
        ".git",
        "x",
        "inbox",
        "aipass.toml",
        "shared",
        "target",
        ".envrc",
        "a.py~",
        ".a.py.swp",
    ]
)
TREE_PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@settings(max_examples=500)
@given(TREE_PATHS, st.sampled_from(list(Operation)), st.booleans())
def test_two_runs_are_never_both_allowed_to_write_one_path(path, operation, first_is_free):
    holds: dict[str, Hold] = {}
    one = Grant(1, "free" if first_is_free else "two", GROUND, holds)
    two = Grant(2, "other" if first_is_free else "three", GROUND, holds)
    verdict = decide(one, Operation.WRITE, (path,))
    if isinstance(verdict, Allowed):
        for held in verdict.hold:
            holds[held] = Hold(1, one.agent, 0.0)
        assert isinstance(decide(two, Operation.WRITE, (path,)), Refused)
    for paths in ((path, path), (path,)):
        again = decide(two, operation, paths)
        assert isinstance(again, Allowed | Refused)


@settings(max_examples=500)
@given(TREE_PATHS)
def test_what_is_never_an_agents_is_refused_to_everybody(path):
    if GROUND.owner(path).kind is Kind.NEVER:
        for agent in GROUND.agents:
            for operation in Operation:
                verdict = decide(Grant(7, agent, GROUND, {}, plan="1", phase="now"), operation, (path,))
                folder = operation in (Operation.MAKE_FOLDER, Operation.REMOVE_FOLDER, Operation.MARK_FOLDER)
                assert isinstance(verdict, Refused) or (
                    folder and GROUND.owner(path, folder=True).kind is not Kind.NEVER
                )
