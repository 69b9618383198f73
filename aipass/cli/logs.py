"""The verb `aipass logs`: prints the output of a dispatch's runs."""

from __future__ import annotations

import shutil
import sys
import time
from functools import cache
from typing import TYPE_CHECKING

import click

from aipass.event import inert, plain
from aipass.supervisor.wire import STDERR, STDOUT
from aipass.terminal.find import find_dispatch, open_ledger
from aipass.workspace.layout import find_root, root_or_here

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aipass.features.dispatch.driver import Driver
    from aipass.ledger import Ledger

#: Interval of --follow; the files have no notification that a reader could wait for on every system.
FOLLOW_EVERY_S = 0.1
#: Longest line in bytes that is read at once: an agent may print gigabytes without a line end. Longer ones come in pieces.
MAX_LINE = 1 << 20


@click.command("logs")
@click.argument("dispatch_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Print new output until the dispatch is finished.")
@click.option("--run", "run_id", type=int, help="Print the output of this run (default: the last run).")
@click.option("--stdout", "only", flag_value=STDOUT, help="Print only stdout.")
@click.option("--raw", is_flag=True, help="Print the exact bytes, including terminal control sequences.")
@click.option("--stderr", "only", flag_value=STDERR, help="Print only stderr.")
def command(dispatch_id: str, follow: bool, run_id: int | None, only: str | None, raw: bool) -> None:
    """Print the output of the last run of the dispatch ID: stdout, then stderr.

    The JSON output of an agent CLI is shown as text: `>` marks the use of a tool, `!` an error, `=` the end.
    """
    layout = find_root()
    ledger = open_ledger(layout)
    row = find_dispatch(ledger, dispatch_id)
    positions: dict[Path, int] = {}
    while True:
        # Before the copy: output that comes after this check is printed by the next pass, so none is lost.
        finished = not follow or _is_final(ledger, row["id"])
        runs = [run["id"] for run in ledger.all("runs_of", {"dispatch": row["id"]})]
        run = run_id if run_id is not None else (runs[-1] if runs else None)
        # In the loop, because with --follow the run may begin only later.
        if run is not None and run not in runs:
            raise click.UsageError(
                f"dispatch {row['id']} has no run {run}; its runs are: {', '.join(map(str, runs)) or 'none yet'}"
            )
        if run is None and finished:
            click.echo(f"dispatch {row['id']} has not run yet", err=True)
        elif run is not None:
            if finished and not any((layout.run(run) / name).exists() for name in (STDOUT, STDERR)):
                click.echo(f"run {run} has no output; `aipass show {row['id']}` shows its outcome", err=True)
            # Only stdout has the machine-readable records of a CLI; stderr is always printed as it is.
            for name in (only,) if only else (STDOUT, STDERR):
                readable = None if raw or name != STDOUT else _readable(ledger, run)
                _copy(layout.run(run) / name, positions, readable, whole=finished, raw=raw)
        if finished:
            return
        time.sleep(FOLLOW_EVERY_S)


def _is_final(ledger: Ledger, dispatch: int) -> bool:
    row = ledger.one("dispatch", {"id": dispatch})
    return row is None or row["state"] not in {"queued", "running"}


# Cached: --follow asks every 0.1 s, and loading the plugins takes 0.5 s.
@cache
def _drivers() -> dict[str, Driver]:
    from aipass.plugins import Plugins

    plugins = Plugins()
    plugins.load_installed(root_or_here())
    return plugins.drivers()


def _readable(ledger: Ledger, run: int) -> Callable[[str], str | None] | None:
    """The function of the run's driver that makes a line readable; None if lines are printed as they are."""
    row = ledger.one("run", {"id": run})
    driver = None if row is None or row["driver"] in {None, "command"} else _drivers().get(row["driver"])
    return getattr(driver, "readable", None)


def _copy(
    path: Path,
    positions: dict[Path, int],
    readable: Callable[[str], str | None] | None,
    *,
    whole: bool,
    raw: bool,
) -> None:
    """Print the new output since the last call. Without `whole`, an incomplete last line waits for its end."""
    try:
        with path.open("rb") as file:
            file.seek(positions.get(path, 0))
            if raw:
                shutil.copyfileobj(file, sys.stdout.buffer)
                positions[path] = file.tell()
                return
            while (line := file.readline(MAX_LINE)) and (
                whole or line.endswith(b"\n") or len(line) == MAX_LINE
            ):
                positions[path] = file.tell()
                text = line.decode("utf-8", "replace")
                click.echo(inert(text) if readable is None else _shown(text.rstrip("\n"), readable), nl=False)
    except FileNotFoundError:
        return
    sys.stdout.buffer.flush()


def _shown(line: str, readable: Callable[[str], str | None]) -> str:
    try:
        said = readable(line)
    except Exception:  # noqa: BLE001 - a plugin may raise anything; the unchanged line has the same information
        said = line
    if not said:
        return ""
    return "\n".join(plain(one) for one in said.splitlines()) + "\n"
