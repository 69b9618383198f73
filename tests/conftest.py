"""What every test of ours has: a home of its own, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import structlog
from hypothesis import settings
from patience import PATIENCE, until

from aipass.supervisor import process

pytest_plugins = ["pytester"]
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


# These machines are shared: no test asserts how long something takes.
settings.register_profile("aipass", deadline=None)
settings.load_profile("aipass")


#: `make nightly` repeats what `make test` does a few times: the properties are the same, the rounds are more.
NIGHTLY = os.environ.get("AIPASS_NIGHTLY") == "1"


def rounds(usual: int, nightly: int) -> int:
    """How often, or with how many, something is tried."""
    return nightly if NIGHTLY else usual


def few(cases, usual: int):
    """So many of the cases of one kind, evenly spread, with the first and the last; `make nightly` tries each."""
    cases = list(cases)
    assert 2 <= usual < len(cases), f"there are {len(cases)}"
    if NIGHTLY:
        return cases
    return [cases[round(place * (len(cases) - 1) / (usual - 1))] for place in range(usual)]


def pytest_collection_modifyitems(items):
    """Whatever starts a real engine takes its time; the inner loop leaves it out."""
    for item in items:
        if "repository" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
        if NIGHTLY:
            item.add_marker(pytest.mark.timeout(3600), append=False)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """A home folder that is empty, and an environment that says nothing about the machine."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in list(os.environ):
        if name.startswith(("AIPASS_", "GIT_AUTHOR", "GIT_COMMITTER", "XDG_")):
            monkeypatch.delenv(name)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Tess Ter")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "tess@example.invalid")


@pytest.fixture(autouse=True)
def nothing_left_behind(own_home):
    """No thread and no child process may outlive its test."""
    threads, children = set(threading.enumerate()), process.own_children()
    yield
    deadline = time.monotonic() + PATIENCE / 3
    while time.monotonic() < deadline:
        left = [t for t in threading.enumerate() if t not in threads and t.is_alive() and not t.daemon]
        ours = [
            pid
            for pid in process.own_children() - children
            if (found := process.look(pid)) and found.state not in "ZX"
        ]
        if not left and not ours:
            return
        time.sleep(0.02)
    assert not left, f"threads left behind: {left}"
    assert not ours, f"processes left behind: {[(pid, process.command_line(pid)) for pid in ours]}"


class Repository:
    """A real repository with a real engine, driven by real commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        #: The Python whose aipass is used: one with more plugins than ours, for some.
        self.python = sys.executable

    def write(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def aipass(
        self,
        *words: str,
        check: int | None = 0,
        stdin: str | None = None,
        env: dict[str, str] | None = None,
        timeout: float = PATIENCE,
        yes: bool = True,
    ):
        # Nobody is there to be asked whether to start what a tracked aipass.toml names.
        trusted = ("--yes",) if words[:1] == ("up",) and "--yes" not in words and yes else ()
        done = subprocess.run(
            [self.python, "-m", "aipass", *words, *trusted],
            cwd=self.root,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=None if env is None else {**os.environ, **env},
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
        )
        if check is not None:
            assert done.returncode == check, (
                f"aipass {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def wait_for(self, condition, what: str = "it", timeout: float = PATIENCE):
        """The first true value of `condition()`."""
        return until(condition, lambda: f"{what} (log: {self.trace()})", timeout)

    def answer(self, pattern: str, timeout: float = PATIENCE) -> Path:
        return self.wait_for(
            lambda: next(iter(sorted(self.root.glob(f"outbox/{pattern}"))), None),
            f"outbox/{pattern}",
            timeout,
        )

    def trace(self) -> str:
        log = self.root / ".aipass/log.jsonl"
        return log.read_text()[-3000:] if log.exists() else "(no log)"

    def pids(self) -> list[int]:
        """Every process that carries this root's mark, or serves it."""
        found = []
        for pid in process.table():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            except OSError:
                continue
            ours = (
                process.environment(pid).get("AIPASS_ROOT") == str(self.root)
                or str(self.root / ".aipass") in words
            )
            if pid != os.getpid() and ours:
                found.append(pid)
        return found


@pytest.fixture
def repository(tmp_path):
    """A git repository; whatever runs in it at the end is stopped."""
    root = tmp_path / "repo"
    root.mkdir()
    root = root.resolve()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    made = Repository(root)
    yield made
    if (root / ".aipass").exists() and made.pids():
        made.aipass("down", "--kill", check=None)
        made.wait_for(lambda: not made.pids(), "the end of all processes")


COMMAND_AGENT = """\
[agents.{name}]
driver = "command"
command = ["{python}", "{script}"]
{more}
"""


def agent(name: str, script: str, more: str = "") -> str:
    """An [agents.…] table for a Python script in the root."""
    return COMMAND_AGENT.format(name=name, python=sys.executable, script=script, more=more)
