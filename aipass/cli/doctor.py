"""The verb `aipass doctor`: checks this machine and this repository, by trying each function instead of guessing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aipass import DISTRIBUTION, __version__, environment, programs
from aipass.errors import EXIT_FAILED, AipassError, ConfigError
from aipass.event import plain
from aipass.features.dispatch.driver import how_to_sign_in, signed_in_by
from aipass.supervisor import wire
from aipass.supervisor.fence import selftest
from aipass.terminal.output import json_option, lines_of, print_json
from aipass.workspace.layout import Layout, find_root, root_or_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aipass.config.model import Config
    from aipass.features.dispatch.driver import Driver
    from aipass.features.dispatch.supervisors import Supervisors
    from aipass.plugins import Plugins

INDENT = " " * 7
COLOURS = {"ok": "green", "note": "yellow", "wrong": "red"}
#: inotify needs one watch for each folder; a large repository has tens of thousands.
ENOUGH_WATCHES = 65_536
#: Less free space is a finding: on a full disk the engine cannot record events and starts nothing.
ENOUGH_DISK_BYTES = 500_000_000
#: Longest wait for a program that the supervisor runs as a test.
PROBE_WAIT_S = 60.0
#: Tracked files that are checked for code; later ones are skipped, to bound the time.
MOST_FILES = 100_000
#: Files and agents that one finding names; more would hide the other findings.
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `state` is ok, note or wrong; `remedy` is what the user should do, "" for nothing."""

    what: str
    state: str
    found: str
    remedy: str = ""


@click.command("doctor")
@json_option
def command(as_json: bool) -> int:
    """Check this machine and this repository for problems. Exit status 1 if something is wrong."""
    findings = []
    for finding in examine():  # printed one by one, because some checks take a second
        findings.append(finding)
        if not as_json:
            _say(finding)
    if as_json:
        print_json(
            [{"what": f.what, "state": f.state, "found": f.found, "remedy": f.remedy} for f in findings]
        )
    return EXIT_FAILED if any(finding.state == "wrong" for finding in findings) else 0


def _say(finding: Finding) -> None:
    first, *more = lines_of(f"{finding.what}: {finding.found}", INDENT)
    click.echo(
        click.style(finding.state.ljust(len(INDENT)), fg=COLOURS[finding.state]) + first[len(INDENT) :]
    )
    for line in [*more, *lines_of(finding.remedy, INDENT)]:
        click.echo(line)


def examine() -> Iterator[Finding]:
    """Run all checks in order and yield each finding as it is made. Outside a root those of a repository are left out."""
    yield Finding("aipass", "ok", f"{__version__}, Python {sys.version.split()[0]} on {sys.platform}")
    yield from _namesake()
    yield from _started()
    yield from _inotify()
    # From here on each check does the real thing, because kernels in containers often report more than they allow.
    yield _leases()
    yield _confined()
    yield from _supervisor()
    try:
        layout = find_root()
    except ConfigError as exc:
        yield Finding("repository", "note", str(exc))
        return
    yield from _repository(layout)


def _namesake() -> Iterator[Finding]:
    """Whether the distribution `aipass` of another project is installed; its package has the same name as ours."""
    try:
        other, ours = map(importlib.metadata.metadata, ("aipass", DISTRIBUTION))
    except importlib.metadata.PackageNotFoundError:
        return
    if other["Summary"] == ours["Summary"]:
        return  # left by an installation of ours under an earlier name
    yield Finding(
        "distribution",
        "wrong",
        f"`aipass` {other['Version']} is installed beside `{DISTRIBUTION}` {__version__}, and both have a package of the same name; the files of one overwrite those of the other",
        f"`pip uninstall aipass {DISTRIBUTION}`, then install `{DISTRIBUTION}` again",
    )


def _started() -> Iterator[Finding]:
    """Each program that aipass starts by name: its path, and a copy earlier on PATH that agents may write."""
    here = programs.of(root_or_here())
    for name, what_for in programs.STARTED.items():
        found, hidden = here.find(name), here.hidden(name)
        if found is None and hidden is None and name in ("gh", "glab"):
            continue  # most users need neither, so their absence is no finding
        remedy = f"{hidden} is not used, because agents may write there" if hidden else ""
        if found is None:
            remedy = remedy or "everything works except the git verbs"
            yield Finding(name, "note", f"not installed; needed for {what_for}", remedy)
        else:
            yield Finding(name, "note" if hidden else "ok", found, remedy)


def _inotify() -> Iterator[Finding]:
    if sys.platform != "linux":
        yield Finding("watching", "note", "this system has no inotify; the engine polls the tree")
        return
    for name, enough in (
        ("max_user_watches", ENOUGH_WATCHES),
        ("max_user_instances", 64),
        ("max_queued_events", 4096),
    ):
        try:
            value = int(Path(f"/proc/sys/fs/inotify/{name}").read_text())
        except (OSError, ValueError):
            continue  # a sandbox or container may hide these files of /proc
        low = value < enough
        remedy = (
            f"raise it: `sudo sysctl fs.inotify.{name}={enough}`; the engine polls folders that it cannot watch"
            if low
            else ""
        )
        yield Finding(f"fs.inotify.{name}", "note" if low else "ok", str(value), remedy)


def _leases() -> Finding:
    """Whether the kernel reports that a file is still open for writing (file leases)."""
    from aipass.sources import writers

    # Tried with a real file, because leases depend on the filesystem as well as on the kernel.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe")
        with path.open("w") as file:
            file.write("x")
            file.flush()
            open_for_writing = writers.is_complete(str(path), 0)
        closed = writers.is_complete(str(path), 0)
    if closed and not open_for_writing:
        return Finding("complete files", "ok", "the kernel reports files that are still open for writing")
    return Finding(
        "complete files",
        "note",
        "the kernel does not report files that are still open for writing",
        "files found at a start count as complete after one second without a change",
    )


def _confined() -> Finding:
    """Whether the engine's own sandbox holds: a child process takes it on and tries to write outside."""
    from aipass.features.ownership import confine

    if not confine.is_possible():
        remedy = (
            "a compromised engine could write every file that you can write; Linux 5.13 or newer has Landlock"
        )
        return Finding("engine's own wall", "note", "none: this kernel has no Landlock", remedy)
    with tempfile.TemporaryDirectory() as folder:
        outside, inside = Path(folder, "outside"), Path(folder, "inside")
        outside.mkdir()
        inside.mkdir()
        (outside / "there").write_text("x")
        through = confine.breaks_out([str(inside)], outside)
    if through:
        return Finding(
            "engine's own wall",
            "wrong",
            f"these attempts to write outside succeeded: {', '.join(through)}",
            "file a bug with this output",
        )
    return Finding("engine's own wall", "ok", "a process in the engine's sandbox cannot write outside")


def _supervisor() -> Iterator[Finding]:
    """Start a supervisor in a temporary folder and have it run `cat`, then a program that tries to escape, then each agent CLI."""
    from aipass.features.dispatch.supervisors import Supervisors
    from aipass.features.ownership import layers

    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(Path(folder).resolve())
        layout.runs.mkdir(parents=True)
        supervisors = Supervisors(layout, "doctor")
        try:
            supervisors.start(lambda _: None)
            began = time.perf_counter()
            said, record = _run(supervisors, layout, 1, [programs.require("cat", root_or_here())], None)
            took = (time.perf_counter() - began) * 1000
            if said == "probe":
                yield Finding("supervisor", "ok", f"started, and ran a program in {took:.0f} ms")
            else:
                told = json.dumps(record)
                yield Finding(
                    "supervisor",
                    "wrong",
                    f"the test program did not return its input: {told}",
                    "file a bug with this output",
                )
            yield from _layers(supervisors, layout, layers.described(None))
            yield from _programs(supervisors, layout, layers.described(None))
        except AipassError as exc:
            yield Finding("supervisor", "wrong", str(exc), "file a bug with this output")
        finally:
            supervisors.end()
            supervisors.wait_ended(
                PROBE_WAIT_S
            )  # until then it writes into the folder that is about to be removed
            supervisors.stop()


def _layers(supervisors: Supervisors, layout: Layout, described: dict[str, str]) -> Iterator[Finding]:
    """Whether fence and wall, where this machine has them, stop a program that tries to escape."""
    there = [layer for layer, text in described.items() if not text.startswith("none")]
    for layer in ("fence", "wall"):
        if layer not in there:
            yield Finding(layer, "note", described[layer], _WITHOUT[layer])
    if not there:
        return
    (layout.root / "foreign").write_text("another's")
    (layout.root / ".git").mkdir()
    table = {"agents": {"probe": {"home": ".aipass/agents/probe", "owns": ["/own/"]}}}
    supervisors.set_territory({"serial": 1, "table": table})
    own = [str(layout.run_spool(2))]
    ground = {"fence": "fence" in there, "wall": "wall" in there, "own": own, "outside": [], "sockets": []}
    ground |= {"tmp": f"{layout.root}/.aipass/tmp/2", "tree": [str(layout.root / "own")]}
    (layout.root / "own").mkdir()
    # An abstract socket of a process outside: Landlock must refuse the connection, and no file permission could.
    with socket.socket(socket.AF_UNIX) as other:
        abstract = f"aipass-doctor-{os.getpid()}"
        if sys.platform == "linux":
            other.bind("\0" + abstract)
            other.listen()
        pid = json.loads((layout.state / wire.names("doctor")[1]).read_text())["pid"]
        argv = [sys.executable, "-I", selftest.__file__, str(pid), abstract, ",".join(there)]
        said, record = _run(supervisors, layout, 2, argv, ground)
    try:
        found = json.loads(said)
    except ValueError:
        yield Finding(
            "fence",
            "wrong",
            f"the test program gave no result: {json.dumps(record)} {said}",
            "file a bug with this output",
        )
        return
    if found["untried"]:
        text = f"some ways to escape could not be tried: {', '.join(found['untried'])}"
        yield Finding("fence", "note", text, "file a bug with this output")
    for layer in there:
        if found[layer]:
            remedy = "do not rely on it here; file a bug with this output"
            yield Finding(
                layer,
                "wrong",
                f"{described[layer]}, but these attempts to escape succeeded: {', '.join(found[layer])}",
                remedy,
            )
        else:
            cost = f", also by races; {found['write_us']:.0f} us per write" if layer == "fence" else ""
            yield Finding(layer, "ok", f"{described[layer]}: stopped a program that tried to escape{cost}")


def _programs(supervisors: Supervisors, layout: Layout, described: dict[str, str]) -> Iterator[Finding]:
    """Each agent CLI on this machine: whether it starts inside fence and wall, and whether a sign-in was found."""
    from aipass.features.dispatch.driver import tail
    from aipass.plugins import Plugins

    plugins = Plugins()
    plugins.load_installed(root_or_here())
    there = [layer for layer, text in described.items() if not text.startswith("none")]
    run = 2
    for name, driver in sorted(plugins.drivers().items()):
        path = programs.of(root_or_here()).find(getattr(driver, "program", None) or "")
        if path is None:
            continue
        run += 1
        ground = {
            "fence": "fence" in there,
            "wall": "wall" in there,
            "outside": [],
            "sockets": [],
            "tree": [],
        }
        ground |= {"own": [str(layout.run_spool(run))], "tmp": f"{layout.root}/.aipass/tmp/{run}"}
        # An own home folder: some CLIs write there even for `--version`, and the layers refuse the user's.
        own = {"HOME": str(ground["tmp"]), "TMPDIR": str(ground["tmp"])} if there else {}
        asked = [path, "--version"]
        said, record = _run(supervisors, layout, run, asked, ground if there else None, own)
        version = next((line.strip() for line in said.splitlines() if any(map(str.isdigit, line))), "")
        if record is None or record["exit"] != 0:
            why = tail(layout.run(run) / wire.STDERR) or "it failed or did not end, without an error message"
            yield Finding(f"driver {name}", "wrong", f"{path} --version: {why}", "run this command yourself")
            continue
        behind = (
            f"starts inside {' and '.join(there)}, so its own permission prompts are off"
            if there
            else "its own permission prompts stay on"
        )
        account, remedy = _account(driver)
        state = "note" if remedy else "ok"
        yield Finding(f"driver {name}", state, f"{path}, {version}, {behind}; {account}", remedy)


def _account(driver: Driver) -> tuple[str, str]:
    """(The sign-in of a CLI in words, the remedy or ""): for a missing one, and for one that the running engine lacks."""
    accounts: tuple[str, ...] = getattr(driver, "accounts", ())
    if not accounts:
        return "needs no sign-in", ""
    found = signed_in_by(accounts, os.environ)
    if found is None:
        remedy = (
            f"{how_to_sign_in(driver)}; a model server of your own in its configuration may need no sign-in"
        )
        return "no sign-in was found", remedy
    known = _accounts_of_engine()
    if known is not None and found.startswith("$") and found[1:] not in known:
        # Runs get the environment of the engine, not that of this shell.
        text = f"signed in by {found} here, but the running engine was started without it"
        return text, "`aipass down`, then `aipass up --detach` in a shell where it is set"
    return f"signed in by {found}", ""


def _accounts_of_engine() -> list[str] | None:
    """The sign-in variables in the running engine's environment; None if no engine runs or it has not recorded them."""
    from aipass.ledger import Ledger
    from aipass.workspace import engine_lock

    try:
        layout = find_root()
        if engine_lock.holder(layout) is None or not layout.ledger.exists():
            return None
        ledger = Ledger.read(layout.ledger)
        said = ledger.meta("engine.accounts")
        ledger.close()
    except AipassError:
        return None
    return None if said is None else list(json.loads(said))


#: The security consequence if a layer is missing.
_WITHOUT = {
    "fence": "agents are restricted to folders at best, not to files; ownership of files is not enforced",
    "wall": "agents can signal and trace other programs of yours",
}


def _run(
    supervisors: Supervisors,
    layout: Layout,
    run: int,
    argv: list[str],
    ground: dict[str, Any] | None,
    env: dict[str, str] | None = None,
) -> tuple[str, dict[str, Any] | None]:
    """Run a program under the supervisor: (its stdout, the record of its end, or None if it did not end in PROBE_WAIT_S)."""
    folder = layout.run(run)
    folder.mkdir()
    (folder / wire.PROMPT).write_text("probe")
    # The same message that the engine sends for a run, so that the check exercises the real path.
    message = {"run": run, "agent": "probe", "folder": str(folder), "root": str(layout.root), "argv": argv}
    message |= {
        "env": {**os.environ, **(env or {})},
        "cwd": str(layout.root),
        "stdin": True,
        "timeout_s": 60,
        "stall_s": 0,
    }
    supervisors.start_run({**message, "linger": False, "ground": ground})
    began = time.perf_counter()
    while (record := wire.read_exit(folder)) is None and time.perf_counter() - began < PROBE_WAIT_S:
        time.sleep(0.005)
    try:
        return (folder / wire.STDOUT).read_text() if record else "", record
    except OSError:
        return "", record


def _repository(layout: Layout) -> Iterator[Finding]:
    from aipass.app import check
    from aipass.config import reading
    from aipass.core import state_folder
    from aipass.features.ownership import advice, guarded, layers
    from aipass.files.filesystems import filesystem_of
    from aipass.ledger import Ledger
    from aipass.plugins import Plugins
    from aipass.workspace import engine_lock

    plugins = Plugins()
    plugins.load_installed(layout.root)
    # A list, because the nested function sets it; it stays empty if the configuration is not valid, and the checks that
    # need a configuration are then left out.
    settings: list[Config] = []

    def configuration() -> str:
        settings.append(reading.load(layout.config))
        layers.check_outside(layout, settings[0])
        layers.check_layers(settings[0])
        check(plugins, layout, settings[0])
        return f"valid, {layout.config}"

    def own_folder() -> str:
        state_folder.make(layout)
        return f"owned by this user, on {filesystem_of(layout.state)}"

    def ledger() -> str:
        Ledger.read(layout.ledger).close()
        return f"readable, {layout.ledger.stat().st_size / 1e6:.1f} MB"

    # Later checks need the configuration, so it is read first.
    yield _tried("aipass.toml", configuration)
    for name, reason in plugins.failed.items():
        yield Finding(f"plugin {name}", "wrong", reason, "repair or uninstall it")
    yield _tried(".aipass", own_folder)
    free = shutil.disk_usage(layout.root).free
    yield Finding(
        "disk",
        "ok" if free > ENOUGH_DISK_BYTES else "note",
        f"{free / 1e9:.1f} GB free",
        "" if free > ENOUGH_DISK_BYTES else "free some space",
    )
    if layout.ledger.exists():
        yield _tried("ledger", ledger)
        yield from _left(layout, plugins, settings)
    running = engine_lock.holder(layout)
    yield Finding("engine", "ok", f"running, process {running.pid}" if running else "not running")
    for layer in ("fence", "wall") if settings else ():
        if getattr(settings[0].sandbox, layer) == "off":
            yield Finding(layer, "note", f'sandbox.{layer} = "off" here', _WITHOUT[layer])
    for name, agent in settings[0].agents.items() if settings else ():
        driver = plugins.drivers().get(agent.driver)
        program = agent.command[0] if agent.command else getattr(driver, "program", None)
        if program is None:
            continue
        # Searched as a run does it, with the agent's own PATH: the shell's may find another program.
        path = programs.for_run(program, environment.path_of(agent, os.environ), layout.root)
        found = (
            os.path.join(layout.root, path) if programs.is_program(os.path.join(layout.root, path)) else None
        )
        remedy = "" if found else "install it, or correct the agent's command"
        if found and programs.is_agents(os.path.realpath(found), str(layout.root)):
            remedy = "it is in the repository; only an agent whose `owns` names it literally may write it"
        yield Finding(
            f"agent {name}", "ok" if found else "wrong", found or f"`{program}` is not on PATH", remedy
        )
    if settings:
        fenced = layers.active(settings[0]).fence
        for text in guarded.warnings(layout, settings[0], fenced=fenced):
            yield Finding("programs", "wrong", text, "move it out of the repository, or out of that `owns`")
        for text in advice.of(layout, settings[0]):
            yield Finding("aipass.toml", "note", text)
        yield from _run_code(layout, settings[0])


def _left(layout: Layout, plugins: Plugins, settings: list[Config]) -> Iterator[Finding]:
    """Tables in the ledger of features that are no longer installed."""
    from aipass.app import assemble
    from aipass.ledger import Ledger

    if not settings:
        return
    try:
        ledger = Ledger.read(layout.ledger)
        try:
            assemble(layout, ledger, plugins, settings[0])
            left = ledger.left_by()
        finally:
            ledger.close()
    except AipassError:
        return  # an earlier finding reports this fault
    for name in left:
        text = f"the ledger has tables of `{name}`, which is not installed; they are left unchanged"
        yield Finding("ledger", "note", text, f"install the package that provides `{name}`, or ignore this")


def _run_code(layout: Layout, settings: Config) -> Iterator[Finding]:
    """Tracked files from which your programs run code and which agents may write as ordinary work."""
    from aipass.features.ownership import layers
    from aipass.git.query import ask
    from aipass.supervisor.fence import runs_code
    from aipass.supervisor.fence.territory import Kind, Territory

    territory = Territory.of(layers.table(layout, settings))
    free = tuple(name for name, agent in settings.agents.items() if agent.owns is None)
    found = []
    for path in ask(layout.root, "ls-files", "-z", "--cached")[:MOST_FILES]:
        if not path or (listed := runs_code.listed(path)) is None:
            continue
        owner = territory.owner(path)
        if names := owner.agents or (free if owner.kind is Kind.FREE else ()):
            found.append(f"{plain(path)} ({' or '.join(names[:MOST_NAMED])}; {listed.entry.what})")
    if found:
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        yield Finding(
            "files that run code",
            "note",
            f"agents may write {', '.join(found[:MOST_NAMED])}{more}",
            "review them before you run a program that reads them; a PR that changes one of them says so",
        )


def _tried(what: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", attempt())
    except AipassError as exc:
        return Finding(what, "wrong", str(exc))
