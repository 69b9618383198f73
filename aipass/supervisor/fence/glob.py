"""Path patterns, compiled to plain comparisons. Pure; linear backtracking-free matching, so no pattern can hang the fence.

Time grows with the product of pattern length and path length, never faster. There are two dialects. The
gitignore dialect is for `[watch] ignore`, `.gitignore` and scratch. The dialect of `owns`, rules, plans and
checks differs in one point, as CODEOWNERS does: a pattern whose last segment has a wildcard matches files
only, not the content of a folder of that name.

In both, the last matching pattern decides, also below an excluded folder. Paths are relative to the root and
use `/`; folders end in `/`.
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: The segment `**`.
ANY_DEPTH = None


class GlobRule:
    """One pattern. `segments` are tests of one path component each, ANY_DEPTH for `**`."""

    __slots__ = ("_anchored", "_groups", "files_only", "include", "only_folders", "segments", "text")

    def __init__(
        self,
        text: str,
        include: bool,
        segments: Sequence[Callable[[str], bool] | None],
        only_folders: bool,
        files_only: bool = False,
    ) -> None:
        self.text, self.include, self.segments = text, include, tuple(segments)
        self.only_folders, self.files_only = only_folders, files_only
        self._anchored = self.segments[0] is not ANY_DEPTH
        self._groups: list[list[Callable[[str], bool]]] = [[]]
        for segment in self.segments:
            if segment is not ANY_DEPTH:
                self._groups[-1].append(segment)
            elif self._groups[-1]:
                self._groups.append([])

    def covers(self, parts: Sequence[str], folder: bool) -> bool:
        """Whether the path or one of its parent folders matches; a files-only pattern must match the path itself."""
        if self.files_only and folder:
            return False
        if self._anchored:
            # Fast path: most paths already differ from most patterns in the first component.
            group = self._groups[0]
            if len(parts) < len(group):
                return False
            for number, test in enumerate(group):
                if not test(parts[number]):
                    return False
        at, last = 0, len(self._groups) - 1
        for number, group in enumerate(self._groups):
            if self.files_only and number == last:
                # The end of the path must match.
                start = len(parts) - len(group)
                fits = start >= at and (start == 0 or number > 0 or not self._anchored)
                return fits and _fit(group, parts, start)
            found = self._place(group, parts, at, floats=number > 0 or not self._anchored)
            if found is None:
                return False
            at = found + len(group)
        # Components after the match are inside the matched folder; without any, a folder pattern needs the path to be a folder.
        return at < len(parts) or folder or not self.only_folders

    def names(self, parts: Sequence[str], folder: bool) -> bool:
        """Whether the path itself matches; its parent folders are not considered."""
        if folder < self.only_folders:
            return False
        *before, last = self._groups
        start = len(parts) - len(last)
        if start < 0 or not _fit(last, parts, start):
            return False
        at = 0
        for number, group in enumerate(before):
            found = self._place(group, parts, at, floats=number > 0 or not self._anchored)
            if found is None:
                return False
            at = found + len(group)
        return start >= at and (start == 0 or bool(before) or not self._anchored)

    def _place(
        self, group: Sequence[Callable[[str], bool]], parts: Sequence[str], at: int, *, floats: bool
    ) -> int | None:
        """The first position from `at` where the components match; only `at` itself if the group does not float."""
        stop = len(parts) - len(group) if floats else min(at, len(parts) - len(group))
        return next((place for place in range(at, stop + 1) if _fit(group, parts, place)), None)

    def may_cover_below(self, parts: Sequence[str]) -> bool:
        """Whether a path inside the folder `parts` can match, or the folder is inside a match."""
        for number, segment in enumerate(self.segments):
            if segment is ANY_DEPTH or number == len(parts):
                return True
            if not segment(parts[number]):
                return False
        # All segments matched: the folder is the match, or inside it.
        return not self.files_only


def _fit(group: Sequence[Callable[[str], bool]], parts: Sequence[str], at: int) -> bool:
    return all(test(parts[at + number]) for number, test in enumerate(group))


class Globs:
    """A list of patterns in the dialect of `owns`, or of gitignore with `gitignore`. Immutable."""

    def __init__(self, lines: Iterable[str], *, gitignore: bool = False) -> None:
        self.lines = tuple(lines)
        # Reversed: the last matching pattern decides, so the search stops at the first hit.
        rules = (compile_line(line, gitignore=gitignore) for line in reversed(self.lines))
        self._rules = [rule for rule in rules if rule is not None]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def match(self, path: str) -> bool:
        """Whether the patterns include `path`."""
        rule = self.decisive(path)
        return rule is not None and rule.include

    def decisive(self, path: str) -> GlobRule | None:
        """The pattern that decides about `path`: the last one that matches; None where none does."""
        return self._last(path, GlobRule.covers)

    def naming(self, path: str) -> GlobRule | None:
        """The last pattern that matches `path` itself. It decides, as in git, if no parent folder is excluded."""
        return self._last(path, GlobRule.names)

    def _last(self, path: str, test: Callable[[GlobRule, Sequence[str], bool], bool]) -> GlobRule | None:
        folder = path.endswith("/")
        parts = path.strip("/").split("/")
        for rule in self._rules:
            if test(rule, parts, folder):
                return rule
        return None

    def may_match_below(self, path: str) -> bool:
        """Whether the patterns can include a path inside the folder `path`. No false negatives."""
        parts = path.strip("/").split("/") if path.strip("/") else []
        return any(rule.include and rule.may_cover_below(parts) for rule in self._rules)

    def is_whole(self, path: str) -> bool:
        """Whether the patterns include the folder `path` and every possible path inside it. No false positives."""
        parts = path.strip("/").split("/")
        for rule in self._rules:
            if rule.include and rule.covers(parts, True):
                return True
            if not rule.include and rule.may_cover_below(parts):
                return False
        return False


class Parts(NamedTuple):
    """A parsed pattern: its components as written, ANY_DEPTH for `**`.

    `open_end`: its last component has a wildcard and no closing `/`; in `owns` it matches files only.
    """

    parts: tuple[str | None, ...]
    include: bool
    only_folders: bool
    open_end: bool = False


def compile_line(line: str, *, gitignore: bool = False) -> GlobRule | None:
    """Compile one line of a pattern list; None for a comment or an empty line."""
    found = segments_of(line)
    if not found.parts:
        return None
    segments = [ANY_DEPTH if part is ANY_DEPTH else compile_segment(part) for part in found.parts]
    return GlobRule(line, found.include, segments, found.only_folders, found.open_end and not gitignore)


def segments_of(line: str) -> Parts:
    """Parse one line in gitignore syntax; `parts` is empty for a comment or an empty line."""
    text = "" if line.startswith("#") else _strip_trailing(line)
    include = not text.startswith("!")
    text = text if include else text[1:]
    if not text.strip("/"):
        return Parts((), include, only_folders=False)
    only_folders = text.endswith("/")
    body = text.rstrip("/") if only_folders else text
    anchored = "/" in body
    parts = [part for part in body.split("/") if part]
    whole = set(parts) == {"**"}
    if whole:
        parts, anchored = ["*"], False
    elif parts[-1] == "**":
        # `a/**` matches everything inside `a`, the same as the folder pattern `a/`.
        only_folders = True
    while parts[-1] == "**":
        del parts[-1]
    found: list[str | None] = [] if anchored else [ANY_DEPTH]
    for part in parts:
        if part != "**":
            found.append(part)
        elif not found or found[-1] is not ANY_DEPTH:
            found.append(ANY_DEPTH)
    wild = any(not isinstance(one, str) for one in elements(parts[-1]))
    return Parts(tuple(found), include, only_folders, wild and not only_folders and not whole)


def _strip_trailing(text: str) -> str:
    """Remove trailing spaces, except an escaped last one."""
    stripped = text.rstrip(" ")
    if (
        stripped.endswith("\\")
        and (len(stripped) - len(stripped.rstrip("\\"))) % 2
        and len(stripped) < len(text)
    ):
        stripped += " "
    return stripped


class OneOf:
    """A test of one character: any (`?`), or a bracket class."""

    __slots__ = ("characters", "negated", "ranges")

    def __init__(
        self, negated: bool, characters: frozenset[str], ranges: tuple[tuple[str, str], ...]
    ) -> None:
        self.negated, self.characters, self.ranges = negated, characters, ranges

    def __call__(self, character: str) -> bool:
        """Whether this character fits."""
        found = character in self.characters or any(low <= character <= high for low, high in self.ranges)
        return found is not self.negated

    def expression(self) -> str:
        """The class as a regular expression."""
        # As \U escapes: no character of the class can be special in the expression.
        inside = "".join(f"\\U{ord(one):08x}" for one in sorted(self.characters))
        inside += "".join(f"\\U{ord(low):08x}-\\U{ord(high):08x}" for low, high in self.ranges if low <= high)
        if not inside:
            return "." if self.negated else "(?!)"
        return f"[{'^' if self.negated else ''}{inside}]"


ANY_CHARACTER = OneOf(True, frozenset("/"), ())


def elements(segment: str) -> list[str | OneOf | None]:
    """Parse a segment: literal texts, single-character tests, and None for `*`. Consecutive `*` become one."""
    found: list[str | OneOf | None] = []
    text, at = "", 0
    while at < len(segment):
        character = segment[at]
        at += 1
        special: OneOf | None
        if character == "\\" and at < len(segment):
            text += segment[at]
            at += 1
            continue
        if character == "*":
            special = None
        elif character == "?":
            special = ANY_CHARACTER
        elif character == "[" and (bracket := _bracket(segment, at)) is not None:
            special, at = bracket
        else:
            text += character
            continue
        if text:
            found.append(text)
            text = ""
        if special is not None or not found or found[-1] is not None:
            found.append(special)
    if text:
        found.append(text)
    return found


_ASCII = [chr(code) for code in range(128)]
#: Named classes, ASCII only, as in git's wildmatch; an unknown name is an empty class.
_CLASSES = {
    "alnum": frozenset(one for one in _ASCII if one.isalnum()),
    "alpha": frozenset(string.ascii_letters),
    "blank": frozenset(" \t"),
    "cntrl": frozenset(one for one in _ASCII if ord(one) < 32 or ord(one) == 127),
    "digit": frozenset(string.digits),
    "graph": frozenset(one for one in _ASCII if one.isprintable() and one != " "),
    "lower": frozenset(string.ascii_lowercase),
    "print": frozenset(one for one in _ASCII if one.isprintable()),
    "punct": frozenset(string.punctuation),
    "space": frozenset(" \t\n\v\f\r"),
    "upper": frozenset(string.ascii_uppercase),
    "xdigit": frozenset(string.hexdigits),
}
_POSIX = re.compile(r"\[:([^\]]*?):\]")


def _bracket(segment: str, at: int) -> tuple[OneOf, int] | None:
    """The class that begins after `[`, and its end position; None where it is not closed."""
    start = at
    if segment[at : at + 1] in {"!", "^"}:
        at += 1
    first = at
    characters: set[str] = set()
    ranges: list[tuple[str, str]] = []
    while at < len(segment) and (segment[at] != "]" or at == first):
        if (named := _POSIX.match(segment, at)) is not None:
            characters |= _CLASSES.get(named[1], frozenset())
            at = named.end()
            continue
        low, at = _class_character(segment, at)
        if segment[at : at + 1] == "-" and at + 1 < len(segment) and segment[at + 1] != "]":
            high, at = _class_character(segment, at + 1)
            ranges.append((low, high))
        else:
            characters.add(low)
    if at >= len(segment):
        return None
    # A negated class must not match the path separator.
    negated = first > start
    return OneOf(negated, frozenset(characters | ({"/"} if negated else set())), tuple(ranges)), at + 1


def _class_character(segment: str, at: int) -> tuple[str, int]:
    if segment[at] == "\\" and at + 1 < len(segment):
        return segment[at + 1], at + 2
    return segment[at], at + 1


def compile_segment(segment: str) -> Callable[[str], bool]:
    """A function that tests one path component."""
    parts = elements(segment)
    if not parts:
        return "".__eq__
    if parts == [None]:
        return _anything
    # The common shapes avoid the general matcher: the fence tests patterns on every write.
    match parts:
        case [str(text)]:
            return text.__eq__
        case [None, str(end)]:
            return lambda name: name.endswith(end)
        case [str(start), None]:
            return lambda name: name.startswith(start)
        case [str(start), None, str(end)]:
            shortest = len(start) + len(end)
            return lambda name: len(name) >= shortest and name.startswith(start) and name.endswith(end)
    runs = _runs(parts)
    return lambda name: _matches(runs, name)


def is_plain(segment: str) -> bool:
    """Whether a segment compiles to plain string comparisons (at most one `*`, no character tests)."""
    parts = elements(segment)
    return not any(isinstance(one, OneOf) for one in parts) and parts.count(None) <= 1


def _anything(name: str) -> bool:
    del name
    return True


class _Run(NamedTuple):
    """The part between two `*`, of fixed width: a text, or a regular expression without repetition."""

    text: str
    form: re.Pattern[str] | None
    width: int

    def is_at(self, name: str, at: int) -> bool:
        """Whether the run matches `name` at position `at`."""
        return name.startswith(self.text, at) if self.form is None else self.form.match(name, at) is not None

    def find(self, name: str, at: int, end: int) -> int:
        """First position between `at` and `end` where the run matches completely; -1 where there is none."""
        if self.form is None:
            return name.find(self.text, at, end)
        found = self.form.search(name, at, end)
        return -1 if found is None else found.start()


def _runs(parts: Sequence[str | OneOf | None]) -> tuple[_Run, ...]:
    runs: list[list[str | OneOf]] = [[]]
    for part in parts:
        if part is None:
            runs.append([])
        else:
            runs[-1].append(part)
    return tuple(map(_run, runs))


def _run(pieces: list[str | OneOf]) -> _Run:
    width = sum(len(one) if isinstance(one, str) else 1 for one in pieces)
    if all(isinstance(one, str) for one in pieces):
        return _Run("".join(map(str, pieces)), None, width)
    form = "".join(re.escape(one) if isinstance(one, str) else one.expression() for one in pieces)
    return _Run("", re.compile(form, re.DOTALL), width)


def _matches(runs: tuple[_Run, ...], name: str) -> bool:
    """Match without backtracking: first run at the start, last at the end, the others as early as possible."""
    first, last = runs[0], runs[-1]
    end = len(name) - last.width
    if len(runs) == 1:
        return end == 0 and first.is_at(name, 0)
    if end < first.width or not first.is_at(name, 0) or not last.is_at(name, end):
        return False
    at = first.width
    for run in runs[1:-1]:
        found = run.find(name, at, end)
        if found < 0:
            return False
        at = found + run.width
    return at <= end
