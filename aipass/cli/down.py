"""`aipass down`: stop the engine. Runs go on under their supervisor unless they are to be killed as well."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import click

from aipass.errors import AipassError
from aipass.supervisor import hold
from aipass.terminal.output import poll
from aipass.workspace import engine_lock
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.workspace.layout import Layout

STOP_WAIT_S = 30.0
# INT, TERM and KILL have their time each; a little more for a busy machine.
KILL_WAIT_S = 120.0


@click.command("down")
@click.option("--kill", is_flag=True, help="End all runs as well: INT, TERM, KILL.")
def command(kill: bool) -> None:
    """Stop the engine of this repository. Runs go on, unless --kill; the next engine finds them again."""
    layout = find_root()
    live = _runs_live(layout)
    lives = "" if kill or not live else "; runs go on, and the next `aipass up` finds them"
    stopped = _stop_engine(layout, kill=kill)
    killed = _kill_runs(layout) if kill else 0
    if stopped:
        click.echo(f"the engine is stopped{lives}")
    else:
        click.echo("no engine runs here")
    if kill:
        click.echo(
            "all runs are ended; the next `aipass up` records what became of them"
            if killed and live
            else "no run was going on"
        )


def _runs_live(layout: Layout) -> bool:
    from aipass.ledger import Ledger

    if not layout.ledger.exists():
        return False
    try:
        ledger = Ledger.read(layout.ledger)
        try:
            return bool(ledger.all("live_runs"))
        finally:
            ledger.close()
    except AipassError:
        return True  # a ledger that cannot be read keeps no engine from being stopped


def _stop_engine(layout: Layout, *, kill: bool) -> bool:
    running = engine_lock.holder(layout)
    if running is None:
        return False
    if running.pid <= 0:  # it has taken the lock and not yet said who it is
        running = poll(
            lambda: found if (found := engine_lock.holder(layout)) is None or found.pid > 0 else None, 5.0
        )
        if running is None:
            raise AipassError(
                "something holds the engine's lock and does not say who it is; see .aipass/engine.lock"
            )
    if running.elsewhere:
        raise AipassError("the engine runs in another container; `aipass down` must be said there")
    born = hold.born(running.pid)
    try:
        os.kill(running.pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError as exc:
        raise AipassError(
            f"the engine (process {running.pid}) is another user's; it cannot be stopped from here"
        ) from exc

    def is_gone() -> bool:
        return engine_lock.holder(layout) is None and hold.born(running.pid) != born

    if poll(lambda: True if is_gone() else None, STOP_WAIT_S) is None and kill:
        # What it was about to record is in the ledger or still to be seen: a kill at any moment loses nothing.
        os.kill(running.pid, signal.SIGKILL)
        click.echo(
            f"the engine (process {running.pid}) did not end within {STOP_WAIT_S:.0f} seconds and was killed",
            err=True,
        )
    if poll(lambda: True if is_gone() else None, STOP_WAIT_S if kill else 0.0) is None:
        raise AipassError(
            f"the engine (process {running.pid}) has not ended within {STOP_WAIT_S:.0f} seconds; .aipass/log.jsonl may say why"
        )
    return True


def _kill_runs(layout: Layout) -> int:
    from aipass.features.dispatch.supervisors import connect, wait_ended
    from aipass.supervisor import wire

    versions = [
        path.name.removeprefix("supervisor-").removesuffix(".sock")
        for path in layout.state.glob("supervisor-*.sock")
    ]
    told = []
    for version in versions:
        try:
            with connect(layout.state, version) as link:
                told.append(version)
                link.sendall(wire.pack({"do": "end"}))
                link.settimeout(KILL_WAIT_S)
                while link.recv(65536):
                    pass  # it hangs up when all are gone
        except OSError:
            continue  # it ended just now, or takes its time: looked at below
    if not wait_ended(layout.state, told, KILL_WAIT_S):
        raise AipassError(
            f"some runs have not ended within {KILL_WAIT_S:.0f} seconds; .aipass/supervisor.log may say why"
        )
    return len(told)
