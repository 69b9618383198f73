"""The shared reader of JSON Lines output for the drivers of agent CLIs, and their common outcomes."""

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

#: The first and last bytes of an output that are read. The engine's thread waits for this, and output can have gigabytes;
#: the middle has only what tools printed.
HEAD_BYTES, TAIL_BYTES, TAIL_LINES = 1_000_000, 16_000_000, 100_000
#: The beginning of an agent's question to its user; the prompt asks for this form.
QUESTION = "QUESTION:"
#: HTTP statuses of a model server: OVERLOAD is temporary, FAULT stays until a person changes something.
OVERLOAD = frozenset((500, 502, 503, 504, 529))
FAULT = frozenset((401, 403, 404))
LIMIT = 429


class Records:
    """The records of an output file, as an iterator for one pass.

    `session` is the conversation id in the first record that has a valid one in `key`; None before that record.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self.session: str | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for found in records(self._path):
            # The id becomes an argument of the next run's command line, so its form is checked.
            if self.session is None and SESSION.fullmatch(words(found.get(self._key))):
                self.session = found[self._key]
            yield found


def session_in(path: Path, key: str) -> str | None:
    """Return the conversation id of an output file; None if no record has one. Stops reading at the first."""
    found = Records(path, key)
    for _ in found:
        if found.session is not None:
            break
    return found.session


def afresh() -> Outcome:
    """Return the outcome of a run whose conversation the CLI no longer has; it costs no attempt."""
    return Outcome("afresh", reason="its conversation is lost; the next attempt starts a new one")


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines that are JSON objects with a type; only the first and last of a long output. Raises nothing."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
            size = os.fstat(file.fileno()).st_size
            file.seek(max(len(head), size - TAIL_BYTES))
            rest = file.read(TAIL_BYTES)
    except OSError:
        return
    if size > HEAD_BYTES + TAIL_BYTES:
        # The cut goes through a line on either side.
        lines = [*head.split(b"\n")[:-1][:TAIL_LINES], *rest.split(b"\n")[1:][-TAIL_LINES:]]
    else:
        lines = (head + rest).split(b"\n")[-2 * TAIL_LINES :]
    for line in lines:
        if line.startswith(b"{") and b'"type"' in line and (found := record(line)) is not None:
            yield found


def record(line: bytes | str) -> dict[str, Any] | None:
    """Parse one line; None if it is not a JSON object."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def words(value: object) -> str:
    """Return a field that should be text; empty if it is not."""
    return value if isinstance(value, str) else ""


def inner(value: object) -> dict[str, Any]:
    """Return a field that should be an object; empty if it is not."""
    return value if isinstance(value, dict) else {}


def count(value: object) -> int | None:
    """Return a field that should be a number of tokens, or of seconds; None if it is not."""
    # `bool` is a subclass of `int`.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else None


def amount(value: object) -> float | None:
    """Return a field that should be an amount of money, or of seconds; None if it is not."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 10**12 else None  # type: ignore[operator,arg-type]


def denied(tools: Iterable[object]) -> str | None:
    """Return the reason for a run that was refused a permission; None if it was refused none."""
    names = sorted({str(tool) for tool in tools})
    return f"it was refused permission for {', '.join(names)}" if names else None


def question(text: str) -> str | None:
    """Return the question in the last paragraph of an answer; None if there is none."""
    # Models write it in bold, in italics or as a quote.
    last = text.rstrip().rpartition("\n\n")[2].lstrip("*_> ")
    return last.removeprefix(QUESTION).strip(" *_\n") or None if last.startswith(QUESTION) else None


def no_result(code: int | None, signal: int | None, last: str) -> str:
    """Return the reason for a run without a result record. It failed, even with exit status 0."""
    how = f"signal {signal}" if signal else f"exit status {code}"
    return f"it ended with {how} and without a result record" + (f": {last}" if last else "")


def shown(tool: object, given: dict[str, Any]) -> str:
    """Return one line about the use of a tool, for people."""
    known = ("command", "cmd", "file_path", "filePath", "path", "pattern", "url", "description")
    about = next((words(given[name]) for name in known if words(given.get(name))), "")
    return f"> {tool} {about}".rstrip().replace("\n", " ")[:300]
