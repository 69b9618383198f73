"""100,000 small files at once: all are known in the end."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from benchmarks import kit

pytestmark = pytest.mark.bench

FILES, FOLDERS = kit.size(100_000, 2000), kit.size(100, 10)

WRITER = """\
import os, sys
top, files, folders = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for n in range(files):
    handle = os.open(f"{top}/d{n % folders}/f{n}.txt", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(handle, b"x")
    os.close(handle)
"""

# Says how many files it was told of and when the last came, once nothing came for a while.
WATCHER = """\
import sys, time
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer

seen, last = set(), [0.0]

class Count(FileSystemEventHandler):
    def on_closed(self, event):
        seen.add(event.src_path)
        last[0] = time.time()

observer = Observer()
observer.schedule(Count(), sys.argv[1], recursive=True)
observer.start()
print("ready", flush=True)
sys.stdin.readline()
while len(seen) < int(sys.argv[2]) and time.time() - last[0] < 3:
    time.sleep(0.05)
print(len(seen), last[0], flush=True)
"""


def make_folders(top) -> None:
    for n in range(FOLDERS):
        (top / f"d{n}").mkdir(parents=True)


def write_files(top) -> float:
    """The storm; returns when it began."""
    began = time.time()
    subprocess.run([sys.executable, "-c", WRITER, str(top), str(FILES), str(FOLDERS)], check=True)
    return began


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_storm(root, row, spawn, tmp_path):
    repo = root(kit.agent("w", ["true"]))
    top = repo.layout.root / "src"
    make_folders(top)
    repo.up()
    began = write_files(top)
    wrote = time.time() - began
    known = "SELECT count(*) FROM files WHERE dir >= 'src/' AND dir < 'src0' AND ino IS NOT NULL"
    known = known.replace("'src/'", "CAST('src/' AS BLOB)").replace("'src0'", "CAST('src0' AS BLOB)")
    kit.wait_for(lambda: repo.ask(known) == FILES, "the knowledge of all files", timeout=150, pause=0.2)
    ours = FILES / (time.time() - began)
    peak = kit.peak_mb(repo.engine())
    closed = repo.ask("SELECT count(*) FROM events WHERE kind = 'file.closed' AND path GLOB 'src/*'")
    overflows = repo.ask("SELECT count(*) FROM events WHERE kind = 'watch.overflow'")
    assert closed == FILES
    repo.down()

    other = tmp_path / "watchdog"
    make_folders(other)
    watcher = spawn(
        [sys.executable, "-c", WATCHER, str(other), str(FILES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdout.readline() == "ready\n"
    began = write_files(other)
    watcher.stdin.write("\n")
    watcher.stdin.flush()
    count, last = watcher.stdout.readline().split()
    watcher.stdin.close()
    watcher.stdout.close()
    peer = int(count) / (float(last) - began)
    row(
        f"storm of {FILES:,} files in {FOLDERS} folders; peer: watchdog Observer",
        f"{ours:,.0f}/s, all {FILES:,}",
        f"{peer:,.0f}/s, {int(count):,} received",
        ours / peer,
    )
    row("storm: peak RSS of the engine", f"{peak:.0f} MB")
    row("storm: overflows of the kernel's queue; written in", f"{overflows}; {wrote:.1f} s")
