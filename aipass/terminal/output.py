"""What verbs print: JSON for scripts, tables that fit the terminal for people."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from aipass.errors import ConfigError
from aipass.event import inert, iso, plain, printable
from aipass.terminal.screen import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from aipass.ledger import Ledger, Row
    from aipass.workspace.layout import Layout

#: Of an answer on a terminal; nobody reads more there.
MOST_SHOWN = 1_000_000
STATE_COLOURS = {
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "blocked": "magenta",
    "cancelled": "yellow",
}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; its fields are a promise.")


def print_json(value: object) -> None:
    """One JSON document, or for a list of events one a line by the caller."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, flexible: int = -1, wraps: bool = False
) -> None:
    """Print aligned columns; the `flexible` one is cut where the terminal is too narrow, or with `wraps` goes on below.

    What is not for a terminal is not cut.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(len(header), *(len(row[i]) for row in cells)) if cells else len(header)
        for i, header in enumerate(headers)
    ]
    flexible %= len(headers)
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(widths) + widths[flexible] - 2 * (len(headers) - 1)
        widths[flexible] = min(widths[flexible], max(8, room))
    click.secho(_line(headers, widths), bold=True)
    for row in cells:
        fits = not wraps or len(row[flexible]) <= widths[flexible]
        parts = [] if fits else textwrap.wrap(row[flexible], widths[flexible], break_on_hyphens=False)
        first = [parts[0] if i == flexible and parts else cell for i, cell in enumerate(row)]
        click.echo(_coloured(_line(first, widths)))
        for part in parts[1:]:
            below = [part if i == flexible else "" for i in range(len(row))]
            click.echo(_line(below, widths))


def lines_of(text: str, indent: str = "    ") -> list[str]:
    """A text of many lines for eyes: without control characters, indented, and on a terminal no wider than that."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    found = []
    for line in text.splitlines():
        shown = plain(line.expandtabs(4))
        if width and len(indent) + len(shown) > width:
            parts = textwrap.wrap(
                shown, max(20, width - len(indent)), break_on_hyphens=False, break_long_words=False
            )
            found += [indent + part for part in parts]
        else:
            found.append((indent + shown).rstrip())
    return found


def labelled(label: str, text: str, *, indent: int = 9) -> str:
    """A text after its label; what does not fit on the line goes on below, indented."""
    first, *more = lines_of(f"{label.ljust(indent - 1)} {text}", "") or [""]
    return "\n".join([first, *lines_of(" ".join(more), " " * indent)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    fitted = [
        cell if len(cell) <= width else cell[: width - 1] + "…"
        for cell, width in zip(cells, widths, strict=True)
    ]
    return "  ".join(cell.ljust(width) for cell, width in zip(fitted, widths, strict=True)).rstrip()


def _coloured(line: str) -> str:
    for state, colour in STATE_COLOURS.items():
        if f" {state}" in line:
            return line.replace(f" {state}", " " + click.style(state, fg=colour), 1)
    return line


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return plain(" ".join(str(printable(str(value))).split()))


def clock(seconds: float | None) -> str:
    """A moment for eyes, in local time; only the time of day for today."""
    if seconds is None:
        return "-"
    moment = datetime.fromtimestamp(seconds).astimezone()
    today = datetime.fromtimestamp(time.time()).astimezone().date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M")


def when(seconds: float | None) -> str:
    """The same, with how long ago that is."""
    if seconds is None:
        return "-"
    ago = max(0.0, time.time() - seconds)
    unit, size = next(
        ((unit, size) for unit, size in (("d", 86400), ("h", 3600), ("min", 60)) if ago >= size), ("s", 1)
    )
    return f"{clock(seconds)}, {int(ago // size)} {unit} ago"


def when_iso(moment: str | None) -> str:
    """The same, of a moment as JSON has it."""
    return when(None if moment is None else datetime.fromisoformat(moment).timestamp())


def coloured_state(state: str) -> str:
    """A state's word in its colour."""
    return click.style(state, fg=STATE_COLOURS.get(state))


def dispatch_json(row: Row, senders: list[str]) -> dict[str, Any]:
    """A dispatch as scripts see it."""
    return {
        "id": row["id"],
        "agent": row["agent"],
        "state": row["state"],
        "key": row["key"],
        "subject": row["subject"],
        "senders": [printable(sender) for sender in senders],
        "plan": row["plan"],
        "phase": row["phase"],
        "attempts": row["attempts"],
        "created": iso(row["created"]),
        "started": iso(row["started"]),
        "finished": iso(row["finished"]),
        "reason": row["reason"],
    }


def poll(check: Callable[[], Any], timeout_s: float | None, label: Callable[[], str] | None = None) -> Any:  # noqa: ANN401 - whatever `check` finds
    """Wait until `check` returns something; None after `timeout_s`. On a terminal `label` shows what is waited for."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pause, shown = 0.003, ""
    try:
        while (found := check()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                return None
            if label is not None and sys.stderr.isatty() and (text := label()) != shown:
                progress(text)
                shown = text
            time.sleep(pause)
            pause = min(pause * 1.3, 0.2)
        return found
    finally:
        if shown:
            progress("")


def senders_of(ledger: Ledger, dispatch: int) -> list[str]:
    """Names of those who asked for a dispatch."""
    return [row["sender"] for row in ledger.all("senders", {"dispatch": dispatch})]


def relative_to_root(layout: Layout, path: str) -> str:
    """A path as a person gave it, from where they stand, relative to the root.

    Raises ConfigError where it lies outside.
    """
    relative = os.path.relpath(os.path.join(os.path.realpath(os.curdir), path), layout.root)
    if relative == ".." or relative.startswith("../"):
        raise ConfigError(f"{path}: lies outside of {layout.root}")
    return relative


def write_answer(path: Path) -> None:
    """Print an agent's answer: byte for byte, but on a terminal nothing that the terminal would obey."""
    sys.stdout.flush()
    with path.open("rb") as file:
        if not sys.stdout.isatty():
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        said = file.read(MOST_SHOWN + 1)
    text = inert(said[:MOST_SHOWN].decode("utf-8", "replace"))
    click.echo(text, nl=not text.endswith("\n"))
    if len(said) > MOST_SHOWN:
        click.echo(f"… the whole answer is in {path}", err=True)
