"""The bench that authors of plugins test with: each of its ways in and out, and the whole engine on it."""

from __future__ import annotations

import re
import subprocess

from paths import ROOT

from aipass import Fact
from aipass.features.ownership import layers
from aipass.testing import Bench

TOML = '[agents.w]\ndriver = "command"\ncommand = ["cat"]\nowns = ["src/"]\n'


def test_a_fact_is_told_as_a_source_tells_it(aipass_bench):
    bench = aipass_bench(TOML)
    assert bench.tell(Fact("git.commit", "mine", ref="abc")).source == "mine"
    assert bench.tell("git.commit", ref="def").source == "test"


def test_what_a_run_writes_is_its_own(aipass_bench, monkeypatch):
    monkeypatch.setattr(layers, "active", lambda _: layers.Active(fence=True, wall=False))
    bench = aipass_bench(TOML)
    bench.ask("send", agent="w", text="go")
    bench.drop("src/a.py", "x", by=1)
    bench.drop("src/b.py", "x")
    assert [(one.path, one.by) for one in bench.events("file.closed")] == [
        ("src/a.py", 1),
        ("src/b.py", None),
    ]


def test_git_state_and_mail_are_there_where_the_whole_is_wanted(tmp_path):
    for words in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    bench = Bench(tmp_path, TOML, whole=True)
    bench.ask("send", agent="w", text="go")
    bench.drop("src/a.py", "x = 1\n", by=1)
    opened = bench.ask("pr", do="open", title="Mine", by=1)
    assert opened["exit"] == 0, opened["message"]
    bench.finish(1, "done")
    merged = bench.ask("pr", do="merge", ids=[1])
    assert "is merged as" in merged["message"]
    assert bench.events("pr.merged")
    noted = bench.ask("note", agent="w", do="learning", text="a port is free")
    assert noted["exit"] == 0, noted["message"]
    assert "a port is free" in (tmp_path / ".aipass/agents/w/.trinity/local.json").read_text()
    bench.restart()
    assert bench.dispatch(1)["state"] == "succeeded"
    bench.close()


def test_every_way_in_and_out_stands_in_the_docs():
    page = (ROOT / "docs/plugins.md").read_text()
    public = [name for name in vars(Bench) if not name.startswith("_")]
    assert len(public) > 12
    missing = [name for name in public if not re.search(rf"`(bench\.)?{name}\b", page)]
    assert not missing
