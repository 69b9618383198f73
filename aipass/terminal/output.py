"""Output of verbs: JSON for scripts; tables and texts that fit the terminal for people."""

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

#: Bytes of an answer that are printed on a terminal; a pipe or a file gets all of it.
MOST_SHOWN = 1_000_000
STATE_COLOURS = {
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "blocked": "magenta",
    "cancelled": "yellow",
}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; its fields are stable.")


def print_json(value: object) -> None:
    """Print one value as one indented JSON document."""
    # ASCII only: scripts get the same bytes under every locale, also for names that are not UTF-8.
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, flexible: int = -1, wraps: bool = False
) -> None:
    """Print aligned columns. In a narrow terminal the column `flexible` is cut, or with `wraps` continued on the next line.

    Output to a file or a pipe is never cut.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(len(header), *(len(row[i]) for row in cells)) if cells else len(header)
        for i, header in enumerate(headers)
    ]
    flexible %= len(headers)  # so that -1 means the last column
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(widths) + widths[flexible] - 2 * (len(headers) - 1)
        widths[flexible] = min(widths[flexible], max(8, room))
    click.secho(_line(headers, widths), bold=True)
    for row in cells:
        fits = not wraps or len(row[flexible]) <= widths[flexible]
        parts = [] if fits else textwrap.wrap(row[flexible], widths[flexible], break_on_hyphens=False)
        first = [parts[0] if i == flexible and parts else cell for i, cell in enumerate(row)]
        # Colours come after the padding, because their control sequences would count as width.
        click.echo(_coloured(_line(first, widths)))
        for part in parts[1:]:
            below = [part if i == flexible else "" for i in range(len(row))]
            click.echo(_line(below, widths))


def lines_of(text: str, indent: str = "    ") -> list[str]:
    """Return the lines of a text for people: indented, without control characters, and wrapped to the width of a terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    found = []
    for line in text.splitlines():
        shown = plain(line.expandtabs(4))
        if width and len(indent) + len(shown) > width:
            # Words stay whole, so that a path or an id can be copied from the terminal.
            parts = textwrap.wrap(
                shown, max(20, width - len(indent)), break_on_hyphens=False, break_long_words=False
            )
            found += [indent + part for part in parts]
        else:
            found.append((indent + shown).rstrip())
    return found


def labelled(label: str, text: str, *, indent: int = 9) -> str:
    """Return a text after its label; the lines that follow the first are indented as the text is."""
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
    """Return a moment in local time for people: the time of day if it is today, else the date too; "-" for None."""
    if seconds is None:
        return "-"
    moment = datetime.fromtimestamp(seconds).astimezone()
    today = datetime.fromtimestamp(time.time()).astimezone().date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M")


def when(seconds: float | None) -> str:
    """Return the moment as `clock` does, with its age (`3 min ago`); "-" for None."""
    if seconds is None:
        return "-"
    ago = max(0.0, time.time() - seconds)  # not below zero if the wall clock was set back
    unit, size = next(
        ((unit, size) for unit, size in (("d", 86400), ("h", 3600), ("min", 60)) if ago >= size), ("s", 1)
    )
    return f"{clock(seconds)}, {int(ago // size)} {unit} ago"


def when_iso(moment: str | None) -> str:
    """As `when`, for a moment in the ISO format of our JSON."""
    return when(None if moment is None else datetime.fromisoformat(moment).timestamp())


def coloured_state(state: str) -> str:
    """Return the word of a state with its colour; an unknown state stays plain."""
    return click.style(state, fg=STATE_COLOURS.get(state))


def dispatch_json(row: Row, senders: list[str]) -> dict[str, Any]:
    """Return a dispatch as `--json` prints it; `aipass schema dispatch` describes the same fields."""
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
    """Call `check` until it returns a value that is not None, and return it; None after `timeout_s` (None: no limit).

    `check` is called at least once. On a terminal the text of `label` is shown while it waits.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    # From 3 ms, since most replies come within milliseconds, up to 0.2 s, so that a wait of hours costs no CPU.
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
        # Also after Ctrl-C, so that the next line does not begin behind the text of the wait.
        if shown:
            progress("")


def senders_of(ledger: Ledger, dispatch: int) -> list[str]:
    """Return the senders of a dispatch; several if requests were joined (deduplication)."""
    return [row["sender"] for row in ledger.all("senders", {"dispatch": dispatch})]


def relative_to_root(layout: Layout, path: str) -> str:
    """Return a path that a person gave, relative to the root instead of to the current folder.

    Raises ConfigError if it is outside the root.
    """
    # `realpath` only of the current folder: the last part may be a link whose own path is meant.
    relative = os.path.relpath(os.path.join(os.path.realpath(os.curdir), path), layout.root)
    if relative == ".." or relative.startswith("../"):
        raise ConfigError(f"{path}: is outside the root {layout.root}")
    return relative


def write_answer(path: Path) -> None:
    """Print an agent's answer: the exact bytes to a pipe or a file, on a terminal without control sequences."""
    sys.stdout.flush()  # the bytes go past the text buffer, which must be empty to keep the order
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
