"""A supervisor of its own with a scratch root, for programs that run behind the fence: as this user, or as another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from patience import PATIENCE, until

import aipass
from aipass.features.dispatch import grant
from aipass.features.dispatch import supervisors as runs
from aipass.supervisor import wire
from aipass.supervisor.fence import mode as modes
from aipass.supervisor.fence import probe
from aipass.supervisor.fence.fenced import DENIED, JOURNAL
from aipass.workspace.layout import Layout

OTHER_USER = 1234
SYSTEM_PYTHON = "/usr/bin/python3"
NO_FENCE = probe.layers().why_no_fence
NO_WALL = probe.layers().why_no_wall
#: How the calls of runs can be served here; the first is the usual one.
MODES = ("compiled", "mixed", "python") if modes.mode({}) == "compiled" else ("python",)


def no_other_user() -> str:
    """Why nothing can be run as another user here; empty where it can."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return "only root can become another user, with setpriv"
    found = (
        subprocess.run([SYSTEM_PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False)
        if os.path.exists(SYSTEM_PYTHON)
        else None
    )
    return "" if found is not None and found.returncode == 0 else "no Python 3.11 that every user may start"


@dataclass
class Result:
    """What became of a run."""

    exit: int | None
    out: str
    err: str
    denied: list[dict] = field(default_factory=list)
    journal: list[list] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The refused paths."""
        return [message["path"] for message in self.denied]


class FenceHouse:
    """Programs of agents in one root. `user`: the supervisor and all it starts are another user's. `mode`: see fence/mode.py."""

    def __init__(
        self,
        monkeypatch,
        user: int | None = None,
        where: str = "/var/tmp",
        mode: str = "",
        sanitized: Path | None = None,
        **sandbox,
    ):
        if mode:
            monkeypatch.setenv(modes.CHOICE, mode)
        self.base = Path(tempfile.mkdtemp(prefix="fence-", dir=where)).resolve()
        self.root = self.base / "repo"
        self.user = user
        self.sandbox = {"fence": True, "wall": True, "outside": [], "sockets": [], **sandbox}
        for folder in (".aipass/runs", ".aipass/spool", ".git", "inbox", "outbox", "plans"):
            (self.root / folder).mkdir(parents=True)
        self.layout = Layout(self.root)
        self.python = sys.executable
        if user is not None or sanitized is not None:
            shutil.copytree(
                Path(aipass.__file__).parent,
                self.base / "code/aipass",
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        if sanitized is not None:
            shutil.copy(sanitized, self.base / "code/aipass/supervisor/fence")
            self._as_sanitized(monkeypatch)
        if user is not None:
            self.python = SYSTEM_PYTHON
            self._as_other_user(monkeypatch, user)
        self.own_all()
        self.said: list[dict] = []
        self.count = 0
        self.supervisors = runs.Supervisors(self.layout, "test")
        self.supervisors.start(lambda reports: self.said.extend(report.message for report in reports))

    def _as_other_user(self, monkeypatch, user: int) -> None:
        real = subprocess.Popen

        def popen(argv, *args, **kwargs):
            if isinstance(argv, list) and "aipass.supervisor.server" in " ".join(map(str, argv[:5])):
                argv = [
                    "setpriv",
                    f"--reuid={user}",
                    f"--regid={user}",
                    "--clear-groups",
                    SYSTEM_PYTHON,
                    *argv[1:5],
                    str(self.base / "code"),
                    *argv[6:],
                ]
            return real(argv, *args, **kwargs)

        monkeypatch.setattr(runs.subprocess, "Popen", popen)
        monkeypatch.setattr(wire, "is_own_user", lambda connection: True)

    def _as_sanitized(self, monkeypatch) -> None:
        """Start the supervisor with the copy of the code, and with the sanitizer's library in front."""
        real = subprocess.Popen
        library = subprocess.run(
            ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        )

        def popen(argv, *args, **kwargs):
            if isinstance(argv, list) and "aipass.supervisor.server" in " ".join(map(str, argv[:5])):
                argv = [*argv[:5], str(self.base / "code"), *argv[6:]]
                kwargs["env"] = {
                    **kwargs["env"],
                    "LD_PRELOAD": library.stdout.strip(),
                    "ASAN_OPTIONS": "detect_leaks=0:handle_segv=1",
                }
            return real(argv, *args, **kwargs)

        monkeypatch.setattr(runs.subprocess, "Popen", popen)

    def own_all(self) -> None:
        """Give everything in the root to the user whom the runs are of."""
        os.chmod(self.base, 0o755)
        if self.user is not None:
            for path in (self.root, *self.root.rglob("*")):
                os.chown(path, self.user, self.user, follow_symlinks=False)

    def write(self, path: str, text: str = "foreign\n") -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def territory(self, serial: int = 1, handed=(), **agents) -> dict:
        """Set who owns what, and wait until it is so. `owns`: patterns, or None for all that nobody else owns."""
        table = {
            "agents": {
                name: {"home": f".aipass/agents/{name}", "owns": owns} for name, owns in agents.items()
            },
            "scratch": ["**/__pycache__/", ".pytest_cache/", "target/"],
            "temp": ["sed??????", "XX??????", "Cu??????"],
            "phases": getattr(self, "phases", []),
        }
        self.supervisors.set_territory({"serial": serial, "table": table, "handed": list(handed)})
        return self.wait(lambda m: m["tell"] == "territory" and m["serial"] == serial)

    def start(self, agent: str, *argv: str, **more) -> int:
        """Start a program behind the fence; returns the run's id."""
        self.count += 1
        run = self.count
        folder = self.layout.run(run)
        folder.mkdir()
        (folder / wire.PROMPT).write_text("the prompt")
        self.layout.run_spool(run).mkdir()
        if self.user is not None:
            for path in (folder, folder / wire.PROMPT, self.layout.run_spool(run)):
                os.chown(path, self.user, self.user)
        tmp = f"/tmp/aipass-{self.user if self.user is not None else os.geteuid()}/{self.base.name}-{run}"
        env = {
            "PATH": os.environ["PATH"]
            if self.user is None
            else "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.base / "home"),
            "TMPDIR": tmp,
            "LANG": "C.UTF-8",
            "AIPASS_RUN": str(run),
            "AIPASS_ROOT": str(self.root),
            "AIPASS_DENIED": str(folder / DENIED),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        own = [
            str(self.layout.run_spool(run)),
            str(grant.cache(self.layout, agent)),
            str(self.root / ".aipass/agents" / agent),
        ]
        message = {
            "run": run,
            "agent": agent,
            "folder": str(folder),
            "root": str(self.root),
            "argv": list(argv),
            "env": env,
            "cwd": str(self.root),
            "stdin": True,
            "timeout_s": 0,
            "stall_s": 0,
            "linger": False,
            "waits": [0.5, 0.5, 0.2],
            "ground": {**self.sandbox, "own": own, "tmp": tmp, "tree": [], **more},
        }
        self.supervisors.start_run(message)
        return run

    def sh(self, agent: str, script: str, **more) -> Result:
        """Run a shell script behind the fence, to its end."""
        return self.end(self.start(agent, "sh", "-c", script, **more))

    def py(self, agent: str, code: str, *words: str, **more) -> Result:
        """Run Python code behind the fence, to its end."""
        return self.end(self.start(agent, self.python, "-c", code, *words, **more))

    def end(self, run: int, timeout: float = 100) -> Result:
        """Wait for a run's end."""
        record = self.wait(lambda m: m["tell"] == "ended" and m["run"] == run, timeout)
        folder = self.layout.run(run)

        def read(name: str) -> str:
            path = folder / name
            return path.read_text(errors="replace") if path.exists() else ""

        denied = [m for m in self.said if m["tell"] == "denied" and m["run"] == run]
        journal = [json.loads(line) for line in read(JOURNAL).splitlines()]
        return Result(
            record["exit"],
            read(wire.STDOUT),
            read(wire.STDERR) + str(record["reason"] or ""),
            denied,
            journal,
        )

    def until_says(self, run: int, word: str, timeout: float = PATIENCE) -> None:
        """Wait until a run has printed `word`."""
        path = self.layout.run(run) / wire.STDOUT
        until(lambda: path.exists() and word in path.read_text(), lambda: f"`{word}`: {self.bugs()}", timeout)

    def wait(self, test, timeout: float = PATIENCE) -> dict:
        return until(
            lambda: next((message for message in list(self.said) if test(message)), None),
            lambda: f"it (said: {self.said[-10:]}; {self.bugs()[-3000:]})",
            timeout,
        )

    def supervisor_pid(self) -> int:
        return json.loads((self.layout.state / "supervisor-test.lock").read_text())["pid"]

    def bugs(self) -> str:
        """What the supervisor said of itself; nothing is right."""
        log = self.layout.state / "supervisor.log"
        return log.read_text() if log.exists() else ""

    def close(self) -> None:
        self.supervisors.end()
        until(lambda: not runs.is_served(self.layout.state, "test"), "the supervisor's end")
        self.supervisors.stop()
        for process in [self.supervisors._process]:
            if process is not None:
                process.wait(PATIENCE)
        shutil.rmtree(self.base, ignore_errors=True)


def snapshot(*tops: Path) -> dict[str, tuple]:
    """All that can be known of files and folders: a change of anything, and back, shows in the change time."""
    found = {}
    for top in tops:
        for path in (top, *(sorted(top.rglob("*")) if top.is_dir() and not top.is_symlink() else ())):
            status = path.lstat()
            content = (
                os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            )
            names = tuple(os.listxattr(path, follow_symlinks=False))
            found[str(path)] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_ino,
                status.st_nlink,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
                content,
                names,
            )
    return found
