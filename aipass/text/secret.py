"""What looks like a key or a password, as plugins find it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Secret(NamedTuple):
    """Something in a text that should not leave this machine. `value` is for masking it, and is shown to nobody."""

    line: int
    kind: str
    value: str


#: Of so many texts it is known that they hold none: a question passes six desks within a step or two.
MOST_KNOWN = 256


class Mask:
    """`masked` with a memory for what was looked through already. For one thread."""

    def __init__(self, find: Callable[[str], Iterable[Secret]]) -> None:
        self._find = find
        self._clean: OrderedDict[bytes, None] = OrderedDict()

    def __call__(self, text: str) -> tuple[str, list[str]]:
        """`text` without what looks like a secret, and what kinds those were."""
        digest = _digest(text)
        if digest in self._clean:
            self._clean.move_to_end(digest)
            return text, []
        text, kinds = masked(self._find, text)
        if not kinds:  # what was masked may hold more in the eyes of a finder that looks at the whole
            self._clean[digest] = None
            if len(self._clean) > MOST_KNOWN:
                self._clean.popitem(last=False)
        return text, kinds


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def masked(find: Callable[[str], Iterable[Secret]], text: str) -> tuple[str, list[str]]:
    """`text` without what `find` takes for a secret, and what kinds those were. The longest first: one may hold another."""
    found = sorted({(one.value, one.kind) for one in find(text) if one.value}, key=lambda one: -len(one[0]))
    kinds = []
    for value, kind in found:
        if value in text:
            text = text.replace(value, f"[{kind} masked]")
            kinds.append(kind)
    return text, sorted(set(kinds))


@dataclass(frozen=True, slots=True)
class Secrets:
    """What finds secrets here: the plugins. `mask` is for the engine's thread."""

    find: Callable[[str], Iterable[Secret]]
    mask: Callable[[str], tuple[str, list[str]]]
