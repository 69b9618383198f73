"""Names of files that fit on any filesystem."""

from __future__ import annotations

import hashlib
import os

# The longest name on common filesystems is 255 bytes; a temporary name beside it needs some of them.
MAX_NAME_BYTES = 230


def fitting(stem: str, suffix: str) -> str:
    """`stem` + `suffix` as a file's name; a stem that is too long is cut and keeps a hash of the whole."""
    data = os.fsencode(stem)
    room = MAX_NAME_BYTES - len(os.fsencode(suffix))
    if len(data) > room:
        cut = os.fsdecode(data[: room - 9]).encode("utf-8", "ignore").decode()
        stem = f"{cut}-{hashlib.sha256(data).hexdigest()[:8]}"
    return stem + suffix
