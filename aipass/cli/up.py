"""The verb `aipass up`: runs the engine in the foreground, or detached in the background."""

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

#: Interval of the idle check with --until-idle.
LOOK_EVERY_S = 0.1
#: Time for a start: Python, the packages, the check of the ledger, the first scan of a large tree on a busy machine.
DETACH_WAIT_S = 120.0
#: Longest wait for the first scan. In a tree that takes longer, a file saved during the scan may count as an old one.
SETTLE_WAIT_S = 60.0
#: The engine's thread must not wait the default 5 ms until a source's thread releases the interpreter (GIL).
SWITCH_INTERVAL_S = 0.0005


@click.command("up")
@click.option("--detach", is_flag=True, help="Run in the background; return when the engine is ready.")
@click.option("--until-idle", is_flag=True, help="Stop when nothing is queued, running or due.")
@click.option(
    "--timeout",
    metavar="T",
    help="Stop after this time (30s, 10m); with --until-idle, exit status 1 if work is left.",
)
@click.option(
    "--yes",
    is_flag=True,
    help="Skip the question before programs from a tracked aipass.toml are started for the first time.",
)
@click.option(
    "--without",
    metavar="FEATURE",
    multiple=True,
    help="Disable a feature (memory, plans, …); repeatable.",
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

    Continues the live runs of an earlier engine. Ctrl-C stops the engine; runs continue.
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
            yes=yes or ready_fd is not None,  # `_detach` has asked already, in the terminal of the person
            ready_fd=ready_fd,
            without=without,
        )
    except AipassError as exc:
        if ready_fd is not None:
            # The parent waits at the other end of the pipe and prints the error; ours goes into up.log.
            os.write(ready_fd, json.dumps({"error": str(exc), "exit": exc.exit_code}).encode())
        raise


def _say_left_out(plugins: Plugins, said: set[str]) -> set[str]:
    """Print each unfit plugin that is not in `said`; returns the names of all that were printed so far."""
    for name, reason in plugins.failed.items():
        if name not in said:
            click.echo(f"{click.style('plugin not loaded:', fg='yellow')} {name}: {reason}", err=True)
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
    # Before everything that writes: from here on this is the only engine of the root.
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
            # A new ledger beside old folders: an id that is used again would overwrite an old answer.
            ledger.begin_after(*state_folder.last_ids(layout))
        told = (
            *guarded.warnings(layout, settings, fenced=layers.active(settings).fence),
            *advice.of(layout, settings),
        )
        for text in told:
            click.echo(f"{click.style('warning:', fg='yellow')} {text}", err=True)
        _approve(layout, settings, ledger, yes=yes)
        # The names only, never the values: `aipass doctor` compares them with the shell of the person.
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
        _say_left_out(plugins, left_out)  # `build` has called more hooks, so more plugins may have failed
        # Landlock binds the calling thread and its later children only: before `engine.start` makes the first thread.
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
        # A process that a run left behind could otherwise keep the engine from starting, for as long as it likes.
        files = [layout.ledger.with_name(layout.ledger.name + suffix) for suffix in ("", "-wal", "-shm")]
        if not exc.locked or not (ended := lockers.end_of_runs(*files)):
            raise
    for one in ended:
        text = f"ended process {one.pid} of run {one.run or '?'}: it held a lock on the ledger"
        click.echo(f"{click.style('warning:', fg='yellow')} {text}", err=True)
    return Ledger.open(layout.ledger)


def _run(
    engine: Engine, layout: Layout, *, until_idle: bool, limit: float | None, ready_fd: int | None
) -> int:
    asked_to_stop = threading.Event()

    def on_signal(*_: object) -> None:
        asked_to_stop.set()
        # In a thread: the code that this signal interrupted may hold the queue's lock, and would wait for itself.
        threading.Thread(target=engine.tell_now, args=([],), daemon=True).start()

    # SIGHUP too: when the terminal closes, the engine must end as after Ctrl-C instead of being killed.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    deadline = None if limit is None else time.monotonic() + limit
    if deadline is not None:
        timer = threading.Timer(limit or 0.0, on_signal)
        # Else an engine that becomes idle early would stay alive until the timeout.
        timer.daemon = True
        timer.start()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    engine.start()
    if ready_fd is not None:
        # Ready only after the first scan: every file that the user saves after that counts as a change.
        threading.Thread(target=_say_ready, args=(engine, ready_fd), name="ready", daemon=True).start()
    elif not until_idle:
        click.echo(
            f"aipass runs in {layout.root} (process {os.getpid()}); Ctrl-C stops it, runs continue", err=True
        )
    went_idle = False

    def should_end(engine: Engine) -> bool:
        nonlocal went_idle
        if until_idle and engine.is_idle():
            went_idle = True
        return went_idle or asked_to_stop.is_set() or engine.gone is not None

    engine.run(should_end, LOOK_EVERY_S if until_idle else None)
    if engine.gone is not None:
        # The ledger of these runs was removed or replaced, so no engine could record their outcomes: end them as well.
        engine.end_runs()
    engine.stop()
    if engine.gone is not None:
        raise AipassError(
            f"{engine.gone}; the engine and its runs are stopped; `aipass up` starts a new engine"
        )
    if asked_to_stop.is_set() and ready_fd is None and not until_idle:
        click.echo("the engine is stopped; runs continue, and the next `aipass up` finds them", err=True)
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
    """Ask the person before the first start with a tracked aipass.toml. Raises RefusedError without their consent."""
    # A cloned repository brings its aipass.toml with it: without the question, `aipass up` would run programs of a stranger.
    if ledger.meta("approved") is not None:
        return
    if not yes and _is_tracked(layout):
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise RefusedError(
                f"{CONFIG_NAME} came with this repository, and without a terminal aipass cannot ask whether to start its programs: "
                "review it, then start with `--yes` (once)"
            )
        click.echo("aipass.toml came with this repository. It lets agents start these programs:", err=True)
        for name, agent in settings.agents.items():
            click.echo(
                f"  {name}: {' '.join(agent.command) if agent.command else agent.driver} {' '.join(agent.args)}".rstrip(),
                err=True,
            )
        if not click.confirm("Start the engine?", err=True):
            raise RefusedError("not started; review aipass.toml first")
    with ledger.transaction():
        ledger.run("set_meta", {"key": "approved", "value": str(time.time())})


def _is_tracked(layout: Layout) -> bool:
    return bool(ask(layout.root, "ls-files", "-z", "--", CONFIG_NAME))


def _detach(layout: Layout, *, yes: bool, without: tuple[str, ...]) -> int:
    from aipass.core import state_folder

    running = engine_lock.living(layout)
    if running is not None:
        click.echo(f"the engine is already running (process {running.pid})")
        return 0
    if not yes:
        _ask_before_detaching(layout)
    state_folder.make(layout)
    # The pipe reports the result of the start. Its end without a byte means that the child has died.
    reader, writer = os.pipe()
    with open(os.devnull, "rb") as nothing, open(layout.state / "up.log", "ab") as log:
        child = subprocess.Popen(
            programs.aipass("up", "--ready-fd", str(writer), *(f"--without={name}" for name in without)),
            pass_fds=(writer,),
            stdin=nothing,
            stdout=log,
            stderr=log,
            cwd=layout.root,
            start_new_session=True,  # else Ctrl-C and the end of the terminal would stop it with us
        )
    os.close(writer)  # else `os.read` below would never see the end of the pipe
    progress("the engine starts …")
    # A child that hangs is killed; the kernel then closes its end of the pipe, which ends the loop below.
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
        if engine_lock.holder(layout) is not None:  # a race: another `aipass up` was faster
            click.echo("the engine is already running")
            return 0
        click.echo(f"{click.style('error:', fg='red')} {found['error']}", err=True)
        return int(found["exit"])
    child.returncode = 0  # else Popen warns, when it is collected, that the child is still running
    click.echo(f"aipass runs in {layout.root} (process {found['pid']})")
    return 0


def _ask_before_detaching(layout: Layout) -> None:
    from aipass.config import reading
    from aipass.core import state_folder
    from aipass.ledger import Ledger

    # In this process, which has the terminal: the detached engine has none and could not ask.
    settings = reading.load(layout.config)
    state_folder.make(layout)
    ledger = Ledger.open(layout.ledger)
    try:
        _approve(layout, settings, ledger, yes=False)
    finally:
        ledger.close()
