"""What looks like a key or a password, as plugins find it."""

from __future__ import annotations

from typing import NamedTuple


class Secret(NamedTuple):
    """Something in a text that should not leave this machine. `value` is for masking it, and is shown to nobody."""

    line: int
    kind: str
    value: str
