"""An engine whose folder, or record, is moved or removed; and a copy of a repository at work."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import suppress

import pytest
from patience import until
from repository import Repository, agent

from aipass.sources.home import Home
from aipass.supervisor import hold, process
from aipass.workspace.layout import Layout


def lives(pid: int) -> bool:
    found = process.look(pid)
    return found is not None and found.state not in "ZX"


def engine_of(repository) -> int:
    return int(hold.holder(Layout(repository.root).engine_lock)["pid"])


def take_away(root):
    shutil.rmtree(root / ".aipass", ignore_errors=True)


def clean(root):
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "clean", "-ffdxq", "-e", "aipass.toml", "-e", "w.py"], cwd=root, check=False)


def rename(root):
    root.rename(root.with_name("elsewhere"))
    root.mkdir()
    for name in ("aipass.toml", "w.py"):
        shutil.copy(root.with_name("elsewhere") / name, root / name)


def take_ledger(root):
    (root / ".aipass/ledger.db").unlink()


@pytest.mark.parametrize("deed", [take_away, clean, rename, take_ledger], ids=lambda one: one.__name__)
def test_an_engine_whose_record_is_gone_ends_and_the_next_does_each_thing_once(repository, deed):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("w.py", "print('done')")
    repository.aipass("up", "--detach", "--yes")
    old = engine_of(repository)
    deed(repository.root)
    repository.wait_for(lambda: not lives(old), "the end of the old engine")
    repository.aipass("up", "--detach", "--yes")
    for number in range(4):
        repository.aipass("send", "w", f"task {number}", "--wait")
    assert len(list((repository.root / "outbox/w").glob("*.json"))) == 4


def test_a_copy_of_a_repository_at_work_is_another_repository(repository, tmp_path):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write(
        "w.py", "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)\nprint('done')"
    )
    repository.aipass("up", "--detach", "--yes")
    repository.aipass("send", "w", "slow")
    repository.wait_for(lambda: "1 running" in repository.aipass("status").stdout, "the run")
    # The engine works meanwhile, and removes what it has read.
    with suppress(shutil.Error):
        shutil.copytree(
            repository.root,
            tmp_path / "copy",
            symlinks=True,
            ignore=lambda folder, names: [n for n in names if n.endswith(".sock")],
        )
    copy = Repository(tmp_path / "copy")
    assert "not running" in copy.aipass("status").stdout
    copy.aipass("up", "--detach", "--yes")
    copy.aipass("down", "--kill")
    (repository.root / "go").write_text("")
    repository.answer("w/*.json")
    assert '"succeeded"' in repository.answer("w/*.json").read_text()
    assert lives(engine_of(repository))


def test_a_hold_counts_in_the_folder_that_it_was_made_in(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    with_it = hold.take(here / "x.lock")
    shutil.copytree(here, there)
    assert hold.holder(there / "x.lock") is None
    here.rename(tmp_path / "moved")
    assert hold.holder(tmp_path / "moved/x.lock") is None
    with_it.release()


def test_without_a_kernel_that_tells_it_is_looked_for(tmp_path, monkeypatch):
    from aipass.sources import home, inotify

    def none(*_):
        raise OSError("no inotify")

    monkeypatch.setattr(inotify, "Inotify", none)
    monkeypatch.setattr(home, "LOOK_S", 0.02)
    layout = Layout(tmp_path)
    layout.state.mkdir()
    told = []
    source = Home(layout)
    source.start(told.extend)
    time.sleep(0.05)
    assert not told
    layout.state.rename(tmp_path / "away")
    until(lambda: told)
    assert str(layout.state) in told[0].reason
    source.stop()
