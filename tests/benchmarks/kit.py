"""What the benchmarks share: the table, a root with real commands, a stub of an agent, clocks of processes."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from aipass.supervisor import process
from aipass.workspace import engine_lock
from aipass.workspace.layout import Layout

MISSING = "not installed"
#: A small run of everything, as `make test` makes it: that a benchmark still runs, and nothing of how fast.
SMALL = os.environ.get("AIPASS_BENCH_SMALL") == "1"
#: Where agents leave the times of their starts, from the root. Each writes a file of its own: the fence lets one run at a time write a file.
STAMPS = "stamps"
MANY_RUNS = f"""[watch]
ignore = ["{STAMPS}/"]
[limits]
runs_per_hour = 100000
concurrency = 2000
"""

rows: list[tuple[str, str, str, str, str]] = []


# -- the table ---------------------------------------------------------------------------------------------------------


def size(usual: int, small: int) -> int:
    """How many of something: `small` in a small run."""
    return small if SMALL else usual


def add_row(
    what: str,
    ours: str,
    peer: str = "-",
    ratio: float | None = None,
    goal: str = "",
    *,
    met: bool | None = None,
) -> None:
    """A row of the table; `met` says whether the goal was, where there is one."""
    if met is not None:
        goal += ": met" if met else ": MISSED"
    rows.append((what, ours, peer, "-" if ratio is None else f"{ratio:.2f}x", goal or "-"))


def table() -> list[str]:
    """All rows in columns."""
    head = ("what", "ours", "peer", "ratio", "goal")
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(5)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (head, *rows)
    ]
    return [lines[0], "-+-".join("-" * width for width in widths), *lines[1:]]


def ms(seconds: float) -> str:
    """Milliseconds for eyes."""
    return f"{seconds * 1000:.1f} ms"


def percentile(values: list[float], part: float) -> float:
    """The value below which `part` of all lie."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def installed(program: str) -> str | None:
    """A program beside this Python, or on PATH."""
    return shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def wait_for(condition, what: str, timeout: float = 60.0, pause: float = 0.01):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout} s"
        time.sleep(pause)
    return found


# -- the stub ----------------------------------------------------------------------------------------------------------

STUB = r"""
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words) {  /* FILE: append the time; FILE stay: and live until killed */
    struct timespec now;
    char line[64];
    clock_gettime(CLOCK_REALTIME, &now);
    int length = snprintf(line, sizeof line, "%ld.%09ld\n", (long)now.tv_sec, now.tv_nsec);
    int file = open(words[1], O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write(file, line, length) != length) return 1;
    close(file);
    if (count > 2) pause();
    return 0;
}
"""


@dataclass(frozen=True)
class Stub:
    """How the stub is called; `compiled` is false where there is no gcc and a shell stands in."""

    words: tuple[str, ...]
    compiled: bool

    def command(self, out: Path | str, *, stay: bool = False) -> list[str]:
        """The stub's words for appending to `out`; a name without a slash is a file in the root's STAMPS."""
        place = out if os.sep in str(out) else Path(STAMPS, out)
        return [*self.words, str(place), *(["stay"] if stay else [])]

    def shell(self, out: Path) -> str:
        """The same for a shell."""
        return " ".join(self.command(out)) if self.compiled else f"date +%s.%N >> {out}"

    @property
    def note(self) -> str:
        """Said in the table where it is no C program."""
        return "" if self.compiled else f" (sh stub; gcc: {MISSING})"


def build_stub(folder: Path) -> Stub:
    """Compile the stub, or make one of a shell."""
    compiler = installed("gcc")
    if compiler is None:
        script = 'date +%s.%N >> "$0"; [ -z "$1" ] || exec sleep 100000'
        return Stub(("/bin/sh", "-c", script), compiled=False)
    source, program = folder / "stub.c", folder / "stub"
    source.write_text(STUB)
    subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return Stub((str(program),), compiled=True)


def times(out: Path) -> list[float]:
    """When stubs began that append to `out`, or to files in it."""
    if out.is_dir():
        return [one for path in out.iterdir() for one in times(path)]
    return [float(line) for line in out.read_text().splitlines()] if out.exists() else []


def timed_drop(folder: Path, name: str, out: Path, count: int) -> float:
    """Seconds from closing a file to the `count`-th start that `out` knows."""
    with (folder / name).open("w") as file:
        file.write(f"Do {name}\n")
        file.flush()
        closed = time.time()
    wait_for(lambda: len(times(out)) >= count, f"start {count} in {out.name}", pause=0.0005)
    return times(out)[count - 1] - closed


# -- roots -------------------------------------------------------------------------------------------------------------


def agent(name: str, command: list[str]) -> str:
    """An [agents.…] table."""
    return f'[agents.{name}]\ndriver = "command"\ncommand = {command!r}\n'


class Root:
    """A real repository with a real engine, driven by real commands."""

    def __init__(self, path: Path, toml: str) -> None:
        path.mkdir(parents=True)
        self.layout = Layout(path)
        subprocess.run(["git", "init", "-q", str(path)], check=True)
        self.layout.config.write_text(toml)
        self.stamps = path / STAMPS
        self.stamps.mkdir()

    def aipass(self, *words: str, check: bool = True, timeout: float = 110) -> subprocess.CompletedProcess:
        """A command in this root."""
        # Where this is set, each start of Python compiles everything, which is not what is measured.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run(
            [sys.executable, "-m", "aipass", *words],
            cwd=self.layout.root,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"aipass {words}: {done.stdout}{done.stderr}"
        return done

    def up(self) -> None:
        """A detached engine that has looked at all that was there."""
        self.aipass("up", "--detach")
        wait_for(lambda: self.ask("SELECT 1 FROM meta WHERE key = 'baseline'"), "the first scan")

    def down(self) -> None:
        """Nothing of ours lives on."""
        if self.layout.state.exists():
            self.aipass("down", "--kill", check=False)

    def ask(self, query: str) -> int:
        """One number from the ledger."""
        db = sqlite3.connect(f"file:{self.layout.ledger}?mode=ro", uri=True, timeout=10)
        try:
            found = db.execute(query).fetchone()
            return int(found[0]) if found else 0
        finally:
            db.close()

    def engine(self) -> int:
        """The engine's process."""
        holder = engine_lock.holder(self.layout)
        assert holder is not None
        return holder.pid

    def supervisor(self) -> int:
        """The supervisor's process."""
        mark = b"\0" + os.fsencode(self.layout.state) + b"\0"
        found = [pid for pid in process.table() if mark in command_line(pid)]
        assert len(found) == 1, found
        return found[0]


# -- processes ---------------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads: to the nanosecond from schedstat where the kernel has it, else in ticks from stat."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_share(pids: list[int], seconds: float) -> list[float]:
    """Of one core, in percent, over the next seconds, for each process."""
    began, before = time.monotonic(), [cpu_seconds(pid) for pid in pids]
    time.sleep(seconds)
    took = time.monotonic() - began
    return [(cpu_seconds(pid) - was) / took * 100 for pid, was in zip(pids, before, strict=True)]


def field_kb(path: str, name: str) -> int:
    """A field of a /proc file that is given in kB."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"{path} has no {name}")


def pss_mb(pid: int) -> float:
    """Proportional set size."""
    return field_kb(f"/proc/{pid}/smaps_rollup", "Pss") / 1024


def peak_mb(pid: int) -> float:
    """Largest resident set ever."""
    return field_kb(f"/proc/{pid}/status", "VmHWM") / 1024


def command_line(pid: int) -> bytes:
    """All of it; empty for a process that is gone. (`process.command_line` is for eyes, and cut off.)"""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill_session(started: subprocess.Popen) -> None:
    """End a process that we started as the head of its own session, and its children."""
    try:
        os.killpg(started.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of it ended already
    started.wait()
