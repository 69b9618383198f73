"""The runs source: connections to the supervisors of this root, one for each version that still has runs."""

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

# A Python without site-packages is ready in a tenth of this, on a busy machine too.
READY_WAIT_S = 20.0
CONNECT_ATTEMPTS, CONNECT_PAUSE_S = 20, 0.1
ENDED_PAUSE_S = 0.01
_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from aipass.supervisor.server import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, slots=True)
class Report:
    """What a supervisor said, as it said it."""

    message: dict[str, Any]


class Supervisors:
    """Starts a supervisor where there is none, sends it requests, and tells the engine what it reports."""

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
        #: What another version's supervisor has not answered yet, by version, and the starts that wait for it: what its
        #: runs lose must be taken from them before a run of ours begins.
        self._asked: dict[str, int] = {}
        self._later: list[dict[str, Any]] = []
        #: Around the connections and these: the engine's thread and those that listen use them. Nothing is sent within it:
        #: a supervisor that is slow to listen must not keep its own answer from being read.
        self._lock = threading.Lock()
        self._sending = threading.Lock()

    def start(self, tell: Callable[[list[Report]], None]) -> None:
        """Connect to whatever supervisors live here, and to one of this version, started if need be."""
        self._tell = tell
        for path in self._layout.state.glob("supervisor-*.sock"):
            version = path.name.removeprefix("supervisor-").removesuffix(".sock")
            if version != self._version and is_served(self._layout.state, version):
                with contextlib.suppress(OSError):
                    self._connect(version)  # else it has just ended, and its runs are in their folders
        self._ensure()

    def stop(self) -> None:
        """Let go of the supervisors; runs go on."""
        self._stopping = True
        for link in self._links.values():
            try:
                link.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it went first
            link.close()
        self._links.clear()

    def start_run(self, message: dict[str, Any]) -> None:
        """Have a run started; the same run again is started once."""
        self._ensure()
        with self._lock:
            waits = bool(self._asked)
            if waits:
                self._later.append(message)
        if not waits:
            self._send(self._version, {"do": "start", **message})

    def set_territory(self, message: dict[str, Any]) -> None:
        """Say who owns what from now on, to every supervisor, and to each that comes."""
        territory = {"do": "territory", **message}
        with self._lock:
            self._territory = territory
            versions = list(self._links)
            self._asked = {version: message["serial"] for version in versions if version != self._version}
        for version in versions:
            self._send(version, territory)
        self._ensure()

    def stop_run(self, run: int, why: str, reason: str) -> None:
        """Have a run's whole tree stopped: INT, TERM, KILL. One that waits for its start is not begun."""
        with self._lock:
            later = [message for message in self._later if message["run"] != run]
            waited, self._later = len(later) < len(self._later), later
        self._send_all({"do": "stop", "run": run, "why": why, "reason": reason})
        if waited and self._tell is not None:
            self._tell([Report({"tell": "ended", "run": run, "outcome": why, "reason": reason})])

    def adopt(self, run: int, agent: str) -> None:
        """Ask what became of a run that the ledger believes to live."""
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
        """Have processes of runs ended that hold a lock on one of these files; told as `unlocked`. Who may look at them is no engine."""
        self._ensure()
        self._send(self._version, {"do": "unlock", "files": list(map(str, files))})

    def end(self) -> None:
        """Have every run stopped, and the supervisors with them."""
        self._send_all({"do": "end"})

    def wait_ended(self, seconds: float) -> bool:
        """Wait until none of the supervisors lives, nor writes into the state folder; False where that takes longer."""
        with self._lock:
            versions = {self._version, *self._links}
        return wait_ended(self._layout.state, versions, seconds)

    def _ensure(self) -> None:
        if self._version not in self._links and not self._stopping:
            for attempt in range(CONNECT_ATTEMPTS):
                if self._process is not None:
                    self._process.poll()
                if not is_served(self._layout.state, self._version):
                    if self._launcher is not None:
                        self._launcher.launch(self._version)
                    else:
                        self._process = launch(self._layout, self._version)
                try:
                    self._connect(self._version)
                    return
                except OSError as exc:
                    # One that is just ending, or just beginning.
                    if attempt + 1 == CONNECT_ATTEMPTS:
                        raise AipassError(
                            f"the supervisor cannot be reached ({exc}); {self._layout.state / 'supervisor.log'} may say why"
                        ) from exc
                    time.sleep(CONNECT_PAUSE_S)

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
            pass  # the listening thread sees the end and tells it

    def _send_all(self, message: dict[str, Any]) -> None:
        """To every supervisor, ours last: a run of an older one is claimed by its owner before ours looks for a lost one."""
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
        """Another supervisor has taken away what its runs lost, or is gone (None)."""
        with self._lock:
            if serial is None or self._asked.get(version) == serial:
                self._asked.pop(version, None)
            if self._asked:
                return
            later, self._later = self._later, []
        for message in later:
            self._send(self._version, {"do": "start", **message})


class SupervisorSpawner:
    """A process that starts supervisors, forked before the engine encloses itself: they must not be enclosed with it.

    It does nothing else, whatever it is told, and ends with the engine.
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
        """Have a supervisor of this version started; raises AipassError where it does not come up."""
        with self._lock:
            try:
                self._ours.send(version.encode())
                said = self._ours.recv(65536).decode("utf-8", "replace")
            except OSError as exc:
                raise AipassError(
                    f"the process that starts supervisors is gone ({exc}); restart the engine"
                ) from exc
        if said != "started":
            raise AipassError(said or "the process that starts supervisors is gone; restart the engine")

    def close(self) -> None:
        """Let it end, and collect it."""
        self._ours.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _serve_launches(layout: Layout, requests: socket.socket) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its engine
    # What the engine has open is not for a process that outlives a word of it: whoever waits for its end would wait for ours.
    os.closerange(3, requests.fileno())
    os.closerange(requests.fileno() + 1, 4096)
    try:
        while version := requests.recv(256).decode():
            try:
                launch(layout, version).returncode = 0  # the system collects it when we are gone
                said = "started"
            except Exception as exc:  # noqa: BLE001 - the engine tells what it was
                said = str(exc) or repr(exc)
            requests.send(said.encode("utf-8", "replace")[:60_000])
    except BaseException:  # noqa: BLE001 - nothing of the engine's may run on in this process
        os._exit(1)
    os._exit(0)


def launch(layout: Layout, version: str) -> subprocess.Popen[bytes]:
    """Start a supervisor as a process of its own session; returns when it listens.

    Raises AipassError where it does not come up.
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
                    for name in ("PATH", "LANG", "LC_ALL", "HOME")
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
        if not said and process.wait() != 3:
            raise AipassError(f"the supervisor did not start; {layout.state / 'supervisor.log'} says why")
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    return process


def is_served(state: Path, version: str) -> bool:
    """Whether a supervisor of this version lives."""
    return hold.holder(state / wire.names(version)[1]) is not None


def wait_ended(state: Path, versions: Collection[str], seconds: float) -> bool:
    """Wait until no supervisor of these versions lives; False where that takes longer."""
    until = time.monotonic() + seconds
    while any(is_served(state, version) for version in versions):
        if time.monotonic() > until:
            return False
        time.sleep(ENDED_PAUSE_S)
    return True


def connect(state: Path, version: str) -> socket.socket:
    """A connection to the supervisor of this version; raises OSError where there is none."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(wire.address(state / wire.names(version)[0]))
    except OSError:
        link.close()
        raise
    if not wire.is_own_user(link):
        link.close()
        raise PermissionError(f"the socket in {state} is another user's")
    return link
