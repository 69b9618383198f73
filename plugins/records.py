"""What the drivers of agent CLIs share: JSON lines, as far as they are sound, and what becomes of a run that says no more."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from aipass import Outcome
from aipass.features.dispatch.driver import SESSION
from aipass.supervisor.held import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: So much of an output is read, from its begin and to its end: the engine waits meanwhile, and what stands between is what
#: tools printed.
HEAD_BYTES, TAIL_BYTES, TAIL_LINES = 1_000_000, 16_000_000, 100_000
#: How an agent says that it cannot go on without an answer: the prompt tells it to.
QUESTION = "QUESTION:"
#: HTTP states of a model server after which another attempt makes sense, and those that no attempt mends.
OVERLOAD = frozenset((500, 502, 503, 504, 529))
FAULT = frozenset((401, 403, 404))
LIMIT = 429


class Records:
    """The records of an output file, to be gone through once; `session` is then what the first of them calls it by `key`."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self.session: str | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for found in records(self._path):
            if self.session is None and SESSION.fullmatch(words(found.get(self._key))):
                self.session = found[self._key]
            yield found


def session_in(path: Path, key: str) -> str | None:
    """What the first record that has `key` calls its conversation."""
    found = Records(path, key)
    for _ in found:
        if found.session is not None:
            break
    return found.session


def afresh() -> Outcome:
    """The verdict on a run that could not go on with its conversation."""
    return Outcome("afresh", reason="its conversation is lost, and it starts afresh")


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that are JSON objects with a type, of a long output the first and the last; all else is passed over."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
            size = os.fstat(file.fileno()).st_size
            file.seek(max(len(head), size - TAIL_BYTES))
            rest = file.read(TAIL_BYTES)
    except OSError:
        return
    if size > HEAD_BYTES + TAIL_BYTES:
        lines = [*head.split(b"\n")[:-1][:TAIL_LINES], *rest.split(b"\n")[1:][-TAIL_LINES:]]
    else:
        lines = (head + rest).split(b"\n")[-2 * TAIL_LINES :]
    for line in lines:
        if line.startswith(b"{") and b'"type"' in line and (found := record(line)) is not None:
            yield found


def record(line: bytes | str) -> dict[str, Any] | None:
    """One line as a JSON object; None where it is something else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def words(value: object) -> str:
    """A field that should be text; empty where it is none."""
    return value if isinstance(value, str) else ""


def inner(value: object) -> dict[str, Any]:
    """A field that should be an object; empty where it is none."""
    return value if isinstance(value, dict) else {}


def count(value: object) -> int | None:
    """A field that should be a number of tokens, or of seconds; None where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else None


def amount(value: object) -> float | None:
    """A field that should be an amount of money, or of seconds; None where it is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 10**12 else None  # type: ignore[operator,arg-type]


def denied(tools: Iterable[object]) -> str | None:
    """The reason of a run that was refused what it needed; None where nothing was."""
    names = sorted({str(tool) for tool in tools})
    return f"it was refused permission for {', '.join(names)}" if names else None


def question(text: str) -> str | None:
    """What the agent asks at the end of its answer; None where it asks nothing."""
    last = text.rstrip().rpartition("\n\n")[2].lstrip("*_> ")
    return last.removeprefix(QUESTION).strip(" *_\n") or None if last.startswith(QUESTION) else None


def no_result(code: int | None, signal: int | None, last: str) -> str:
    """The reason of a run that ended without saying how: an exit status of 0 alone is no success."""
    how = f"signal {signal}" if signal else f"exit status {code}"
    return f"it ended with {how} and without a result record" + (f": {last}" if last else "")


def shown(tool: object, given: dict[str, Any]) -> str:
    """A use of a tool in one line, for eyes."""
    known = ("command", "cmd", "file_path", "filePath", "path", "pattern", "url", "description")
    about = next((words(given[name]) for name in known if words(given.get(name))), "")
    return f"> {tool} {about}".rstrip().replace("\n", " ")[:300]
