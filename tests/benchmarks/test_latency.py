"""From a finished file, or a request, to the first instruction of an agent."""

from __future__ import annotations

import statistics
import sys
import time

import pytest

from aipass.core import requests as request
from benchmarks import kit

pytestmark = pytest.mark.bench

DROPS, WARM_UP, PAUSE_S = kit.size(40, 4), kit.size(5, 1), 0.03
TASKS, TASK_PAUSE_S = kit.size(15, 2), 0.5


def test_from_a_closed_file_to_the_agent(root, stub, spawn, row, tmp_path):
    repo = root(kit.agent("w", stub.command("w")) + kit.MANY_RUNS)
    repo.up()
    outs = {"ours": repo.stamps / "w"} | {
        name: tmp_path / f"{name}.out" for name in ("inotifywait", "watchmedo")
    }
    folders = {"ours": repo.layout.inbox / "w"}
    if (program := kit.installed("inotifywait")) is not None:
        folders["inotifywait"] = tmp_path / "inotifywait"
        loop = (
            f"{program} -q -m -e close_write {folders['inotifywait']}"
            f" | while read x; do {stub.shell(outs['inotifywait'])}; done"
        )
        folders["inotifywait"].mkdir()
        spawn(["/bin/sh", "-c", loop])
    if (program := kit.installed("watchmedo")) is not None:
        folders["watchmedo"] = tmp_path / "watchmedo"
        folders["watchmedo"].mkdir()
        # It starts a shell for every kind of event; only that of the close goes on to the stub.
        command = f"[ ${{watch_event_type}} = closed ] && {stub.shell(outs['watchmedo'])}"
        spawn([program, "shell-command", "-D", "-c", command, str(folders["watchmedo"])])
    time.sleep(2)  # no peer says when it is ready
    took: dict[str, list[float]] = {name: [] for name in folders}
    for number in range(DROPS + WARM_UP):
        for name, folder in folders.items():
            took[name].append(kit.timed_drop(folder, f"{number}.md", outs[name], number + 1))
            time.sleep(PAUSE_S)
    for name in folders:
        assert len(kit.times(outs[name])) == DROPS + WARM_UP
        took[name] = took[name][WARM_UP:]
    for title, part in (("p50", 0.5), ("p95", 0.95)):
        ours = kit.percentile(took["ours"], part)
        for peer in ("inotifywait", "watchmedo"):
            what = f"file closed -> agent, {title}, vs {peer}{stub.note}"
            if peer not in took:
                row(what, kit.ms(ours), kit.MISSING)
                continue
            other = kit.percentile(took[peer], part)
            ratio = ours / other
            if peer == "inotifywait":
                row(what, kit.ms(ours), kit.ms(other), ratio, "<= 3x", met=ratio <= 3)
            else:
                row(what, kit.ms(ours), kit.ms(other), ratio)


HUEY = """\
import time
from huey import SqliteHuey

huey = SqliteHuey(filename={db!r})


@huey.task()
def begin(out):
    now = time.time()
    with open(out, "a") as file:
        file.write(f"{{now:.9f}}\\n")
"""


def test_from_a_request_to_the_agent(root, stub, spawn, row, tmp_path, monkeypatch):
    repo = root(kit.agent("w", stub.command("w")) + kit.MANY_RUNS)
    repo.up()
    outs = {"ours": repo.stamps / "w", "huey": tmp_path / "huey.out"}

    def ours(number: int) -> None:
        request.write(repo.layout.human_spool(), "send", agent="w", text=f"Do {number}")

    asked = {"ours": ours}
    if (consumer := kit.installed("huey_consumer")) is not None:
        (tmp_path / "bench_huey.py").write_text(HUEY.format(db=str(tmp_path / "huey.db")))
        monkeypatch.syspath_prepend(str(tmp_path))
        import bench_huey

        spawn([sys.executable, consumer, "bench_huey.huey", "-w", "1"], cwd=tmp_path)
        asked["huey"] = lambda number: bench_huey.begin(str(outs["huey"]))
        time.sleep(2)
    took: dict[str, list[float]] = {name: [] for name in asked}
    for number in range(TASKS + 1):
        for name, ask in asked.items():
            # Huey polls, and ever more slowly; a pause that is no multiple of its delay.
            time.sleep(TASK_PAUSE_S * (0.7 + 0.6 * (number * 7 % TASKS) / TASKS))
            out, began = outs[name], time.time()
            ask(number)
            kit.wait_for(lambda out=out, n=number: len(kit.times(out)) > n, f"{name} {number}", pause=0.0005)
            took[name].append(kit.times(out)[number] - began)
    for name in asked:
        assert len(kit.times(outs[name])) == TASKS + 1
    mine = statistics.median(took["ours"][1:])
    what = f"request -> start, p50, vs huey/SQLite{stub.note}"
    if "huey" in took:
        other = statistics.median(took["huey"][1:])
        row(what, kit.ms(mine), kit.ms(other), mine / other)
        sys.modules.pop("bench_huey", None)
    else:
        row(what, kit.ms(mine), kit.MISSING)
