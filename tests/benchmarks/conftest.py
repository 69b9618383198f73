"""The table at the end, and what the benchmarks share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import kit


@pytest.fixture
def stub(tmp_path) -> kit.Stub:
    """A program that writes the time of its first instruction to a file."""
    return kit.build_stub(tmp_path)


@pytest.fixture
def root(tmp_path):
    """Makes roots with the given aipass.toml; whatever runs in them at the end is stopped."""
    made: list[kit.Root] = []

    def make(toml: str) -> kit.Root:
        path = Path(tmp_path, f"root-{len(made)}").resolve()
        made.append(kit.Root(path, toml))
        return made[-1]

    yield make
    for one in made:
        one.down()


@pytest.fixture
def spawn():
    """Starts peers in sessions of their own; those that live at the end are killed."""
    import subprocess

    started: list[subprocess.Popen] = []

    def start(command, **options) -> subprocess.Popen:
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
        started.append(subprocess.Popen(command, start_new_session=True, **options))
        return started[-1]

    yield start
    for process in started:
        kit.kill_session(process)


@pytest.fixture
def row() -> Callable[..., None]:
    """Adds a row to the table: what, ours, peer, ratio, goal."""
    return kit.add_row


def pytest_terminal_summary(terminalreporter):
    if kit.rows:
        terminalreporter.section("benchmarks (medians; peers of the same run)")
        for line in kit.table():
            terminalreporter.write_line(line)
