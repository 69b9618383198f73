"""The verb `aipass down`: stops the engine, and with --kill also the runs and their supervisors."""

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

#: Time for the engine to end after SIGTERM, and again after SIGKILL.
STOP_WAIT_S = 30.0
#: Time for the runs to end: the timeouts of INT, TERM and KILL together, and some more for a busy machine.
KILL_WAIT_S = 120.0


@click.command("down")
@click.option("--kill", is_flag=True, help="End all runs too, with the signals INT, TERM, KILL.")
def command(kill: bool) -> None:
    """Stop the engine of this repository. Runs continue unless --kill is given; the next engine finds them."""
    layout = find_root()
    # Before the stop: afterwards a run may have ended that the user still expects to be named.
    live = _runs_live(layout)
    lives = "" if kill or not live else "; runs continue, and the next `aipass up` finds them"
    stopped = _stop_engine(layout, kill=kill)
    killed = _kill_runs(layout) if kill else 0
    if stopped:
        click.echo(f"the engine is stopped{lives}")
    else:
        click.echo("the engine is not running")
    if kill:
        click.echo(
            "all runs have ended; the next `aipass up` records their outcomes"
            if killed and live
            else "no run was active"
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
        return True  # a damaged ledger must not prevent the stop of the engine


def _stop_engine(layout: Layout, *, kill: bool) -> bool:
    # A held lock proves a live process. A pid in a file alone could be that of an unrelated process after a crash.
    running = engine_lock.holder(layout)
    if running is None:
        return False
    if running.pid <= 0:  # a race: it holds the lock and has not yet written its pid
        running = poll(
            lambda: found if (found := engine_lock.holder(layout)) is None or found.pid > 0 else None, 5.0
        )
        if running is None:
            raise AipassError(
                "a process holds .aipass/engine.lock without its pid in it; end that process, then try again"
            )
    if running.elsewhere:
        # Its pid means nothing in this pid namespace: the signal would hit an unrelated process.
        raise AipassError("the engine runs in another container; run `aipass down` there")
    # With the pid the birth time identifies a process: the kernel may give the pid to a new process soon.
    born = hold.born(running.pid)
    try:
        os.kill(running.pid, signal.SIGTERM)
    except ProcessLookupError:
        return True  # a race: it ended after the check of the lock
    except PermissionError as exc:
        raise AipassError(
            f"the engine (process {running.pid}) belongs to another user; stop it as that user"
        ) from exc

    # Both: the engine releases the lock before its process has ended, and until then it may still write into .aipass.
    def is_gone() -> bool:
        return engine_lock.holder(layout) is None and hold.born(running.pid) != born

    if poll(lambda: True if is_gone() else None, STOP_WAIT_S) is None and kill:
        # The ledger has every recorded event, and the next engine observes the rest: a kill at any moment loses nothing.
        os.kill(running.pid, signal.SIGKILL)
        click.echo(
            f"the engine (process {running.pid}) did not stop within {STOP_WAIT_S:.0f} seconds and was killed",
            err=True,
        )
    if poll(lambda: True if is_gone() else None, STOP_WAIT_S if kill else 0.0) is None:
        raise AipassError(
            f"the engine (process {running.pid}) did not stop within {STOP_WAIT_S:.0f} seconds; .aipass/log.jsonl may say why"
        )
    return True


def _kill_runs(layout: Layout) -> int:
    from aipass.features.dispatch.supervisors import connect, wait_ended
    from aipass.supervisor import wire

    # One supervisor for each version of aipass: after an upgrade the old one keeps its runs until they end.
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
                    pass  # the supervisor closes the connection when all its runs have ended
        except OSError:
            continue  # it has just ended, or is slow: `wait_ended` decides
    if not wait_ended(layout.state, told, KILL_WAIT_S):
        raise AipassError(
            f"some runs did not end within {KILL_WAIT_S:.0f} seconds; .aipass/supervisor.log may say why"
        )
    return len(told)
