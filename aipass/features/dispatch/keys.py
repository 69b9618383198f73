"""Deduplication keys: which of them only aipass gives."""

from __future__ import annotations

import re

#: Keys that aipass gives: to work for a question, a phase, a sender who is woken, a reply, a file.
_OWN_KEY = re.compile(
    r"question \d+|woken by .*|plan \S+ \S+ \d+|reply to \d+: .*|PR \d+ is merged|sha256:[0-9a-f]{64}",
    re.DOTALL,
)


def is_own_key(key: str) -> bool:
    """Whether a key is one that only aipass gives: who could say it would join what it is for."""
    return _OWN_KEY.fullmatch(key) is not None
