"""Suggestions ("did you mean"): the nearest known name for an unknown one."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to a message (`; did you mean …?`), or "" if no name is similar."""
    match = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean `{match[0]}`?" if match else ""
