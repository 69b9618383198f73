"""The person's terminal: whatever a verb writes, nothing of it commands the terminal, and lines break between words."""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
from typing import TextIO

#: Colours, which we make ourselves, and all else that terminals obey, or that changes the order of letters for the eye.
_OBEYED = re.compile(
    r"(\x1b\[[0-9;]*m)|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: What stands before the text of a line: blanks, and a label with two blanks behind it.
_BEFORE = re.compile(r"\s*(?:\S+ {2,})?")
LEAST_WIDTH, MOST_INDENT = 40, 24
#: Verbs whose lines are somebody else's, or for another program.
_AS_THEY_ARE = (("logs",), ("schema",), ("completion",), ("pr", "diff"), ("plan", "graph"))


def is_folded(words: list[str]) -> bool:
    """Whether lines of a verb with these words may be broken."""
    return "--json" not in words and not any(tuple(words[: len(verb)]) == verb for verb in _AS_THEY_ARE)


class Terminal(io.TextIOWrapper):
    """Writes to a terminal in the place of another stream, which it keeps."""

    def __init__(self, stream: TextIO, *, folded: bool, width: int | None = None) -> None:
        """`width`: columns, instead of those of the terminal."""
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            newline="\n",
            line_buffering=True,
        )
        self._stream, self._folded, self._width = stream, folded, width
        #: Whether a line has been begun.
        self._begun = False

    def write(self, text: str) -> int:
        """As every stream does."""
        shown = harmless(text)
        if self._folded:
            whole = shown.split("\n")
            columns = self._columns()
            whole = [
                line if place == len(whole) - 1 or (self._begun and not place) else folded(line, columns)
                for place, line in enumerate(whole)
            ]
            shown = "\n".join(whole)
        self._begun = bool(text) and not text.endswith("\n")
        super().write(shown)
        return len(text)

    def show(self, text: str) -> None:
        """Have `text` stand in the line of the cursor, in the place of what was shown there before; "" takes it away."""
        super().write(f"\r\x1b[K{harmless(text)}")
        self.flush()

    def _columns(self) -> int:
        if self._width is not None:
            return self._width
        try:
            return os.get_terminal_size(self.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


def take_over(*, folded: bool) -> None:
    """Have what goes to a terminal go through one of these."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, Terminal) and stream.isatty():
            setattr(sys, name, Terminal(stream, folded=folded))


def progress(text: str) -> None:
    """On a terminal, show what is waited for, in the place of what was shown before; "" takes it away."""
    if isinstance(sys.stderr, Terminal):
        sys.stderr.show(text)
    elif sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{harmless(text)}")
        sys.stderr.flush()


def harmless(text: str) -> str:
    """`text` with colours, lines and tabs, and nothing else that a terminal obeys."""
    if text.isprintable():
        return text
    return _OBEYED.sub(lambda one: one[1] or repr(one[0])[1:-1], text.replace("\r\n", "\n"))


def _width(text: str) -> int:
    """Columns that a text takes."""
    shown = _COLOUR.sub("", text)
    if shown.isascii():
        return len(shown) + 7 * shown.count("\t")
    return sum(
        8
        if one == "\t"
        else 0
        if unicodedata.combining(one)
        else 2
        if unicodedata.east_asian_width(one) in "WF"
        else 1
        for one in shown
    )


def _pieces(word: str, columns: int) -> list[str]:
    """A word, or what of it fits in a line each."""
    if word.isascii() or _width(word) <= columns:
        return [word]
    found, used = [""], 0
    for letter in re.findall(rf"{_COLOUR.pattern}|.", word, re.DOTALL):
        width = _width(letter)
        if used + width > columns:
            found.append("")
            used = 0
        found[-1] += letter
        used += width
    return found


def folded(line: str, columns: int) -> str:
    """One line as several, broken at blanks, the later ones indented as the text of the first.

    A word longer than a line stays whole where all of it is ASCII (a path, an address): the terminal breaks it, and its letters can be copied. Others
    are broken here, because not all that looks like a blank is one.
    """
    if columns < LEAST_WIDTH or _width(line) <= columns:
        return line
    before = _BEFORE.match(_COLOUR.sub("", line))
    indent = before.end() if before is not None else 0
    # What goes on never begins where lines begin: it would pass for one of ours.
    indent = indent if 0 < indent <= MOST_INDENT else 2
    lines, now, used = [], "", 0
    words = re.split(r"(?<=\S)( +)(?=\S)", line)
    for word in [piece for whole in words for piece in _pieces(whole, columns - indent)]:
        length = _width(word)
        if word.isspace():
            now, used = now + word, used + length
        elif used + length > columns and now.strip():
            lines.append(now.rstrip())
            now, used = " " * indent + word, indent + length
        else:
            now, used = now + word, used + length
    return "\n".join([*lines, now])
