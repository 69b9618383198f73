"""`aipass up`: run the engine, here or as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import click

from aipass import programs
from aipass.errors import EXIT_FAILED, AipassError, ConfigError, RefusedError
from aipass.git.query import ask
from aipass.terminal.screen import progress
from aipass.workspace import engine_lock
from aipass.workspace.layout import CONFIG_NAME, Layout, find_root

if TYPE_CHECKING:
    from aipass.config.model import Config
    from aipass.core.engine import Engine
    from aipass.ledger import Ledger
    from aipass.plugins import Plugins

#: How often an engine that ends when all is done asks whether it is.
LOOK_EVERY_S = 0.1
# Python, the packages, the ledger's check, the first scan of a large tree on a busy machine.
DETACH_WAIT_S = 120.0
# Of a tree that takes longer to look at, what is saved meanwhile may be taken for what was there.
SETTLE_WAIT_S = 60.0
# The engine's thread must not wait the default 5 ms for a source's thread to let go of the interpreter.
SWITCH_INTERVAL_S = 0.0005


@click.command("up")
@click.option("--detach", is_flag=True, help="Run as a process of its own; returns when it is ready.")
@click.option("--until-idle", is_flag=True, help="Stop when nothing is queued, running or due.")
@click.option(
    "--timeout", metavar="T", help="Stop after this long (30s, 10m); with --until-idle, exit status 1 then."
)
@click.option(
    "--yes", is_flag=True, help="Do not ask before a tracked aipass.toml starts programs for the first time."
)
@click.option(
    "--without",
    metavar="FEATURE",
    multiple=True,
    help="Leave a feature out (memory, plans, …); may be given several times.",
)
@click.option("--ready-fd", type=int, hidden=True)
def command(
    detach: bool,
    until_idle: bool,
    timeout: str | None,
    yes: bool,
    without: tuple[str, ...],
    ready_fd: int | None,
) -> int:
    """Run the engine of this repository.

    Runs that an earlier engine left are found again. Ctrl-C stops the engine; runs go on.
    """
    from aipass.text.units import parse_duration

    try:
        limit = None if timeout is None else parse_duration(timeout)
    except ValueError as exc:
        raise ConfigError(f"--timeout: {exc}") from exc
    layout = find_root()
    if detach:
        return _detach(layout, yes=yes, without=without)
    try:
        return _serve(
            layout,
            until_idle=until_idle,
            limit=limit,
            yes=yes or ready_fd is not None,
            ready_fd=ready_fd,
            without=without,
        )
    except AipassError as exc:
        if ready_fd is not None:
            os.write(ready_fd, json.dumps({"error": str(exc), "exit": exc.exit_code}).encode())
        raise


def _say_left_out(plugins: Plugins, said: set[str]) -> set[str]:
    """Name the plugins that do not fit, each once; returns all that were named."""
    for name, reason in plugins.failed.items():
        if name not in said:
            click.echo(f"{click.style('plugin left out:', fg='yellow')} {name}: {reason}", err=True)
    return said | set(plugins.failed)


def _serve(
    layout: Layout,
    *,
    until_idle: bool,
    limit: float | None,
    yes: bool,
    ready_fd: int | None,
    without: tuple[str, ...],
) -> int:
    from aipass.app import build
    from aipass.clock import SystemClock
    from aipass.config import reading
    from aipass.config.quick import IN_FORCE
    from aipass.core import state_folder
    from aipass.features.dispatch.supervisors import Supervisors, SupervisorSpawner
    from aipass.features.inbox.feature import make_inboxes
    from aipass.features.ownership import advice, confine, guarded, layers
    from aipass.git.exclude import exclude
    from aipass.plugins import Plugins
    from aipass.workspace.log_file import set_up

    settings = reading.load(layout.config)
    state_folder.make(layout)
    held = engine_lock.take(layout, time.time())
    launcher = SupervisorSpawner(layout)
    engine: Engine | None = None
    ledger: Ledger | None = None
    try:
        set_up(layout.log, show=ready_fd is None and sys.stderr.isatty())
        plugins = Plugins()
        plugins.load_installed(layout.root)
        plugins.drivers()
        plugins.forges()
        left_out = _say_left_out(plugins, set())
        ledger = _open_ledger(layout)
        if ledger.meta("begun") is None:
            ledger.begin_after(*state_folder.last_ids(layout))
        told = (
            *guarded.warnings(layout, settings, fenced=layers.active(settings).fence),
            *advice.of(layout, settings),
        )
        for text in told:
            click.echo(f"{click.style('warning:', fg='yellow')} {text}", err=True)
        _approve(layout, settings, ledger, yes=yes)
        here = sorted(
            os.environ.keys()
            & {one for driver in plugins.drivers().values() for one in getattr(driver, "accounts", ())}
        )
        with ledger.transaction():
            for key, value in (
                ("config.shared", advice.owned_twice(settings)),
                ("engine.accounts", here),
                (IN_FORCE, settings.drivers()),
            ):
                ledger.run("set_meta", {"key": key, "value": json.dumps(value)})
        make_inboxes(layout, settings)
        exclude(layout)
        runner = Supervisors(layout, launcher=launcher)
        engine = build(layout, ledger, plugins, settings, SystemClock(), runner, os.environ, without=without)
        _say_left_out(plugins, left_out)  # as its handlers and sources were made
        confine.enclose(layout, settings)
        return _run(engine, layout, until_idle=until_idle, limit=limit, ready_fd=ready_fd)
    finally:
        if ledger is not None:
            ledger.close()
        launcher.close()
        held.release()


def _open_ledger(layout: Layout) -> Ledger:
    from aipass.errors import LedgerError
    from aipass.ledger import Ledger
    from aipass.supervisor import lockers

    try:
        return Ledger.open(layout.ledger)
    except LedgerError as exc:
        files = [layout.ledger.with_name(layout.ledger.name + suffix) for suffix in ("", "-wal", "-shm")]
        if not exc.locked or not (ended := lockers.end_of_runs(*files)):
            raise
    for one in ended:
        text = f"process {one.pid} of run {one.run or '?'} had a lock on the ledger; it was ended"
        click.echo(f"{click.style('warning:', fg='yellow')} {text}", err=True)
    return Ledger.open(layout.ledger)


def _run(
    engine: Engine, layout: Layout, *, until_idle: bool, limit: float | None, ready_fd: int | None
) -> int:
    asked_to_stop = threading.Event()

    def on_signal(*_: object) -> None:
        asked_to_stop.set()
        # A thread, because the queue's lock may be held by what this signal interrupted.
        threading.Thread(target=engine.tell_now, args=([],), daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    deadline = None if limit is None else time.monotonic() + limit
    if deadline is not None:
        timer = threading.Timer(limit or 0.0, on_signal)
        timer.daemon = True
        timer.start()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    engine.start()
    if ready_fd is not None:
        # Not before the tree was looked at: what is saved after that is news.
        threading.Thread(target=_say_ready, args=(engine, ready_fd), name="ready", daemon=True).start()
    elif not until_idle:
        click.echo(
            f"aipass runs in {layout.root} (process {os.getpid()}); Ctrl-C stops it, runs go on", err=True
        )
    went_idle = False

    def should_end(engine: Engine) -> bool:
        nonlocal went_idle
        if until_idle and engine.is_idle():
            went_idle = True
        return went_idle or asked_to_stop.is_set() or engine.gone is not None

    engine.run(should_end, LOOK_EVERY_S if until_idle else None)
    if engine.gone is not None:
        # Nobody could say what becomes of runs whose record is gone: they end with it.
        engine.end_runs()
    engine.stop()
    if engine.gone is not None:
        raise AipassError(f"{engine.gone}; it is stopped, and its runs with it; `aipass up` starts a new one")
    if asked_to_stop.is_set() and ready_fd is None and not until_idle:
        click.echo("the engine is stopped; runs go on, and the next `aipass up` finds them", err=True)
    if until_idle and not went_idle:
        click.echo(
            f"stopped before everything was done{' (--timeout)' if deadline and time.monotonic() >= deadline else ''}; `aipass status` shows what is left",
            err=True,
        )
        return EXIT_FAILED
    return 0


def _say_ready(engine: Engine, ready_fd: int) -> None:
    until = time.monotonic() + SETTLE_WAIT_S
    while not engine.is_watching() and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S / 10)
    os.write(ready_fd, json.dumps({"pid": os.getpid()}).encode())
    os.close(ready_fd)


def _approve(layout: Layout, settings: Config, ledger: Ledger, *, yes: bool) -> None:
    """Before the first start from an aipass.toml that came with the repository: say what it may start, and ask."""
    if ledger.meta("approved") is not None:
        return
    if not yes and _is_tracked(layout):
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise RefusedError(
                f"{CONFIG_NAME} came with this repository, and nobody can be asked here whether to start what it names: "
                "look at it, then start with `--yes` (once)"
            )
        click.echo("aipass.toml came with this repository. It lets agents start these programs:", err=True)
        for name, agent in settings.agents.items():
            click.echo(
                f"  {name}: {' '.join(agent.command) if agent.command else agent.driver} {' '.join(agent.args)}".rstrip(),
                err=True,
            )
        if not click.confirm("Start the engine?", err=True):
            raise RefusedError("not started; look at aipass.toml first")
    with ledger.transaction():
        ledger.run("set_meta", {"key": "approved", "value": str(time.time())})


def _is_tracked(layout: Layout) -> bool:
    return bool(ask(layout.root, "ls-files", "-z", "--", CONFIG_NAME))


def _detach(layout: Layout, *, yes: bool, without: tuple[str, ...]) -> int:
    from aipass.core import state_folder

    running = engine_lock.living(layout)
    if running is not None:
        click.echo(f"an engine runs here already (process {running.pid})")
        return 0
    if not yes:
        _ask_before_detaching(layout)
    state_folder.make(layout)
    reader, writer = os.pipe()
    with open(os.devnull, "rb") as nothing, open(layout.state / "up.log", "ab") as log:
        child = subprocess.Popen(
            programs.aipass("up", "--ready-fd", str(writer), *(f"--without={name}" for name in without)),
            pass_fds=(writer,),
            stdin=nothing,
            stdout=log,
            stderr=log,
            cwd=layout.root,
            start_new_session=True,
        )
    os.close(writer)
    progress("the engine starts …")
    timer = threading.Timer(DETACH_WAIT_S, child.kill)
    timer.start()
    said = b""
    while chunk := os.read(reader, 65536):
        said += chunk
    timer.cancel()
    os.close(reader)
    progress("")
    found: dict[str, Any] = (
        json.loads(said)
        if said
        else {"error": f"the engine did not start; {layout.state / 'up.log'} says why", "exit": EXIT_FAILED}
    )
    if "error" in found:
        if engine_lock.holder(layout) is not None:
            click.echo("an engine runs here already")
            return 0
        click.echo(f"{click.style('error:', fg='red')} {found['error']}", err=True)
        return int(found["exit"])
    child.returncode = 0  # it goes on without us
    click.echo(f"aipass runs in {layout.root} (process {found['pid']})")
    return 0


def _ask_before_detaching(layout: Layout) -> None:
    from aipass.config import reading
    from aipass.core import state_folder
    from aipass.ledger import Ledger

    settings = reading.load(layout.config)
    state_folder.make(layout)
    ledger = Ledger.open(layout.ledger)
    try:
        _approve(layout, settings, ledger, yes=False)
    finally:
        ledger.close()
