"""The engine encloses itself: what stands behind everything else, tried for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from git_kit import git
from repository import agent

from aipass.config import reading
from aipass.features.ownership import confine
from aipass.supervisor import hold
from aipass.workspace.layout import Layout

pytestmark = pytest.mark.skipif(not confine.is_possible(), reason="this kernel has no Landlock")

PLUGIN = """
import os, threading
from aipass import Fact, hookimpl
class Source:
    name = "tricked"
    def start(self, tell):
        found = []
        for path in {paths!r}:
            try:
                with open(path, "a") as file: file.write("x")
                found.append(path)
            except OSError: pass
        open({log!r}, "w").write("\\n".join(found))
    def stop(self): pass
@hookimpl
def register_sources(root, config): return [Source()]
"""


def test_what_is_enclosed_writes_nothing_outside(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "there").write_text("another's")
    assert confine.breaks_out([str(inside)], outside) == []
    assert (outside / "there").read_text() == "another's"
    through = confine.breaks_out([str(inside), str(outside)], outside)
    assert "writing a file" in through, "and it is the enclosure that stops it"


def test_what_the_engine_may_write_is_the_root_its_git_folders_and_what_settings_name(tmp_path, monkeypatch):
    top, tree = tmp_path / "top", tmp_path / "tree"
    top.mkdir()
    git(top, "init", "-q")
    git(top, "commit", "-q", "--allow-empty", "-m", "x")
    git(top, "worktree", "add", "-q", str(tree))
    (tmp_path / "cargo").mkdir()
    layout = Layout(tree.resolve())
    text = f'[sandbox]\nwrite = ["{tmp_path}/cargo/"]\n'
    found = confine.writable(layout, reading.parse(text))
    assert {
        str(layout.root),
        str(top / ".git"),
        str(top / ".git/worktrees/tree"),
        f"{tmp_path}/cargo",
    } <= set(found)
    assert not {"/tmp", os.environ["HOME"]} & set(found)
    (Path(os.environ["HOME"]) / ".ssh").mkdir()
    (Path(os.environ["HOME"]) / ".ssh/known_hosts").write_text("")
    assert os.path.expanduser("~/.ssh/known_hosts") not in found
    assert os.path.expanduser("~/.ssh/known_hosts") in confine.writable(
        layout, reading.parse('[pr]\nforge = "gh"\n')
    )


def test_an_engine_that_is_tricked_writes_nothing_outside(repository, tmp_path):
    """A plugin stands for whatever could go wrong: it runs in the engine, and tries what no engine should do."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    ours = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (site / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    home = Path(os.environ["HOME"])
    (home / ".bashrc").write_text("")
    allowed = [
        str(repository.root / "in the tree"),
        str(repository.root / ".git/x"),
        str(repository.root / ".aipass/x"),
    ]
    refused = [
        str(home / ".bashrc"),
        str(home / "new"),
        str(tmp_path / "beside"),
        "/tmp/aipass-confine-test",
        "/var/tmp/aipass-confine-test",
    ]
    log = repository.root / ".aipass/tricked"
    (site / "tricked.py").write_text(PLUGIN.format(paths=[*allowed, *refused], log=str(log)))
    info = site / "tricked-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: tricked\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[aipass]\ntricked = tricked\n")
    repository.python = str(venv / "bin/python")
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("w.py", "print('w')")
    repository.aipass("up", "--detach")
    repository.wait_for(log.exists, "the plugin's word")
    assert log.read_text().splitlines() == allowed
    assert (home / ".bashrc").read_text() == ""
    repository.aipass("send", "w", "one", "--wait")


def test_a_supervisor_that_was_killed_is_started_anew_outside_the_enclosure(repository, tmp_path):
    """Runs write where their own fence lets them, which an enclosed engine may not: their supervisor must not inherit it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    repository.write(
        "w.py",
        f"import os; open(os.environ['TMPDIR'] + '/x', 'w').write('x'); open('/tmp/aipass-confine-{os.getpid()}', 'w'); os.unlink('/tmp/aipass-confine-{os.getpid()}'); print('wrote')",
    )
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.aipass("up", "--detach")
    assert "wrote" in repository.aipass("send", "w", "one", "--wait").stdout
    (lock,) = (repository.root / ".aipass").glob("supervisor-*.lock")
    os.kill(json.loads(lock.read_text())["pid"], 9)
    assert "wrote" in repository.aipass("send", "w", "two", "--wait").stdout
    engine = hold.holder(Layout(repository.root).engine_lock)["pid"]
    assert "NoNewPrivs:\t1" in Path(f"/proc/{engine}/status").read_text()
    repository.aipass("down")
    repository.wait_for(
        lambda: not any("--ready-fd" in line for line in lines_of_pids(repository)), "the end of the launcher"
    )


def lines_of_pids(repository):
    found = []
    for pid in repository.pids():
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text(errors="replace"))
        except OSError:
            continue
    return found
