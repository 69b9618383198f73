"""The deduplication keys that are reserved for aipass itself."""

from __future__ import annotations

import re

#: The reserved forms: work for a question, a sender that is started again, a phase, a reply, a merged pull request, a file.
_OWN_KEY = re.compile(
    r"question \d+|woken by .*|plan \S+ \S+ \d+|reply to \d+: .*|PR \d+ is merged|sha256:[0-9a-f]{64}",
    re.DOTALL,
)


def is_own_key(key: str) -> bool:
    """Whether a key is reserved for aipass: a sender with such a key would join work that is not its own."""
    return _OWN_KEY.fullmatch(key) is not None
