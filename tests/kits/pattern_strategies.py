"""Patterns and paths for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from aipass.text.patterns import check

SEGMENTS = st.one_of(
    st.sampled_from(["**", "*", "a", "b", "a*", "*b", "a*b", "?", "??", "[ab]", "[!a]", "a?b", "*a*b*", "[a-c]x", "\\*", ".a", "a.b", "[]a]", "[^b]b"]),
    st.text("ab*?.", min_size=1, max_size=5),
)  # fmt: skip
PATTERNS = st.builds(
    lambda negated, lead, parts, trail: negated + lead + "/".join(parts) + trail,
    st.sampled_from(["", "!"]), st.sampled_from(["", "/"]), st.lists(SEGMENTS, min_size=1, max_size=4), st.sampled_from(["", "/"]),
)  # fmt: skip
PATHS = st.builds(
    lambda parts, trail: "/".join(parts) + trail,
    st.lists(st.text("abcx.*", min_size=1, max_size=4).filter(lambda p: p not in (".", "..")), min_size=1, max_size=5),
    st.sampled_from(["", "/"]),
)  # fmt: skip


def is_pattern(text: str) -> bool:
    try:
        check(text)
    except ValueError:
        return False
    return True
