"""The verb `aipass events`: lists the event log."""

from __future__ import annotations

import difflib
import json
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from aipass.event import KINDS, Event, plain, printable
from aipass.terminal.find import open_ledger
from aipass.terminal.output import clock, json_option, table
from aipass.workspace.layout import REJECTED, find_root

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.ledger import Ledger

#: Interval of --follow; SQLite has no notification for other processes, so the log is polled.
FOLLOW_EVERY_S = 0.1


@click.command("events")
@json_option
@click.option(
    "-f", "--follow", is_flag=True, help="Print new events as they are recorded, until interrupted."
)
@click.option("--limit", type=click.IntRange(1), help="Show only this number of the newest events.")
@click.option("--kind", metavar="K", help="Show only events of this kind, or of a pattern such as `file.*`.")
@click.option("--all", "every", is_flag=True, help="Show also events of files that aipass writes itself.")
def command(as_json: bool, follow: bool, limit: int | None, kind: str | None, every: bool) -> None:
    """List events, oldest first. With --json print all of them, one object per line."""
    ledger = open_ledger(find_root())
    # A script, or a user who names a kind, wants the whole log; only the plain list leaves out what is usually noise.
    every = every or as_json or kind is not None
    last = _print(_found(ledger, kind, limit, every=every), as_json=as_json)
    if not last and kind is not None and not any(fnmatchcase(known, kind) for known in KINDS):
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = (
            f"did you mean `{near[0]}`?"
            if near
            else f"the kinds are: {', '.join(sorted(KINDS))}, and those of plugins"
        )
        click.echo(f"there is no kind of event `{kind}`; {hint}", err=True)
    # By id instead of by time: ids only grow, and events of one moment are neither lost nor repeated.
    while follow:
        time.sleep(FOLLOW_EVERY_S)
        last = (
            _print(
                _found(ledger, kind, None, every=every, after=last),
                as_json=as_json,
                headed=False,
            )
            or last
        )


def _found(
    ledger: Ledger, kind: str | None, limit: int | None, *, every: bool, after: int = 0
) -> Iterable[Event]:
    from aipass.ledger.sqlite import event_of

    if limit is None:
        # Row by row: a log of millions of events must not be loaded into memory.
        found = map(event_of, ledger.each("events", {"after": after, "kind": kind}))
        return (event for event in found if every or not is_our_own(event))
    # Our own events are filtered in Python, so the query asks for more rows until enough are left. 2**62: SQLite's
    # integers end at 2**63 - 1.
    asked = min(limit, 2**62)
    while True:
        rows = ledger.all("last_events", {"kind": kind, "limit": asked})
        kept = [event for event in map(event_of, rows) if every or not is_our_own(event)]
        if len(kept) >= limit or len(rows) < asked:
            return reversed(kept[:limit])
        asked = min(asked * 4, 2**62)


def is_our_own(event: Event) -> bool:
    """Whether the event is of a file that aipass writes: an answer, or the note beside a rejected file in the inbox."""
    # Agents can write neither place, so no agent can hide an event by the name of its file.
    if not event.kind.startswith("file.") or event.path is None:
        return False
    return all(map(_is_our_own_file, filter(None, (event.path, event.detail.get("from")))))


def _is_our_own_file(path: str) -> bool:
    return path.startswith("outbox/") or (
        path.startswith("inbox/") and path.endswith((REJECTED, REJECTED + ".tmp"))
    )


def _print(events: Iterable[Event], *, as_json: bool, headed: bool = True) -> int:
    """Print events; returns the id of the last one, or 0 if there was none."""
    last = 0
    if as_json:
        for event in events:
            click.echo(json.dumps(event.as_json()))
            last = event.id
        return last
    rows = []
    for event in events:
        last = event.id
        rows.append((event.id, clock(event.time), event.kind, event.by, event.cause, told(event)))
    if rows and headed:
        table(("ID", "TIME", "KIND", "BY", "CAUSE", "WHAT"), rows)
    elif rows:
        for row in rows:
            click.echo(plain("  ".join(str("-" if cell is None else cell) for cell in row)))
    return last


def told(event: Event) -> str:
    """Return an event on one line: its path, else its reference, then the most important fields of its detail."""
    words = [text for text in (printable(event.path), event.ref if not event.path else None) if text]
    for name in ("verb", "agent", "dispatch", "outcome", "state", "reason", "error", "from"):
        value = event.detail.get(name)
        if value not in (None, ""):
            words.append(f"{name}={value}")
    return " ".join(words)
