"""The runs source: the engine's connections to the supervisors of this root, one per version that still has runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import aipass
from aipass.errors import AipassError
from aipass.supervisor import hold, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from aipass.workspace.layout import Layout

# A Python without site-packages is ready in a tenth of this, even on a busy machine.
READY_WAIT_S = 20.0
CONNECT_ATTEMPTS, CONNECT_PAUSE_S = 20, 0.1
#: How long the end of a supervisor is waited for whose lock is free already.
COLLECT_WAIT_S = 2.0
ENDED_PAUSE_S = 0.01
# `-I -S` ignores the environment and site-packages, in which an agent could have placed code; so the path comes as an
# argument.
_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from aipass.supervisor.server import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, slots=True)
class Report:
    """One message of a supervisor, unchanged; `tell` in it names the kind."""

    message: dict[str, Any]


class Supervisors:
    """The client of the supervisors: starts one if none runs, sends requests to it and posts its messages to the engine.

    Called by the engine's thread; one daemon thread per connection listens. A supervisor outlives the engine, so an engine of
    a new version may find runs below a supervisor of an older one.
    """

    name = "runs"
    urgent = True

    def __init__(
        self, layout: Layout, version: str = aipass.__version__, launcher: SupervisorSpawner | None = None
    ) -> None:
        self._layout, self._version, self._launcher = layout, version, launcher
        self._links: dict[str, socket.socket] = {}
        self._tell: Callable[[list[Report]], None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._territory: dict[str, Any] | None = None
        #: By version of another supervisor: the serial number of the ownership table that it has not confirmed yet.
        self._asked: dict[str, int] = {}
        #: Starts that wait for these confirmations: a run of the older supervisor must lose its write access to a file
        #: before a new run may write that file.
        self._later: list[dict[str, Any]] = []
        #: Guards the connections and the two fields above, which the engine's thread and the listening threads share.
        #: Nothing is sent while it is held: a supervisor that reads slowly must not keep its own answer from being
        #: read.
        self._lock = threading.Lock()
        #: Keeps the messages of two threads from being mixed on one socket.
        self._sending = threading.Lock()

    def start(self, tell: Callable[[list[Report]], None]) -> None:
        """Connect to every live supervisor of this root, and to one of this version, which is started if none runs.

        Raises AipassError if the supervisor of this version cannot be started or reached.
        """
        self._tell = tell
        for path in self._layout.state.glob("supervisor-*.sock"):
            version = path.name.removeprefix("supervisor-").removesuffix(".sock")
            if version != self._version and is_served(self._layout.state, version):
                # A refused connection means that it has just ended; the ends of its runs are in their folders.
                with contextlib.suppress(OSError):
                    self._connect(version)
        self._ensure()

    def stop(self) -> None:
        """Close the connections; the supervisors and their runs continue without the engine."""
        self._stopping = True
        for link in self._links.values():
            try:
                link.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the supervisor closed it first
            link.close()
        self._links.clear()

    def start_run(self, message: dict[str, Any]) -> None:
        """Ask the supervisor of this version to start a run; idempotent for one run id.

        The start waits while a supervisor of another version has not confirmed the last ownership table.
        """
        self._ensure()
        with self._lock:
            waits = bool(self._asked)
            if waits:
                self._later.append(message)
        if not waits:
            self._send(self._version, {"do": "start", **message})

    def set_territory(self, message: dict[str, Any]) -> None:
        """Send the ownership table to every supervisor, and later to each new connection."""
        territory = {"do": "territory", **message}
        with self._lock:
            self._territory = territory
            versions = list(self._links)
            self._asked = {version: message["serial"] for version in versions if version != self._version}
        for version in versions:
            self._send(version, territory)
        self._ensure()

    def stop_run(self, run: int, why: str, reason: str) -> None:
        """Ask for the stop of a run's whole process tree: INT, TERM, KILL.

        A start that still waits is dropped and reported as ended.
        """
        with self._lock:
            later = [message for message in self._later if message["run"] != run]
            waited, self._later = len(later) < len(self._later), later
        # To all versions: only the supervisor that started the run knows it, the others ignore the message.
        self._send_all({"do": "stop", "run": run, "why": why, "reason": reason})
        if waited and self._tell is not None:
            self._tell([Report({"tell": "ended", "run": run, "outcome": why, "reason": reason})])

    def adopt(self, run: int, agent: str) -> None:
        """Ask every supervisor for the state of a run that is live according to the ledger.

        The answer comes as a Report.
        """
        self._ensure()
        message = {
            "do": "adopt",
            "run": run,
            "agent": agent,
            "folder": str(self._layout.run(run)),
            "root": str(self._layout.root),
        }
        self._send_all(message)

    def end_lockers(self, files: Iterable[Path]) -> None:
        """Ask the supervisor to end processes of runs that lock one of these files; it reports `unlocked`."""
        # The supervisor does it: an engine that has enclosed itself must not look into processes of runs.
        self._ensure()
        self._send(self._version, {"do": "unlock", "files": list(map(str, files))})

    def end(self) -> None:
        """Ask every supervisor to stop all its runs and then to end."""
        self._send_all({"do": "end"})

    def wait_ended(self, seconds: float) -> bool:
        """Wait until no supervisor is alive or writes into the state folder; False if `seconds` pass first."""
        with self._lock:
            versions = {self._version, *self._links}
        return wait_ended(self._layout.state, versions, seconds)

    def _ensure(self) -> None:
        if self._version not in self._links and not self._stopping:
            for attempt in range(CONNECT_ATTEMPTS):
                if not is_served(self._layout.state, self._version):
                    if self._launcher is not None:
                        self._launcher.launch(self._version)
                    else:
                        self._collect()
                        self._process = launch(self._layout, self._version)
                try:
                    self._connect(self._version)
                    return
                except OSError as exc:
                    # The supervisor may be about to end, or not listen yet: try again.
                    if attempt + 1 == CONNECT_ATTEMPTS:
                        raise AipassError(
                            f"the supervisor cannot be reached ({exc}); {self._layout.state / 'supervisor.log'} may show the reason"
                        ) from exc
                    time.sleep(CONNECT_PAUSE_S)

    def _collect(self) -> None:
        """Take the exit status of the last supervisor, so that no zombie process stays."""
        if self._process is not None:
            # Its lock is free some milliseconds before its end: the kernel ends its threads first.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(COLLECT_WAIT_S)

    def _connect(self, version: str) -> None:
        link = connect(self._layout.state, version)
        with self._lock:
            self._links[version] = link
            territory = self._territory
        if territory is not None:
            self._send(version, territory)
        threading.Thread(
            target=self._listen, args=(version, link), name=f"supervisor-{version}", daemon=True
        ).start()

    def _send(self, version: str, message: dict[str, Any]) -> None:
        link = self._links.get(version)
        if link is None:
            return
        try:
            with self._sending:
                link.sendall(wire.pack(message))
        except OSError:
            pass  # the listening thread notices the end of the connection and reports it

    def _send_all(self, message: dict[str, Any]) -> None:
        """Send a message to every supervisor, to that of this version last.

        An older supervisor thus claims its own run before that of this version searches for a lost one.
        """
        with self._lock:
            versions = sorted(self._links, key=lambda version: version == self._version)
        for version in versions:
            self._send(version, message)

    def _listen(self, version: str, link: socket.socket) -> None:
        lines = wire.MessageReader()
        assert self._tell is not None
        while True:
            try:
                data = link.recv(1 << 16)
                messages = lines.feed(data)
            except (OSError, ValueError):
                # A message that is no JSON ends the connection like a broken socket: its runs are then adopted again.
                data, messages = b"", []
            for message in messages:
                if message.get("tell") == "territory":
                    self._answered(version, int(message["serial"]))
            if messages:
                self._tell([Report(message) for message in messages])
            if not data:
                break
        with self._lock:
            if self._links.get(version) is link and not self._stopping:
                del self._links[version]
        self._answered(version, None)
        link.close()
        if not self._stopping:
            self._tell([Report({"tell": "gone", "version": version})])

    def _answered(self, version: str, serial: int | None) -> None:
        """Note that a supervisor has confirmed an ownership table, and send the starts that waited for it.

        `serial` None: the supervisor has ended.
        """
        with self._lock:
            # A confirmation of an older table than the last one sent does not count.
            if serial is None or self._asked.get(version) == serial:
                self._asked.pop(version, None)
            if self._asked:
                return
            later, self._later = self._later, []
        for message in later:
            self._send(self._version, {"do": "start", **message})


class SupervisorSpawner:
    """A helper process that starts supervisors, forked before the engine puts itself into a sandbox (Landlock).

    A process inherits the Landlock domain of its parent, and supervisors must not be in that of the engine. The helper obeys
    only this one request, so a compromised engine gains nothing else from it. It ends with the engine.
    """

    def __init__(self, layout: Layout) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._ours.close()
            _serve_launches(layout, theirs)
        theirs.close()
        self._lock = threading.Lock()

    def launch(self, version: str) -> None:
        """Start a supervisor of this version and wait until it listens; raises AipassError if it does not start."""
        with self._lock:
            try:
                self._ours.send(version.encode())
                said = self._ours.recv(65536).decode("utf-8", "replace")
            except OSError as exc:
                raise AipassError(
                    f"the process that starts supervisors has ended ({exc}); restart the engine"
                ) from exc
        if said != "started":
            raise AipassError(said or "the process that starts supervisors has ended; restart the engine")

    def close(self) -> None:
        """End the helper process and wait for it, so that it leaves no zombie."""
        self._ours.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _serve_launches(layout: Layout, requests: socket.socket) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Ctrl-C reaches the whole process group; the helper must end only when the engine closes the socket.
        signal.signal(number, signal.SIG_IGN)
    # Descriptors of the engine are closed: a reader of an inherited pipe would not see its end before this process ends.
    os.closerange(3, requests.fileno())
    os.closerange(requests.fileno() + 1, 4096)
    try:
        while version := requests.recv(256).decode():
            try:
                # With a return code, Popen does not warn about a child that still runs; init collects it after our end.
                launch(layout, version).returncode = 0
                said = "started"
            except Exception as exc:  # noqa: BLE001 - the engine raises it with this text
                said = str(exc) or repr(exc)
            requests.send(said.encode("utf-8", "replace")[:60_000])
    except BaseException:  # noqa: BLE001 - code of the engine must not continue in the forked process
        os._exit(1)
    os._exit(0)


def launch(layout: Layout, version: str) -> subprocess.Popen[bytes]:
    """Start a supervisor in a session of its own; returns its process when it listens.

    Also returns if another supervisor of this version was faster. Raises AipassError if none listens within READY_WAIT_S.
    """
    package_parent = str(Path(aipass.__file__).resolve().parent.parent)
    reader, writer = os.pipe()
    try:
        with open(layout.state / "supervisor.log", "ab") as log, open(os.devnull, "rb") as nothing:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _BOOT,
                    package_parent,
                    str(layout.state),
                    version,
                    str(writer),
                ],
                pass_fds=(writer,),
                stdin=nothing,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env={
                    name: os.environ[name]
                    for name in ("PATH", "LANG", "LC_ALL", "HOME", "AIPASS_FENCE")
                    if name in os.environ
                },
            )
        os.close(writer)
        writer = -1
        timer = threading.Timer(READY_WAIT_S, process.kill)
        timer.start()
        said = os.read(reader, 5000)
        timer.cancel()
        if said not in {b"", b"ready"}:
            process.wait()
            raise AipassError(f"the supervisor did not start: {said.decode('utf-8', 'replace')}")
        # Status 3: another supervisor of this version holds the lock, and it serves as well.
        if not said and process.wait() != 3:
            raise AipassError(f"the supervisor did not start; see {layout.state / 'supervisor.log'}")
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    return process


def is_served(state: Path, version: str) -> bool:
    """Whether a supervisor of this version is alive: a process holds its lock file."""
    return hold.holder(state / wire.names(version)[1]) is not None


def wait_ended(state: Path, versions: Collection[str], seconds: float) -> bool:
    """Wait until no supervisor of these versions is alive; False if `seconds` pass first."""
    until = time.monotonic() + seconds
    while any(is_served(state, version) for version in versions):
        if time.monotonic() > until:
            return False
        time.sleep(ENDED_PAUSE_S)
    return True


def connect(state: Path, version: str) -> socket.socket:
    """A connection to the supervisor of this version.

    Raises OSError if none listens, PermissionError if another user's does.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(wire.address(state / wire.names(version)[0]))
    except OSError:
        link.close()
        raise
    # A supervisor starts programs with the environment it is sent, API keys included: only one of this user may get that.
    if not wire.is_own_user(link):
        link.close()
        raise PermissionError(f"the socket in {state} belongs to another user")
    return link
