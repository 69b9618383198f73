"""Secrets: text that looks like a key or a password, found by plugins and masked here."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Secret(NamedTuple):
    """A part of a text that must not leave this machine. `value` is only for masking and must never be shown or logged."""

    line: int
    kind: str
    value: str


#: Texts that are known to contain no secret. A question is masked at six places within a step or two.
MOST_KNOWN = 256


class Mask:
    """`masked` with a cache (LRU) of texts without secrets. Not thread-safe."""

    def __init__(self, find: Callable[[str], Iterable[Secret]]) -> None:
        self._find = find
        self._clean: OrderedDict[bytes, None] = OrderedDict()

    def __call__(self, text: str) -> tuple[str, list[str]]:
        """The text with secrets masked, and the kinds of these secrets."""
        digest = _digest(text)
        if digest in self._clean:
            self._clean.move_to_end(digest)
            return text, []
        text, kinds = masked(self._find, text)
        # Only texts without secrets: masking changes the context, and a plugin can find another secret in the result.
        if not kinds:
            self._clean[digest] = None
            if len(self._clean) > MOST_KNOWN:
                self._clean.popitem(last=False)
        return text, kinds


def _digest(text: str) -> bytes:
    # Not the text itself: texts can have megabytes. Not `hash`: a collision would let a secret pass.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def masked(find: Callable[[str], Iterable[Secret]], text: str) -> tuple[str, list[str]]:
    """The text with every secret that `find` reports replaced by `[<kind> masked]`, and the sorted kinds of these secrets."""
    # The longest first: if one secret contains another, the rest of the longer one would stay readable.
    found = sorted({(one.value, one.kind) for one in find(text) if one.value}, key=lambda one: -len(one[0]))
    kinds = []
    for value, kind in found:
        if value in text:
            text = text.replace(value, f"[{kind} masked]")
            kinds.append(kind)
    return text, sorted(set(kinds))


@dataclass(frozen=True, slots=True)
class Secrets:
    """The search for secrets by plugins, as an object that features need. `mask` is only for the engine's thread."""

    find: Callable[[str], Iterable[Secret]]
    mask: Callable[[str], tuple[str, list[str]]]
