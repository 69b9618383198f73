"""Plans that run, with a real engine and real agents: what one writes starts the next, and its paths are handed over."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time

import pytest
from fence_kit import NO_FENCE
from patience import PATIENCE
from repository import agent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(NO_FENCE), reason=f"there is no fence here: {NO_FENCE}"),
]
AGENTS = ("db", "api", "web")
# Each agent does what the script of its name says.
JOB = "import os, subprocess, sys\nsys.exit(subprocess.call(['sh', os.environ['AIPASS_AGENT'] + '.sh']))\n"


def read(repository, *words, check=0):
    return json.loads(repository.aipass(*words, "--json", check=check).stdout)


def events(repository):
    return [json.loads(line) for line in repository.aipass("events", "--json").stdout.splitlines()]


@pytest.fixture
def house(repository):
    repository.write("job.py", JOB)
    for name in AGENTS:
        repository.write(f"{name}.sh", "true\n")
    repository.write("aipass.toml", "".join(agent(name, "job.py", "retries = 0") for name in AGENTS))
    repository.write("app/keep", "")
    repository.aipass("init")
    repository.aipass("up", "--detach")
    return repository


def plan(repository, *phases, number="0001"):
    whole = {
        "id": number,
        "title": "Login",
        "phases": [{"task": f"Do {p['id']}", "settle": "100ms", **p} for p in phases],
    }
    repository.write(f"plans/{number}-login.json", json.dumps(whole))


def statuses(repository, number="1"):
    return {phase["id"]: phase["status"] for phase in read(repository, "plan", "status", number)["phases"]}


def until(repository, **wanted):
    repository.wait_for(lambda: wanted.items() <= statuses(repository).items(), f"{wanted}")


THREE = (
    {
        "id": "model",
        "agent": "db",
        "owns": ["/app/model"],
        "delivers": ["/app/model"],
        "checks": ["grep -q m app/model"],
    },
    {"id": "api", "agent": "api", "after": ["model"], "owns": ["/app/api"], "delivers": ["/app/api"]},
    {"id": "web", "agent": "web", "after": ["api"], "owns": ["/app/*.html"], "delivers": ["/app/*.html"]},
)


def test_what_one_writes_starts_the_next_and_the_first_cannot_write_it_any_more(house):
    house.write(
        "db.sh",
        "exec 5> app/model; echo m >&5; exec 5>&-; exec 5>> app/model; sleep 2; echo late >&5; echo late > app/model; true\n",
    )
    house.write("api.sh", "cat $AIPASS_PROMPT_FILE; echo a > app/api; sleep 2; echo late > app/api; true\n")
    house.write("web.sh", "echo w > app/page.html; echo x > app/model; true\n")
    plan(house, *THREE)
    assert house.aipass("plan", "start", "1").stdout == "plan 0001 is running: 3 phases\n"
    until(house, model="done", api="done", web="done")
    order = [(e["kind"], e["ref"]) for e in events(house) if e["kind"].startswith(("phase.", "plan."))]
    assert [ref for kind, ref in order if kind == "phase.started"] == ["0001/model", "0001/api", "0001/web"]
    assert order[0] == ("plan.started", "0001")
    assert order[-1] == ("plan.finished", "0001")
    # The first two lived on while the next worked; what they tried then went nowhere.
    house.wait_for(lambda: all(d["state"] == "succeeded" for d in read(house, "dispatches")))
    assert (house.root / "app/model").read_text() == "m\n"
    assert (house.root / "app/api").read_text() == "a\n"
    denied = {(e["path"], e["by"]) for e in events(house) if e["kind"] == "write.denied"}
    assert {("app/model", 1), ("app/api", 2), ("app/model", 3)} <= denied
    prompt = house.aipass("logs", "2").stdout
    assert "phase api of plan 0001, Login" in prompt
    assert "Delivered before by db (model):\n- app/model (1 line)" in prompt
    assert read(house, "plan", "status")[0]["status"] == "done"
    dispatch = read(house, "dispatches")[0]
    assert (dispatch["plan"], dispatch["phase"]) == ("0001", "model")


def test_a_phase_that_fails_stops_what_comes_after_it_and_resume_goes_on_from_there(house):
    house.write("db.sh", "test -e mended && echo m > app/model\n")
    house.write("api.sh", "echo a > app/api\n")
    plan(house, *THREE[:2])
    house.aipass("plan", "start", "1")
    until(house, model="failed", api="waiting")
    house.wait_for(lambda: read(house, "plan", "status", "1")["status"] == "failed")
    status = read(house, "status")
    assert any("phase model of plan 0001" in notice["text"] for notice in status["notices"]), status[
        "notices"
    ]
    house.write("mended", "")
    house.wait_for(lambda: read(house, "plan", "status", "1")["status"] == "failed")
    house.aipass("plan", "resume", "1")
    until(house, model="done", api="done")


def test_a_run_that_ends_without_delivering_fails_its_phase(house):
    house.write("db.sh", "true\n")
    plan(house, THREE[0])
    house.aipass("plan", "start", "1")
    until(house, model="failed")
    assert "without delivering /app/model" in read(house, "plan", "status", "1")["phases"][0]["reason"]


def test_a_failed_check_is_repeated_after_the_next_write(house):
    house.write("db.sh", "echo wrong > app/model; sleep 1; echo m > app/model; sleep 1\n")
    plan(house, THREE[0])
    house.aipass("plan", "start", "1")
    until(house, model="done")
    checks = [e["detail"]["exit"] for e in events(house) if e["kind"] == "check.finished"]
    assert checks == [1, 0]


def test_checks_may_not_write_the_tree(house):
    house.write("db.sh", "echo m > app/model; sleep 1\n")
    house.write(".gitignore", "/out/\n")
    plan(
        house, {**THREE[0], "checks": ["mkdir -p out && echo built > out/x && ! sh -c 'echo x > app/other'"]}
    )
    house.aipass("plan", "start", "1")
    until(house, model="done")
    assert (house.root / "out/x").read_text() == "built\n"
    assert not (house.root / "app/other").exists()


def test_a_plan_that_cannot_start_says_why(house):
    plan(house, {"id": "a", "agent": "db", "owns": ["/x/"]}, {"id": "b", "agent": "api", "owns": ["/x/y"]})
    done = house.aipass("plan", "start", "1", check=1)
    assert "overlap: a and b: both may write `x/y`" in done.stderr
    house.write("db.sh", "sleep 30\n")
    plan(house, {"id": "a", "agent": "db", "owns": ["/x/"]})
    plan(house, {"id": "b", "agent": "api", "owns": ["/x/y"]}, number="0002")
    house.aipass("plan", "start", "1")
    assert "of the running plan 0001 owns `x/y` as well" in house.aipass("plan", "start", "2", check=3).stderr
    assert "running already" in house.aipass("plan", "start", "1", check=3).stderr
    assert house.aipass("plan", "start", "7", check=2).returncode == 2


def test_a_plan_is_paused_resumed_and_stopped(house):
    house.write("db.sh", "echo m > app/model\n")
    house.write("api.sh", "echo a > app/api; sleep 30\n")
    plan(house, THREE[0], {**THREE[1], "handoff": "exit"})
    house.write("db.sh", "while ! test -e go; do sleep 0.05; done; echo m > app/model\n")
    house.aipass("plan", "start", "1")
    house.aipass("plan", "pause", "1")
    house.write("go", "")
    until(house, model="done", api="waiting")
    time.sleep(0.3)
    assert statuses(house)["api"] == "waiting"
    house.aipass("plan", "resume", "1")
    until(house, api="delivered")
    house.aipass("plan", "stop", "1")
    until(house, api="stopped")
    house.wait_for(lambda: read(house, "dispatches")[1]["state"] == "cancelled")
    assert house.aipass("plan", "pause", "1", check=1).returncode == 1


def test_a_phase_waits_while_another_run_holds_one_of_its_paths(house):
    house.write("web.sh", "echo held > app/model; while ! test -e go; do sleep 0.05; done\n")
    house.write("db.sh", "echo m > app/model\n")
    house.aipass("send", "web", "hold it")
    house.wait_for(lambda: (house.root / "app/model").exists())
    plan(house, THREE[0])
    house.aipass("plan", "start", "1")
    time.sleep(0.5)
    assert statuses(house) == {"model": "waiting"}
    assert (house.root / "app/model").read_text() == "held\n"
    house.write("go", "")
    until(house, model="done")


def test_an_agent_may_say_itself_that_it_is_done(house):
    house.write(
        "db.sh",
        "aipass deliver; echo early $?; echo m > app/model; sleep 0.2; aipass deliver; echo then $?; sleep 1\n",
    )
    plan(house, {**THREE[0], "settle": "1h"})
    house.aipass("plan", "start", "1")
    until(house, model="done")
    house.wait_for(lambda: read(house, "dispatches")[0]["state"] == "succeeded")
    assert house.aipass("logs", "1").stdout.split("\n")[0] == "early 3"
    assert "then 0" in house.aipass("logs", "1").stdout
    assert house.aipass("deliver", check=3).returncode == 3


def test_deliverables_that_git_ignores_count_and_a_least_number_is_asked_for(house):
    house.write(".gitignore", "/build/\n")
    house.write("db.sh", "mkdir -p build; echo 1 > build/one.o; sleep 1; echo 2 > build/two.o; sleep 2\n")
    plan(
        house,
        {"id": "model", "agent": "db", "owns": ["/build/"], "delivers": [{"path": "/build/*.o", "least": 2}]},
    )
    house.aipass("plan", "start", "1")
    until(house, model="done")
    assert read(house, "plan", "status", "1")["phases"][0]["delivered"] == ["build/one.o", "build/two.o"]


def test_a_plan_survives_kill_9_of_engine_and_supervisor(house):
    for name, path in (("db", "model"), ("api", "api"), ("web", "x.html")):
        house.write(f"{name}.sh", f"sleep 0.3; echo m > app/{path}; sleep 0.3\n")
    house.write("aipass.toml", "".join(agent(name, "job.py", "retries = 20") for name in AGENTS))
    house.aipass("reload")
    # Checks take long enough to be hit as well.
    plan(house, *({**phase, "checks": ["sleep 0.5"]} for phase in THREE))
    house.aipass("plan", "start", "1")
    for number in range(8):
        time.sleep(0.35)
        engine = json.loads((house.root / ".aipass/engine.lock").read_text())["pid"]
        os.kill(engine, signal.SIGKILL)
        if number % 2:
            for path in (house.root / ".aipass").glob("supervisor-*.lock"):
                os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)
        house.wait_for(
            lambda: house.aipass("up", "--detach", check=None).returncode == 0, "the engine's start"
        )
    house.wait_for(lambda: set(statuses(house).values()) == {"done"}, "the plan's end", timeout=PATIENCE)
    db = sqlite3.connect(f"file:{house.root}/.aipass/ledger.db?mode=ro", uri=True)
    count = dict(
        db.execute(
            "SELECT kind || ref, count(*) FROM events WHERE kind IN ('phase.done', 'plan.finished') GROUP BY 1"
        )
    )
    assert set(count.values()) == {1}, count


def test_a_rehearsal_shows_the_order_and_touches_nothing(house):
    plan(
        house,
        {"id": "a", "agent": "db", "owns": ["/x/"], "delivers": [{"path": "/x/*.py", "least": 3}]},
        {"id": "b", "agent": "api", "owns": ["/y"], "delivers": ["/y"]},
        {
            "id": "c",
            "agent": "web",
            "after": ["a", "b"],
            "owns": ["/z/**/t_*.c"],
            "delivers": ["/z/**/t_*.c"],
            "checks": ["false"],
        },
    )
    before = sorted(str(path) for path in house.root.rglob("*") if ".aipass" not in path.parts)
    told = read(house, "plan", "rehearse", "1")
    assert (told["status"], told["width"], told["critical"]) == ("done", 2, ["a", "c"])
    assert [phase["status"] for phase in told["phases"]] == ["done"] * 3
    assert told["phases"][2]["started"] >= max(phase["done"] for phase in told["phases"][:2])
    assert sorted(str(path) for path in house.root.rglob("*") if ".aipass" not in path.parts) == before
    assert "longest chain: a -> c" in house.aipass("plan", "rehearse", "1").stdout


def test_what_has_not_begun_may_be_changed_and_the_rest_not(house):
    house.write("db.sh", "while ! test -e go; do sleep 0.05; done; echo m > app/model\n")
    house.write("web.sh", "echo w > app/new\n")
    plan(house, *THREE[:2])
    house.aipass("plan", "start", "1")
    until(house, model="running")
    plan(house, {**THREE[0], "owns": ["/app/"]}, THREE[1])
    house.wait_for(
        lambda: any("phase model is running already" in n["text"] for n in read(house, "status")["notices"])
    )
    plan(
        house,
        THREE[0],
        {"id": "web", "agent": "web", "after": ["model"], "owns": ["/app/new"], "delivers": ["/app/new"]},
    )
    house.wait_for(lambda: set(statuses(house)) == {"model", "web"})
    house.write("go", "")
    until(house, model="done", web="done")
    assert (house.root / "app/new").read_text() == "w\n"
