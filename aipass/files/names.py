"""The shortening of file names to a length that any filesystem accepts."""

from __future__ import annotations

import hashlib
import os

# The longest name on common filesystems is 255 bytes; a temporary name beside it needs some of them.
MAX_NAME_BYTES = 230


def fitting(stem: str, suffix: str) -> str:
    """Return `stem` + `suffix`. A stem that is too long is cut, and a hash of the whole makes the name unique."""
    data = os.fsencode(stem)
    room = MAX_NAME_BYTES - len(os.fsencode(suffix))
    if len(data) > room:
        # The cut may be in the middle of a character; its bytes are dropped.
        cut = os.fsdecode(data[: room - 9]).encode("utf-8", "ignore").decode()
        stem = f"{cut}-{hashlib.sha256(data).hexdigest()[:8]}"
    return stem + suffix
