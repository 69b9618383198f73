"""The overlap of two lists of patterns: an exact decision, with a path that both match as the example. Pure.

Two single patterns are compared component by component (`pair`), which is fast and nearly always enough. If a `!` line
excludes something, the lists are compared as regular languages: both run in parallel as deterministic automata, whose
states are built on demand. A breadth-first search finds a shortest path that both accept, or proves that there is none.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from aipass.errors import AipassError
from aipass.supervisor.fence.glob import (
    ANY_CHARACTER,
    ANY_DEPTH,
    Globs,
    OneOf,
    compile_segment,
    elements,
    segments_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

#: Characters for a place that accepts every character, most readable first. The example path is shown to people.
_NICE = "xyzabcdefghijklmnopqrstuvwuvw0123456789_-+=@%,~^XYZABCDEFGHIJKLMNOPQRSTUVW"
#: The beginning of a component so far: empty, `.`, `..`, or another name. `.` and `..` are not valid names of files.
_EMPTY, _DOT, _DOTS, _NAME = range(4)

#: The limit of a search, in steps of one spot of a pattern by one character; it takes about a second. The number of
#: states can grow to two to the power of the wildcards, and agents write patterns (in plans).
MOST_STEPS = 1_500_000
#: After this number of undecided pairs no further pairs are compared, because the engine waits for the result.
MOST_UNDECIDED = 3
#: A character, a set of characters, or None for any number of any characters (`*`).
Part = str | OneOf | None
Place = TypeVar("Place", bound=tuple[object, ...])

#: A position in a pattern: (segment, element); (segment, -1) inside a component that `**` skips; _INSIDE in a matched folder.
Spot = tuple[int, int]
_INSIDE: Spot = (-1, -1)


class UndecidedError(AipassError):
    """The patterns have too many combinations of wildcards to be compared within MOST_STEPS."""

    def __init__(self, one: Iterable[str], other: Iterable[str]) -> None:
        lists = " with ".join(", ".join(f"`{line}`" for line in islice(lines, 5)) for lines in (one, other))
        super().__init__(
            f"{lists} can match in too many ways to be compared; use fewer `*` and `?` in one name, fewer lines with `!`, or name the folder"
        )


class _Pattern:
    """One pattern as a nondeterministic automaton over characters. A state is a set of spots."""

    def __init__(self, line: str) -> None:
        self.lines, rule = (line,), segments_of(line)
        self.include, self.only_folders, self.files_only = rule.include, rule.only_folders, rule.open_end
        self.segments = [None if part is ANY_DEPTH else _single(elements(part)) for part in rule.parts]

    def start(self, segment: int = 0) -> frozenset[Spot]:
        if segment == len(self.segments):
            return frozenset()
        if self.segments[segment] is None:
            return self.start(segment + 1) | {(segment, -1)}
        return self._closed(segment, 0)

    def _closed(self, segment: int, at: int) -> frozenset[Spot]:
        """A spot, with the spots that follow it if each `*` there matches no character (epsilon closure)."""
        parts = self.segments[segment]
        assert parts is not None
        found = {(segment, at)}
        while at < len(parts) and parts[at] is None:
            at += 1
            found.add((segment, at))
        return frozenset(found)

    def step(self, spots: frozenset[Spot], character: str) -> frozenset[Spot]:
        found: set[Spot] = set()
        for spot in spots:
            if spot == _INSIDE:
                found.add(spot)
                continue
            segment, at = spot
            parts = self.segments[segment]
            if parts is None:
                found |= self.start(segment) if character == "/" else {spot}
            elif character == "/":
                last = segment + 1 == len(self.segments)
                if at == len(parts) and not (last and self.files_only):
                    found |= {_INSIDE} if last else self.start(segment + 1)
            elif at < len(parts):
                wanted = parts[at]
                if wanted is None:
                    found |= self._closed(segment, at)
                elif wanted == character or (isinstance(wanted, OneOf) and wanted(character)):
                    found |= self._closed(segment, at + 1)
        return frozenset(found)

    def parts(self) -> Iterator[Part]:
        """All its parts, for the alphabet."""
        for segment in self.segments:
            yield from segment or ()

    def accepts(self, spots: frozenset[Spot]) -> bool:
        """Whether a file path that ends here matches: by itself, or because a folder above it matches."""
        if _INSIDE in spots:
            return True
        last = len(self.segments) - 1
        parts = self.segments[last]
        assert parts is not None
        return not self.only_folders and (last, len(parts)) in spots


def _single(parts: Sequence[str | OneOf | None]) -> list[str | OneOf | None]:
    """The parts with each text split into its characters."""
    found: list[str | OneOf | None] = []
    for part in parts:
        found += list(part) if isinstance(part, str) else [part]
    return found


State = tuple[frozenset[Spot], ...]


class Language:
    """The set of file paths that a list of patterns matches, as a deterministic automaton."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(lines)
        # Reversed: the last line that matches a path decides, as in .gitignore.
        self._patterns = [_Pattern(line) for line in reversed(self.lines) if Globs((line,))]

    def start(self) -> State:
        """The state before the first character."""
        return tuple(pattern.start() for pattern in self._patterns)

    def step(self, state: State, character: str) -> State:
        """The state after one more character."""
        return tuple(
            pattern.step(spots, character) for pattern, spots in zip(self._patterns, state, strict=True)
        )

    def accepts(self, state: State) -> bool:
        """Whether a path that ends here is in the set."""
        for pattern, spots in zip(self._patterns, state, strict=True):
            if pattern.accepts(spots):
                return pattern.include
        return False

    def may_accept(self, state: State) -> bool:
        """Whether a continuation can be in the set. It can be wrong only by returning True."""
        return any(pattern.include and spots for pattern, spots in zip(self._patterns, state, strict=True))

    def parts(self) -> Iterator[Part]:
        """All parts of these patterns, for the alphabet."""
        for pattern in self._patterns:
            yield from pattern.parts()


def pair(one: str, other: str) -> str | None:
    """A shortest file path that both patterns match; None if there is none. Ignores all other lines of their lists."""
    first, second = segments_of(one), segments_of(other)
    if not (first.parts and second.parts and first.include and second.include):
        return None
    # A pattern for folders matches files only inside a folder, which adds one component of any name.
    mine = (*first.parts, "*") if first.only_folders else first.parts
    theirs = (*second.parts, "*") if second.only_folders else second.parts
    ends = first.open_end, second.open_end
    start = (0, 0)
    came: dict[tuple[int, int], tuple[tuple[int, int], str] | None] = {start: None}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        if here == (len(mine), len(theirs)):
            return "/".join(_names(came, here))
        for there, name in _next(mine, theirs, here, ends):
            if there not in came:
                came[there] = here, name
                # A step without a component has no length; it goes first, so that the search stays breadth-first.
                waiting.append(there) if name else waiting.appendleft(there)
    return None


def _next(
    mine: Sequence[str | None], theirs: Sequence[str | None], here: tuple[int, int], ends: tuple[bool, bool]
) -> Iterator[tuple[tuple[int, int], str]]:
    i, j = here
    skips_i, skips_j = i < len(mine) and mine[i] is None, j < len(theirs) and theirs[j] is None
    if skips_i:
        yield (i + 1, j), ""
    if skips_j:
        yield (i, j + 1), ""
    if (ends[0] and i == len(mine)) or (ends[1] and j == len(theirs)):
        return  # a pattern that matches only files has no path below its end
    # After its end a pattern accepts any component: a path inside the folder that it matches. `**` accepts any and stays.
    one = "*" if skips_i or i == len(mine) else mine[i]
    other = "*" if skips_j or j == len(theirs) else theirs[j]
    assert one is not None
    assert other is not None
    if (i, j) != (len(mine), len(theirs)) and (name := component(one, other)) is not None:
        yield (i if skips_i or i == len(mine) else i + 1, j if skips_j or j == len(theirs) else j + 1), name


def _names(
    came: dict[tuple[int, int], tuple[tuple[int, int], str] | None], here: tuple[int, int]
) -> list[str]:
    names = []
    while (step := came[here]) is not None:
        here, name = step
        if name:
            names.append(name)
    return names[::-1]


@lru_cache(maxsize=100_000)
def component(one: str, other: str) -> str | None:
    """A name that both globs match; None if there is none."""
    first, second = elements(one), elements(other)
    if not _ends_agree(first, second):
        return None
    # A guess is nearly always right, and much cheaper than the search.
    tests = compile_segment(one), compile_segment(other)
    for guess in _guesses(first, second):
        if guess not in ("", ".", "..") and all(test(guess) for test in tests):
            return guess
    return _meet(_single(first), _single(second))


def _meet(first: Sequence[Part], second: Sequence[Part]) -> str | None:
    """The shortest name that both match, by a breadth-first search over pairs of positions; None if there is none."""
    alphabet = [c for c in _alphabet_of(first, second) if c != "/"]
    start = (0, 0, _EMPTY)
    came: dict[tuple[int, int, int], tuple[tuple[int, int, int], str] | None] = {start: None}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        i, j, begun = here
        if (i, j, begun) == (len(first), len(second), _NAME):
            return _spell(came, here)
        # A `*` can end without a further character.
        for there in ((i + 1, j, begun),) * _is_star(first, i) + ((i, j + 1, begun),) * _is_star(second, j):
            if there not in came:
                came[there] = here, ""
                waiting.appendleft(there)
        if i == len(first) or j == len(second):
            continue
        for character in alphabet:
            next_begun = _begun(begun, character)
            if next_begun is None or not (_takes(first[i], character) and _takes(second[j], character)):
                continue
            there = (i + (first[i] is not None), j + (second[j] is not None), next_begun)
            if there not in came:
                came[there] = here, character
                waiting.append(there)
    return None


def _is_star(parts: Sequence[Part], place: int) -> bool:
    return place < len(parts) and parts[place] is None


def _takes(part: Part, character: str) -> bool:
    return part is None or part == character or (isinstance(part, OneOf) and part(character))


def _ends_agree(first: Sequence[str | OneOf | None], second: Sequence[str | OneOf | None]) -> bool:
    """Whether the literal beginnings can be equal, and the literal ends. A cheap test that excludes most pairs."""
    for place, agree in ((0, str.startswith), (-1, str.endswith)):
        a, b = (parts[place] if parts else "" for parts in (first, second))
        if isinstance(a, str) and isinstance(b, str) and not (agree(a, b) or agree(b, a)):
            return False
    return True


def _guesses(first: Sequence[str | OneOf | None], second: Sequence[str | OneOf | None]) -> Iterator[str]:
    """Likely names: the literal texts of each glob with `x` or nothing for wildcards, and both ends joined."""
    for parts in (first, second):
        yield "".join(part if isinstance(part, str) else "x" for part in parts)
        yield "".join(part if isinstance(part, str) else "" if part is None else "x" for part in parts)
    heads = [parts[0] for parts in (first, second) if parts and isinstance(parts[0], str)]
    tails = [parts[-1] for parts in (first, second) if parts and isinstance(parts[-1], str)]
    yield max(heads, key=len, default="") + "x" + max(tails, key=len, default="")
    yield max(heads, key=len, default="") + max(tails, key=len, default="")


def common_path(one: Iterable[str], other: Iterable[str]) -> str | None:
    """A file path, existing or not, that both lists of patterns match; None if there is none.

    Raises UndecidedError.
    """
    one, other = tuple(one), tuple(other)
    found = next((path for a in one for b in other if (path := pair(a, b)) is not None), None)
    # A `!` line can only remove paths: without a common pair there is no common path.
    if found is None or not any(line.startswith("!") for line in (*one, *other)):
        return found
    if Globs(one).match(found) and Globs(other).match(found):
        return found
    first, second = Language(one), Language(other)
    return _search(
        first,
        second,
        lambda a, b: first.accepts(a) and second.accepts(b),
        lambda a, b: first.may_accept(a) and second.may_accept(b),
    )


def path_outside(one: Iterable[str], other: Iterable[str]) -> str | None:
    """A file path that the first list matches and the second does not; None if the second contains the first.

    Raises UndecidedError.
    """
    one, second = tuple(one), Language(other)
    if any(line.startswith("!") for line in one):
        first = Language(one)
        return _search(
            first,
            second,
            lambda a, b: first.accepts(a) and not second.accepts(b),
            lambda a, _: first.may_accept(a),
        )
    if not second.lines:
        return next((path for line in one if (path := pair(line, line)) is not None), None)
    # A line that is in both lists needs no search, which can take long.
    whole = () if any(line.startswith("!") for line in second.lines) else set(map(segments_of, second.lines))
    # Each line separately: the state of the first pattern is then a single spot instead of a set of spots, which keeps the
    # number of states small.
    lines = (line for line in one if Globs((line,)) and segments_of(line) not in whole)
    found = (_outside(_Pattern(line), second) for line in lines)
    return min((path for path in found if path is not None), key=len, default=None)


def _outside(first: _Pattern, second: Language) -> str | None:
    """A shortest path that a pattern matches and a list does not; None if there is none."""
    alphabet = _alphabet_of(first.parts(), second.parts())
    waiting = deque((spot, second.start(), _EMPTY) for spot in sorted(first.start()))
    came: dict[tuple[Spot, State, int], tuple[tuple[Spot, State, int], str] | None] = dict.fromkeys(waiting)
    steps: dict[tuple[State, str], State] = {}
    for here in _bounded(waiting, alphabet, first, second):
        spot, state, begun = here
        if begun == _NAME and first.accepts(frozenset((spot,))) and not second.accepts(state):
            return _spell(came, here)
        for character in alphabet:
            next_begun = _begun(begun, character)
            if next_begun is None or not (spots := first.step(frozenset((spot,)), character)):
                continue
            if (state, character) not in steps:
                steps[state, character] = second.step(state, character)
            for next_spot in spots:
                there = (next_spot, steps[state, character], next_begun)
                if there not in came:
                    came[there] = here, character
                    waiting.append(there)
    return None


def _bounded(
    states: deque[Place], alphabet: Sequence[str], first: Language | _Pattern, second: Language
) -> Iterator[Place]:
    """The states of the queue in order. Raises UndecidedError after MOST_STEPS steps."""
    left = MOST_STEPS
    while states:
        if left <= 0:
            raise UndecidedError(first.lines, second.lines)
        state = states.popleft()
        left -= len(alphabet) * sum(
            sum(1 + len(spots) for spots in part)
            if isinstance(part, tuple) and part and isinstance(part[0], frozenset)
            else 1
            for part in state
        )
        yield state


def _search(
    first: Language,
    second: Language,
    found: Callable[[State, State], bool],
    worth: Callable[[State, State], bool],
    slashes: bool = True,
) -> str | None:
    """A shortest path whose states satisfy `found`; None if there is none.

    `worth`: whether a pair of states can still lead to such a path. `slashes`: False for a path of one component.
    """
    alphabet = [c for c in _alphabet(first, second) if slashes or c != "/"]
    start = (first.start(), second.start(), _EMPTY)
    came: dict[tuple[State, State, int], tuple[tuple[State, State, int], str] | None] = {start: None}
    waiting = deque([start])
    for here in _bounded(waiting, alphabet, first, second):
        a, b, begun = here
        if begun == _NAME and found(a, b):
            return _spell(came, here)
        for character in alphabet:
            next_begun = _begun(begun, character)
            if next_begun is None:
                continue
            there = (first.step(a, character), second.step(b, character), next_begun)
            if there not in came and worth(there[0], there[1]):
                came[there] = here, character
                waiting.append(there)
    return None


def _begun(begun: int, character: str) -> int | None:
    """The beginning of a component after one more character; None if no path can have it (`//`, `./`, `../`)."""
    if character == "/":
        return _EMPTY if begun == _NAME else None
    if character == "." and begun in (_EMPTY, _DOT):
        return begun + 1
    return _NAME


def _spell(came: Mapping[Place, tuple[Place, str] | None], here: Place) -> str:
    text = ""
    while (step := came[here]) is not None:
        here, character = step
        text = character + text
    return text


def _alphabet(first: Language, second: Language) -> list[str]:
    """`/`, and one character for each class of characters that these patterns treat alike."""
    return _alphabet_of(first.parts(), second.parts())


def _alphabet_of(*lists: Iterable[Part]) -> list[str]:
    singles: set[str] = set()
    classes: list[OneOf] = []
    for part in chain.from_iterable(lists):
        if isinstance(part, str):
            singles.add(part)
        elif part is not None and part is not ANY_CHARACTER:
            classes.append(part)
    candidates = set(_NICE) | singles
    for one in classes:
        candidates |= one.characters
        for low, high in one.ranges:
            candidates |= {low, high, chr(ord(low) + 1), chr(max(0, ord(low) - 1)), chr(ord(high) + 1)}
    # NUL is in no path, and a pattern is one line.
    candidates -= {"/", "\0", "\n"}
    order = {character: place for place, character in enumerate(_NICE)}
    kinds: dict[tuple[object, ...], str] = {}
    for character in sorted(candidates, key=lambda c: (order.get(c, len(order)), c)):
        kind = (
            character if character in singles or character == "." else None,
            *(one(character) for one in classes),
        )
        kinds.setdefault(kind, character)
    return ["/", *kinds.values()]
