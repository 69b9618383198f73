"""The user's terminal: a stream that escapes control sequences and breaks long lines between words."""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
from typing import TextIO

#: Group 1: colours, which our own code makes. The rest: control characters, and Unicode marks that reorder the shown letters.
# The output quotes texts of agents. A control sequence in them could change the clipboard, the title or earlier lines.
_OBEYED = re.compile(
    r"(\x1b\[[0-9;]*m)|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: The part before the text of a line: blanks, and a label with at least two blanks after it.
_BEFORE = re.compile(r"\s*(?:\S+ {2,})?")
#: Below this width nothing is broken, and beyond this indent lines continue at column 2: too little room for words.
LEAST_WIDTH, MOST_INDENT = 40, 24
#: Verbs whose lines are never broken: output of other programs, or input for them.
_AS_THEY_ARE = (("logs",), ("schema",), ("completion",), ("pr", "diff"), ("plan", "graph"))


def is_folded(words: list[str]) -> bool:
    """Whether long lines of the verb with these arguments are broken; not for JSON and text of other programs."""
    return "--json" not in words and not any(tuple(words[: len(verb)]) == verb for verb in _AS_THEY_ARE)


class Terminal(io.TextIOWrapper):
    """A text stream that replaces another one on a terminal: it escapes control sequences and, if `folded`, breaks long lines."""

    def __init__(self, stream: TextIO, *, folded: bool, width: int | None = None) -> None:
        """`width`: number of columns; None for the width of the terminal at each write."""
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            newline="\n",
            line_buffering=True,
        )
        # The replaced stream is kept: if it were collected, it would close the shared buffer.
        self._stream, self._folded, self._width = stream, folded, width
        #: Whether the last write ended within a line; the rest of that line is then not broken.
        self._begun = False

    def write(self, text: str) -> int:
        """Write the text escaped and broken; returns the length of `text` as given, not of what was written."""
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
        """Replace the line of the cursor by `text`; "" clears it. Flushes immediately."""
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
    """Replace sys.stdout and sys.stderr by a `Terminal`, each only if it is a terminal. A second call changes nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # `Terminal` needs the buffer of a TextIOWrapper; programs that embed us may have put another object there.
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, Terminal) and stream.isatty():
            setattr(sys, name, Terminal(stream, folded=folded))


def progress(text: str) -> None:
    """Show on a terminal what the verb waits for, in place of the last such text; "" clears it. Else does nothing."""
    if isinstance(sys.stderr, Terminal):
        sys.stderr.show(text)
    elif sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{harmless(text)}")
        sys.stderr.flush()


def harmless(text: str) -> str:
    """Return the text with every control character escaped, except colours, line ends and tabs."""
    # Most lines are printable as they are; this check is much faster than the regular expression.
    if text.isprintable():
        return text
    return _OBEYED.sub(lambda one: one[1] or repr(one[0])[1:-1], text.replace("\r\n", "\n"))


def _width(text: str) -> int:
    """The number of columns of a text; a tab counts as 8, the most that it can take."""
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
    """A word as pieces that fit into a line each; an ASCII word is one piece (see `folded`)."""
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
    """Return one line as several, broken at blanks; the later lines are indented as the text of the first.

    An ASCII word longer than a line stays whole. Other long words are broken between letters.
    """
    # A path or an address stays whole, because the terminal breaks it without a line end and it can be copied. Other words
    # may contain Unicode blanks that are no " ", and would fill lines with text that seems to begin a new one.
    if columns < LEAST_WIDTH or _width(line) <= columns:
        return line
    before = _BEFORE.match(_COLOUR.sub("", line))
    indent = before.end() if before is not None else 0
    # A continued line never begins at column 0: an agent's text could there imitate a line of ours.
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
