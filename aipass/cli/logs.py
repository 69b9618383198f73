"""`aipass logs`: what a dispatch's agent said."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from aipass.cli.find import find_dispatch, open_ledger
from aipass.layout import find_root
from aipass.supervisor.wire import STDERR, STDOUT

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.ledger import Ledger

FOLLOW_EVERY_S = 0.1


@click.command("logs")
@click.argument("dispatch_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on until the dispatch is finished.")
@click.option("--run", "run_id", type=int, help="This run; default: the last one.")
@click.option("--stdout", "only", flag_value=STDOUT, help="Only what it wrote to stdout.")
@click.option("--stderr", "only", flag_value=STDERR, help="Only what it wrote to stderr.")
def command(dispatch_id: str, follow: bool, run_id: int | None, only: str | None) -> None:
    """Print the output of the last run of the dispatch ID: stdout, then stderr."""
    layout = find_root()
    ledger = open_ledger(layout)
    row = find_dispatch(ledger, dispatch_id)
    positions: dict[Path, int] = {}
    while True:
        finished = not follow or _is_final(ledger, row["id"])
        runs = [run["id"] for run in ledger.all("runs_of", {"dispatch": row["id"]})]
        run = run_id if run_id is not None else (runs[-1] if runs else None)
        if run is not None and run not in runs:
            raise click.UsageError(
                f"dispatch {row['id']} has no run {run}; its runs are: {', '.join(map(str, runs)) or 'none yet'}"
            )
        if run is None and finished:
            click.echo(f"dispatch {row['id']} has not run yet", err=True)
        elif run is not None:
            for name in (only,) if only else (STDOUT, STDERR):
                _copy(layout.run(run) / name, positions)
        if finished:
            return
        time.sleep(FOLLOW_EVERY_S)


def _is_final(ledger: Ledger, dispatch: int) -> bool:
    row = ledger.one("dispatch", {"id": dispatch})
    return row is None or row["state"] not in {"queued", "running"}


def _copy(path: Path, positions: dict[Path, int]) -> None:
    """Print what has come since the last look."""
    try:
        with path.open("rb") as file:
            file.seek(positions.get(path, 0))
            while chunk := file.read(1 << 16):
                sys.stdout.buffer.write(chunk)
            positions[path] = file.tell()
    except FileNotFoundError:
        return
    sys.stdout.buffer.flush()
