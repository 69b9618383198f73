"""Where there is no fence: changes of what belongs to others are told, and nobody's work is put back or lost."""

from __future__ import annotations

import pytest

from aipass.features.ownership import layers
from aipass.testing.bench import Bench

TOML = """
[agents.api]
driver = "command"
command = ["x"]
owns = ["/api/"]

[agents.web]
driver = "command"
command = ["x"]
owns = ["/web/"]
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "active", lambda _: layers.Active(fence=False, wall=False))
    bench = Bench(tmp_path, TOML)
    yield bench
    bench.close()


def foreign(bench):
    return [(event.path, event.detail["owner"]) for event in bench.events("write.foreign")]


def test_a_change_of_what_no_live_run_may_write_is_told_with_who_it_can_have_been(bench):
    bench.ask("send", agent="web", text="work")
    bench.drop("api/main.py", "wrong\n")
    bench.drop("web/page.html")
    bench.drop("elsewhere.txt")
    [event] = bench.events("write.foreign")
    assert (event.path, event.by) == ("api/main.py", None)
    assert event.detail["owner"] == "api"
    assert event.detail["runs"] == [{"run": 1, "agent": "web"}]
    assert (bench.layout.root / event.detail["kept"]).read_text() == "wrong\n"
    assert (bench.layout.root / "api/main.py").read_text() == "wrong\n"
    [notice] = bench.notices()
    assert "by you or by run 1 of web" in notice


def test_what_its_owner_may_have_written_and_what_nobody_runs_for_is_no_news(bench):
    bench.drop("api/before", "x")
    bench.ask("send", agent="web", text="work")
    bench.ask("send", agent="api", text="work")
    bench.drop("api/main.py", "right\n")
    assert foreign(bench) == []
    bench.finish(2)
    (bench.layout.root / "api/main.py").unlink()
    bench.see("api/main.py")
    assert foreign(bench) == [("api/main.py", "api")]
    bench.finish(1)
    bench.drop("api/after", "x")
    assert len(foreign(bench)) == 1


def test_a_storm_is_one_notice_in_a_minute(bench):
    bench.ask("send", agent="web", text="work")
    for number in range(30):
        bench.drop(f"api/{number}", "x")
    assert (len(foreign(bench)), len(bench.notices())) == (30, 1)
    bench.advance(61)
    bench.drop("api/later", "x")
    assert len(bench.notices()) == 2


def test_with_a_fence_nobody_needs_to_guess(bench, monkeypatch):
    monkeypatch.setattr(layers, "active", lambda _: layers.Active(fence=True, wall=True))
    bench.ask("send", agent="web", text="work")
    bench.drop("api/main.py", "a person's")
    assert foreign(bench) == []
