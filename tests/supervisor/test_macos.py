"""The sandbox profile for macOS: its text, and that its regular expressions read the patterns as everybody else does."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_strategies import PATHS, PATTERNS, is_pattern

from aipass.supervisor.fence import macos
from aipass.supervisor.fence.glob import Globs


def verdict(profile: str, path: str) -> bool:
    """What the profile's file-write rules say of a path: the last that matches."""
    allowed = True
    for verb, kind, text in re.findall(
        r'^\((allow|deny) file-write\*(?: \((\w+) #?"(.*)"\))?\)$', profile, re.MULTILINE
    ):
        plain = text.replace('\\"', '"')
        fits = {
            "": True,
            "literal": path == plain,
            "subpath": path == plain or path.startswith(plain + "/"),
            "regex": kind == "regex" and re.search(plain, path) is not None,
        }[kind]
        if fits:
            allowed = verb == "allow"
    return allowed


def test_a_profile_says_the_same_as_the_grant():
    text = macos.profile("/r", ["/api/", "*.md", "!secret.md"], [], ["/tmp/own"], ["/Users/x/.cargo"])
    for path, allowed in {
        "/r/api/x": True, "/r/api/a/b": True, "/r/a.md": True, "/r/d/a.md": True, "/r/secret.md": False, "/r/web/x": False,
        "/r/api/.git/config": False, "/r/.git/config": False, "/r/aipass.toml": False, "/r/plans/x.md": False, "/tmp/own/x": True,
        "/Users/x/.cargo/y": True, "/Users/x/y": False, "/dev/null": True, "/etc/passwd": False, "/dev/ttys003": True,
    }.items():  # fmt: skip
        assert verdict(text, path) is allowed, path


def test_without_owns_all_is_granted_that_nobody_else_owns():
    text = macos.profile("/r", None, ["/web/"], ["/tmp/own"])
    assert [verdict(text, path) for path in ("/r/x", "/r/web/x", "/r/inbox/a/x", "/q/x")] == [
        True,
        False,
        False,
        False,
    ]


def test_names_that_mean_something_to_the_language_are_quoted():
    text = macos.profile('/r "q" (x)', ["/a b.txt"], [], ['/o"p'])
    assert '(subpath "/o\\"p")' in text
    assert verdict(text, '/r "q" (x)/a b.txt')
    assert not verdict(text, '/r "q" (x)/axb.txt')


@pytest.mark.parametrize(
    "rule", ["(deny signal)", "(deny network-outbound (remote unix-socket))", "(version 1)"]
)
def test_the_rest_of_the_wall_is_in_it(rule):
    assert rule in macos.profile("/r", [], [], []).splitlines()


@settings(max_examples=300)
@given(
    st.lists(PATTERNS.filter(is_pattern), min_size=1, max_size=3), PATHS.map(lambda path: path.rstrip("/"))
)
def test_patterns_in_a_profile_read_as_everywhere_else(patterns, path):
    if any(part in (".git", "aipass.toml") for part in path.split("/")) or path.split("/")[0] in (
        "plans",
        "inbox",
        "outbox",
    ):
        return
    assert verdict(macos.profile("/r", patterns, [], []), f"/r/{path}") is Globs(patterns).match(path)
