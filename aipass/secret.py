"""What looks like a key or a password, as plugins find it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Secret(NamedTuple):
    """Something in a text that should not leave this machine. `value` is for masking it, and is shown to nobody."""

    line: int
    kind: str
    value: str


def masked(find: Callable[[str], Iterable[Secret]], text: str) -> tuple[str, list[str]]:
    """`text` without what `find` takes for a secret, and what kinds those were. The longest first: one may hold another."""
    found = sorted({(one.value, one.kind) for one in find(text) if one.value}, key=lambda one: -len(one[0]))
    kinds = []
    for value, kind in found:
        if value in text:
            text = text.replace(value, f"[{kind} masked]")
            kinds.append(kind)
    return text, sorted(set(kinds))
