"""What every test of ours has: a home of its own, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import threading
import time

import pytest
import structlog
from hypothesis import settings
from patience import PATIENCE
from repository import AS_PROCESSES, Repository
from rounds import NIGHTLY

from aipass.supervisor import process

pytest_plugins = ["pytester"]
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


# These machines are shared: no test asserts how long something takes.
settings.register_profile("aipass", deadline=None)
settings.load_profile("aipass")


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


@pytest.fixture
def repository(tmp_path, request):
    """A git repository; whatever runs in it at the end is stopped."""
    root = tmp_path / "repo"
    root.mkdir()
    root = root.resolve()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    made = Repository(root)
    made.at_once = not any(part in str(request.path) for part in AS_PROCESSES)
    yield made
    if (root / ".aipass").exists() and made.pids():
        made.aipass("down", "--kill", check=None)
        made.wait_for(lambda: not made.pids(), "the end of all processes")
