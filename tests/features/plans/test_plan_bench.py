"""Plans on the bench: scripted runs, simulated time; what follows from what, and that no order of things leaves a plan stuck."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import rounds

from aipass.features.memory.recall import recall
from aipass.features.ownership import layers
from aipass.testing.bench import Bench
from aipass.workspace.layout import CHECKS

AGENTS = ("db", "api", "web")
TOML = "".join(f'[agents.{name}]\ndriver = "command"\ncommand = ["x"]\n' for name in AGENTS)
MODEL = {"id": "model", "agent": "db", "owns": ["/app/model"], "delivers": ["/app/model"]}
API = {"id": "api", "agent": "api", "after": ["model"], "owns": ["/app/api"], "delivers": ["/app/api"]}


@pytest.fixture(autouse=True)
def with_a_fence(monkeypatch):
    """As where there is one: the journals say who wrote what."""
    monkeypatch.setattr(layers, "active", lambda _: layers.Active(fence=True, wall=False))


class House:
    """A bench with plans."""

    def __init__(self, root, toml=TOML):
        self.bench = Bench(root, toml)
        self.runner = self.bench.runner
        self.wrote = 0
        #: What runs outside the plan have written first, as patterns.
        self.held = {}

    def plan(self, *phases, number="0001", see=False):
        whole = {
            "id": number,
            "title": "Login",
            "phases": [{"task": f"Do {p['id']}", **p} for p in phases],
        }
        folder = self.bench.layout.plans
        folder.mkdir(exist_ok=True)
        (folder / f"{number}-login.json").write_text(json.dumps(whole))
        if see:
            self.bench.see(f"plans/{number}-login.json")

    def steer(self, verb, number="0001", by=None):
        row = self.bench.ask("plan", do=verb, id=number, by=by)
        return row["exit"], row["message"]

    def start(self, *phases):
        self.plan(*phases)
        code, text = self.steer("start")
        assert code == 0, text

    def write(self, run, path, what="write"):
        """As the fence does: the journal first."""
        with open(self.bench.layout.run(run) / "writes.jsonl", "a") as journal:
            journal.write(json.dumps([what, 1, path]) + "\n")
        target = self.bench.layout.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{run}\n")
        self.wrote += 1
        os.utime(target, (1, self.wrote))
        self.bench.see(path)

    def states(self, number="0001"):
        return {row["id"]: row["state"] for row in self.bench.ledger.all("phases_of", {"plan": number})}

    def state(self, number="0001"):
        return self.bench.ledger.one("plan", {"id": number})["state"]

    def checks(self):
        return [run for run in self.bench.running() if run >= CHECKS]

    def runs(self):
        return [run for run in self.bench.running() if run < CHECKS]

    def deliver(self, run, path):
        self.write(run, path)
        self.bench.advance(1)


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    yield house
    house.bench.close()


def test_a_check_that_was_lost_is_run_again(house):
    house.start({**MODEL, "checks": ["true"]})
    house.deliver(1, "app/model")
    [first] = house.checks()
    house.bench.finish(first, outcome="lost")
    [second] = house.checks()
    assert second != first
    house.bench.finish(second)
    assert house.states() == {"model": "done"}


def test_a_check_that_no_supervisor_knows_is_begun_when_the_engine_starts(house):
    house.start({**MODEL, "checks": ["true"]})
    house.deliver(1, "app/model")
    [check] = house.checks()
    del house.runner.started[check]
    assert not house.bench.engine.is_idle()
    house.bench.restart()
    assert house.checks() == [check]
    house.bench.finish(check)
    assert house.states() == {"model": "done"}


def test_a_check_that_ended_while_no_engine_ran_counts(house):
    house.start({**MODEL, "checks": ["true"]})
    house.deliver(1, "app/model")
    [check] = house.checks()
    house.runner._tell = lambda _: None
    house.runner.finish(check)
    house.bench.restart()
    assert house.states() == {"model": "done"}


def test_a_check_whose_start_has_to_wait_is_started_later(house):
    house.start({**MODEL, "checks": ["true"]})
    house.deliver(1, "app/model")
    [check] = house.checks()
    del house.runner.started[check]
    house.runner._report({"tell": "busy", "run": check, "reason": "its lock is held"})
    house.bench.settle()
    assert house.checks() == []
    house.bench.advance(1)
    assert house.checks() == [check]


def test_what_is_written_during_a_check_is_checked_again(house):
    house.start({**MODEL, "checks": ["true"]})
    house.deliver(1, "app/model")
    [first] = house.checks()
    house.write(1, "app/model")
    assert house.runner.stopped[first][0] == "cancelled"
    house.bench.finish(first)  # it had passed already
    assert house.states() == {"model": "delivered"}
    house.bench.advance(1)
    [second] = house.checks()
    house.bench.finish(second)
    assert house.states() == {"model": "done"}


def test_a_file_that_is_being_written_again_is_not_handed_over(house):
    house.start(MODEL)
    house.write(1, "app/model")
    path = house.bench.layout.root / "app/model"
    with open(house.bench.layout.run(1) / "writes.jsonl", "a") as journal:
        journal.write(json.dumps(["write", 1, "app/model"]) + "\n")
    with open(path, "w") as file:
        house.bench.advance(5)
        assert house.states() == {"model": "running"}
        file.write("whole")
    house.bench.see("app/model")
    os.utime(path, (1, 1))
    house.bench.advance(5)
    assert house.states() == {"model": "done"}


def test_modes_and_removed_names_are_no_deliveries(house):
    house.start({**MODEL, "owns": ["/app/"], "delivers": ["/app/*"]})
    house.write(1, "app/temporary")
    (house.bench.layout.root / "app/temporary").unlink()
    house.bench.see("app/temporary")
    (house.bench.layout.root / "app/older").write_text("a person's")
    with open(house.bench.layout.run(1) / "writes.jsonl", "a") as journal:
        journal.write(json.dumps(["change", 1, "app/older"]) + "\n")
    house.bench.advance(5)
    assert house.states() == {"model": "running"}
    house.deliver(1, "app/model")
    assert house.states() == {"model": "done"}


def test_a_chain_of_many_phases_is_no_chain_of_agents_waking_agents(house):
    phases = [
        {"id": f"p{n}", "agent": AGENTS[n % 3], "owns": [f"/{n}"], "delivers": [f"/{n}"]}
        | ({"after": [f"p{n - 1}"]} if n else {})
        for n in range(12)
    ]
    house.start(*phases)
    for number in range(12):
        house.deliver(number + 1, str(number))
        house.bench.finish(number + 1)
    assert house.state() == "done"


def test_a_plan_is_a_part_of_the_chain_that_its_starter_stands_in(tmp_path):
    house = House(tmp_path, 'orchestrator = "db"\n' + TOML + "[limits]\nhops = 1\n")
    house.plan(MODEL)
    house.bench.ask("send", agent="db", text="start it")
    assert house.steer("start", by=1) == (0, "plan 0001 is running: 1 phase")
    house.bench.finish(1)
    assert house.runs() == [2]
    code, text = house.steer("start", by=2)
    assert (code, text.split(";")[0]) == (3, "plan 0001 is running already")
    house.plan({**MODEL, "agent": "api", "owns": ["/other"], "delivers": []}, number="0002")
    code, text = house.steer("start", "0002", by=2)
    assert code == 3
    assert "a chain of 2 agents" in text
    house.bench.close()


def test_a_phase_whose_work_is_refused_fails_and_says_why(house):
    house.start(MODEL, API)
    house.bench.layout.config.write_text(TOML.replace("[agents.api]", "[agents.other]"))
    house.bench.ask("reload")
    house.deliver(1, "app/model")
    assert house.states() == {"model": "done", "api": "failed"}
    assert any("there is no agent `api`" in text for text in house.bench.notices())
    house.bench.finish(1)
    assert house.state() == "failed"


def test_an_agent_that_says_deliver_is_handed_over_whatever_its_handoff(house):
    house.start({**MODEL, "handoff": "exit"}, API)
    house.deliver(1, "app/model")
    assert house.states()["model"] == "delivered"
    assert house.bench.ask("deliver", by=1)["exit"] == 0
    assert house.states() == {"model": "done", "api": "running"}
    assert house.runner.territory["handed"] == [{"run": 1, "owns": ["/app/model"]}]


def test_the_last_phase_is_handed_over_as_well(house):
    house.start(MODEL)
    house.deliver(1, "app/model")
    assert house.state() == "done"
    assert house.runner.territory["handed"] == [{"run": 1, "owns": ["/app/model"]}]
    assert house.runner.territory["table"]["phases"] == []


def test_a_failed_plan_goes_on_with_its_file_as_it_is_now(house):
    house.start(MODEL, API)
    house.bench.finish(1)
    assert house.state() == "failed"
    house.plan({**MODEL, "task": "Do it in another way"}, {**API, "owns": ["/app/x"]})
    code, text = house.steer("resume")
    assert code == 1
    assert "not-owned" in text
    house.plan({**MODEL, "task": "Do it in another way"}, API)
    assert house.steer("resume")[0] == 0
    assert "another way" in house.runner.prompt(2)
    house.deliver(2, "app/model")
    assert house.states() == {"model": "done", "api": "running"}
    house.bench.finish(3)
    house.plan({**MODEL, "task": "again?"}, API)
    code, text = house.steer("resume")
    assert (code, text) == (3, "plan 0001 cannot resume: phase model is done already; undo its change")


def test_a_plan_cannot_go_on_where_another_has_taken_its_ground(house):
    house.start(MODEL)
    house.bench.finish(1)
    house.plan({**MODEL, "agent": "web"}, number="0002")
    assert house.steer("start", "0002")[0] == 0
    code, text = house.steer("resume")
    assert code == 3
    assert "0002" in text


def test_a_failed_phase_is_tried_again_while_the_rest_of_its_plan_runs(house):
    house.start(MODEL, {**API, "after": []})
    house.bench.finish(1)
    assert house.states() == {"model": "failed", "api": "running"}
    assert house.state() == "running"
    assert house.steer("resume") == (0, "plan 0001 is running")
    assert house.states() == {"model": "running", "api": "running"}


def test_what_waits_for_its_agent_is_paused_with_its_plan(house):
    house.bench.ask("send", agent="db", text="something long")
    house.start(MODEL)
    assert house.states() == {"model": "ready"}
    house.steer("pause")
    assert house.states() == {"model": "waiting"}
    house.bench.finish(1)
    assert house.runs() == []
    house.steer("resume")
    assert house.states() == {"model": "running"}


def test_a_stopped_plan_that_goes_on_does_not_join_the_run_that_is_being_stopped(house):
    house.start(MODEL)
    house.steer("stop")
    assert house.runner.stopped[1][0] == "cancelled"
    house.steer("resume")
    assert house.states() == {"model": "ready"}
    house.bench.finish(1, outcome="cancelled")
    assert house.runs() == [2]
    assert house.states() == {"model": "running"}


def test_stopping_ends_what_is_queued_and_what_is_checked(house):
    house.bench.ask("send", agent="api", text="something long")
    house.start({**MODEL, "checks": ["true"]}, {**API, "after": []})
    house.deliver(2, "app/model")
    [check] = house.checks()
    house.steer("stop")
    assert house.runner.stopped[check][0] == "cancelled"
    finished = [e for e in house.bench.events("dispatch.finished") if e.detail["state"] == "cancelled"]
    assert [e.detail["reason"] for e in finished] == ["plan 0001 was stopped"]
    house.bench.finish(check, outcome="cancelled")
    assert house.states() == {"model": "stopped", "api": "stopped"}


def test_the_work_of_a_phase_is_tried_again_by_its_plan_only(house):
    house.start(MODEL)
    house.bench.finish(1)
    dispatch = house.bench.dispatches()[0]["id"]
    reply = house.bench.ask("retry", id=str(dispatch))
    assert reply["exit"] == 3
    assert "aipass plan resume 0001" in reply["message"]


def test_a_lost_run_is_not_tried_again_once_its_phase_is_done(house):
    house.start({**MODEL, "checks": ["true"]})
    house.deliver(1, "app/model")
    [check] = house.checks()
    house.bench.finish(1, outcome="lost")
    assert house.bench.dispatches()[0]["state"] == "queued"
    house.bench.finish(check)
    assert house.states() == {"model": "done"}
    house.bench.advance(3600)
    assert house.runs() == []
    assert house.bench.dispatches()[0]["state"] == "cancelled"


def test_somebody_elses_dispatch_of_the_same_key_is_not_taken_for_the_phases(house):
    for number in range(1, 30):
        house.bench.ask("send", agent="db", text=f"x{number}", key=f"plan 0001 model {number}")
    house.start(MODEL)
    dispatch = house.bench.ledger.one("phase", {"plan": "0001", "id": "model"})["dispatch"]
    assert house.bench.dispatch(dispatch)["plan"] == "0001"


def test_a_plan_with_another_number_than_its_file_cannot_start(house):
    house.plan(MODEL)
    folder = house.bench.layout.plans
    (folder / "0001-login.json").rename(folder / "0007-login.json")
    code, text = house.steer("start", "0007")
    assert code == 2
    assert 'plans/0007-login.json:1: id: found "0001" in a file that is named 0007' in text


def plans_of(engine):
    from aipass.features.plans.lifecycle import Plans

    return next(hook for hook in engine.core.run_hooks if isinstance(hook, Plans))


def test_events_of_files_do_not_ask_the_ledger_for_every_plan_each_time(house):
    house.start({**MODEL, "owns": ["/app/"], "delivers": [{"path": "/app/*", "least": 10_000}]})
    looks, plans = 0, plans_of(house.bench.engine)
    before = plans._look

    def look():
        nonlocal looks
        looks += 1
        return before()

    plans._look = look
    with open(house.bench.layout.run(1) / "writes.jsonl", "a") as journal:
        for number in range(500):
            journal.write(json.dumps(["write", 1, f"app/{number}"]) + "\n")
    (house.bench.layout.root / "app").mkdir()
    from aipass.sources.observation import Seen, identity_of

    seen = []
    for number in range(500):
        path = house.bench.layout.root / f"app/{number}"
        path.write_text("x")
        seen.append(Seen(f"app/{number}", identity_of(path.lstat()), complete=True))
    house.bench.engine.tell_now(seen)
    house.bench.settle()
    assert len(house.bench.ledger.all("written_of", {"plan": "0001", "phase": "model"})) == 500
    assert looks < 10


def test_a_check_that_was_killed_with_everything_else_is_run_again(house):
    house.start({**MODEL, "checks": ["true"]})
    house.deliver(1, "app/model")
    [check] = house.checks()
    house.bench.finish(1)
    house.runner._tell = lambda _: None
    house.runner.finish(check, outcome="killed")
    house.bench.restart()
    [again] = house.checks()
    house.bench.finish(again)
    assert house.states() == {"model": "done"}


def test_what_another_run_holds_is_known_after_a_restart(house):
    house.bench.ask("send", agent="web", text="hold it")
    house.write(1, "app/model")
    house.start(MODEL)
    assert house.states() == {"model": "waiting"}
    house.bench.restart()
    assert house.states() == {"model": "waiting"}
    house.bench.finish(1)
    assert house.states() == {"model": "running"}


def test_what_was_written_before_the_news_of_the_start_counts(house):
    start = house.runner.start_run
    house.runner.start_run = lambda message: house.runner.started.update({message["run"]: message})
    house.start(MODEL)
    house.write(1, "app/model")
    house.runner.start_run = start
    house.runner._report({"tell": "started", "run": 1, "pid": 1, "started": 0.0})
    house.bench.advance(1)
    assert house.states() == {"model": "done"}


def test_deliver_counts_what_was_written_and_not_told_yet(house):
    house.start(MODEL)
    with open(house.bench.layout.run(1) / "writes.jsonl", "a") as journal:
        journal.write(json.dumps(["write", 1, "app/model"]) + "\n")
    (house.bench.layout.root / "app").mkdir()
    (house.bench.layout.root / "app/model").write_text("x")
    assert house.bench.ask("deliver", by=1)["exit"] == 0
    assert house.states() == {"model": "done"}


def test_a_pause_holds_back_another_attempt(house):
    house.start(MODEL)
    house.bench.finish(1, outcome="lost")
    house.steer("pause")
    house.bench.advance(3600)
    assert house.runs() == []
    house.steer("resume")
    assert len(house.runs()) == 1


def test_stopping_ends_what_lives_on_after_a_hand_over(house):
    house.start(MODEL, API)
    house.deliver(1, "app/model")
    house.steer("stop")
    assert sorted(house.runner.stopped) == [1, 2]
    code, text = house.steer("start")
    assert code == 3
    assert "run 1 of its phase model is still alive" in text
    house.bench.finish(1, outcome="cancelled")
    house.bench.finish(2, outcome="cancelled")
    assert house.steer("start")[0] == 0


def test_what_waits_for_an_agent_that_is_gone_is_told(house):
    house.bench.ask("send", agent="db", text="something long")
    house.start(MODEL)
    house.bench.layout.config.write_text(TOML.replace("[agents.db]", "[agents.other]"))
    house.bench.ask("reload")
    assert house.bench.notices() == [
        "`db` is not configured any more, and its dispatches wait: 2; configure it again, or cancel them"
    ]


def test_a_plan_that_is_woken_by_its_own_end_is_a_chain(tmp_path):
    toml = 'orchestrator = "lead"\n' + TOML + '[agents.lead]\ndriver = "command"\ncommand = ["x"]\n'
    toml += '[[on]]\nname = "again"\nevent = "plan.finished"\ndispatch = "lead"\ntask = "again"\n[limits]\nhops = 3\n'
    house = House(tmp_path, toml)
    house.plan(MODEL)
    assert house.steer("start")[0] == 0
    for _ in range(10):
        run = house.runs()[0]
        house.deliver(run, "app/model")
        house.bench.finish(run)
        lead = house.runs()
        if not lead or house.steer("start", by=lead[0])[0]:
            break
        house.bench.finish(lead[0])
    else:
        raise AssertionError("it goes on for ever")
    house.bench.close()


def test_requests_are_done_in_the_order_in_which_they_came(house):
    house.plan(MODEL)
    house.plan({**API, "after": []}, number="0002")
    from aipass.event import Fact

    asked = [("start", "0001"), ("stop", "0001"), ("start", "0002"), ("pause", "0002")]
    house.bench.engine.tell(
        [
            Fact(
                "request.received", "spool", ref=f"r-{n:04}", detail={"verb": "plan", "do": do, "id": number}
            )
            for n, (do, number) in enumerate(asked)
        ]
    )
    house.bench.settle()
    replies = [house.bench.ledger.one("request", {"id": f"r-{n:04}"}) for n in range(4)]
    assert [reply["exit"] for reply in replies] == [0, 0, 0, 0], [reply["message"] for reply in replies]
    assert (house.state("0001"), house.state("0002")) == ("stopped", "paused")


def test_a_check_that_failed_is_seen_and_told_to_the_next_run(house):
    house.start({**MODEL, "checks": ["grep good app/model"]})
    house.deliver(1, "app/model")
    [check] = house.checks()
    house.bench.finish(check, "no such words\n", exit_code=1)
    row = house.bench.ledger.one("phase", {"plan": "0001", "id": "model"})
    assert (row["state"], row["reason"].startswith("a check failed")) == ("delivered", True)
    [event] = house.bench.events("check.finished")
    assert (event.detail["state"], event.by) == ("failed", 1)
    assert event.cause is not None
    house.bench.finish(1, exit_code=1)
    house.bench.finish(house.checks()[0], "no such words\n", exit_code=1)
    house.steer("resume")
    assert "The last time it failed:\n    no such words" in house.runner.prompt(2)


@pytest.mark.parametrize("ends_first", [False, True])
def test_what_the_checks_came_to_stands_in_the_sessions_summary(house, ends_first):
    house.start({**MODEL, "checks": ["grep good app/model"]})
    house.deliver(1, "app/model")
    if ends_first:
        house.bench.finish(1, "I wrote the model")
        house.bench.finish(house.checks()[-1])
    else:
        house.bench.finish(house.checks()[0])
        house.bench.finish(1, "I wrote the model")
        for check in house.checks():
            house.bench.finish(check)
    house.bench.settle()
    row = house.bench.ledger.one("state", {"agent": "db", "file": "local.json"})
    (session,) = json.loads(row["body"])["sessions"]
    assert session["summary"] == "I wrote the model [checks of model: passed]"
    found = recall(house.bench.ledger, "checks passed", now=0.0)
    assert "session" in {hit.row["source"] for hit in found}


@pytest.mark.parametrize("handoff", ["write", "exit"])
def test_what_was_delivered_and_is_gone_is_not_done(house, handoff):
    house.start({**MODEL, "handoff": handoff, "checks": ["true"]})
    house.deliver(1, "app/model")
    (house.bench.layout.root / "app/model").unlink()
    house.bench.see("app/model")
    for check in house.checks():
        house.bench.finish(check)
    assert house.states() == {"model": "delivered"}
    house.bench.finish(1)
    for check in house.checks():
        house.bench.finish(check)
    assert house.states() == {"model": "failed"}
    assert "were removed" in house.bench.ledger.one("phase", {"plan": "0001", "id": "model"})["reason"]


def test_a_check_of_what_changed_under_it_does_not_count(house):
    house.start({**MODEL, "checks": ["true"]})
    house.deliver(1, "app/model")
    [first] = house.checks()
    # By a descriptor that stays open, with the times set back: nobody tells of it.
    (house.bench.layout.root / "app/model").write_text("broken\n")
    os.utime(house.bench.layout.root / "app/model", (1, 1))
    house.bench.finish(first)
    assert house.states() == {"model": "delivered"}
    house.bench.advance(1)
    [second] = house.checks()
    house.bench.finish(second, exit_code=1)
    assert house.states() == {"model": "delivered"}


def test_what_a_lost_run_left_half_done_does_not_count_for_the_next(house):
    house.start({**MODEL, "owns": ["/app/"], "delivers": ["/app/a", "/app/b"]})
    house.deliver(1, "app/a")
    house.bench.finish(1, outcome="lost")
    house.bench.advance(3600)
    house.deliver(2, "app/b")
    assert house.states() == {"model": "running"}
    house.deliver(2, "app/a")
    assert house.states() == {"model": "done"}


def test_a_folder_or_a_pipe_is_no_delivery(house):
    house.start({**MODEL, "owns": ["/app/"]})
    house.write(1, "app/model")
    target = house.bench.layout.root / "app/model"
    target.unlink()
    os.mkfifo(target)
    house.bench.advance(5)
    assert house.states() == {"model": "running"}


def test_what_vanishes_under_a_check_when_its_run_is_over_fails_the_phase(house):
    house.start({**MODEL, "checks": ["true"]})
    house.deliver(1, "app/model")
    [check] = house.checks()
    house.bench.finish(1)
    (house.bench.layout.root / "app/model").unlink()
    house.bench.see("app/model")
    house.bench.finish(check)
    house.bench.advance(5)
    assert house.states() == {"model": "failed"}
    assert house.state() == "failed"


def test_a_run_that_is_lost_while_its_plan_is_paused_is_not_tried_again_before_it_goes_on(house):
    house.start(MODEL)
    house.steer("pause")
    house.bench.finish(1, outcome="lost")
    house.bench.advance(3600)
    assert house.runs() == []
    assert house.states() == {"model": "waiting"}
    house.steer("resume")
    assert house.states() == {"model": "running"}


def test_a_paused_plan_goes_on_with_what_was_refused_before_and_may_be_now(house):
    house.start(MODEL, API)
    house.plan(MODEL, {**API, "agent": "web", "task": "in another way"})  # nobody has seen it change
    house.steer("pause")
    code, text = house.steer("resume")
    assert (code, text) == (0, "plan 0001 is running; the change of plan 0001 is applied")
    house.plan({**MODEL, "task": "too late"}, API)
    house.steer("pause")
    code, text = house.steer("resume")
    assert code == 0
    assert "continues unchanged: phase model is running already" in text
    house.deliver(1, "app/model")
    assert "in another way" in house.runner.prompt(2)


def test_going_on_without_end_is_a_chain_as_well(tmp_path):
    toml = 'orchestrator = "lead"\n' + TOML + '[agents.lead]\ndriver = "command"\ncommand = ["x"]\n'
    toml += '[[on]]\nname = "again"\nevent = "plan.finished"\ndispatch = "lead"\ntask = "again"\n[limits]\nhops = 3\n'
    house = House(tmp_path, toml)
    house.plan(MODEL)
    assert house.steer("start")[0] == 0
    for _ in range(10):
        house.bench.finish(house.runs()[0])
        lead = house.runs()
        if not lead or house.steer("resume", by=lead[0])[0]:
            break
        house.bench.finish(lead[0])
    else:
        raise AssertionError("it goes on for ever")
    house.bench.close()


def test_what_is_no_file_among_plans_stops_nobody(house):
    house.bench.layout.plans.mkdir()
    os.mkfifo(house.bench.layout.plans / "0009-x.json")
    code, text = house.steer("start", "0009")
    assert code == 2
    assert "plans/0009-x.json" in text


def test_a_file_that_was_away_during_its_check_is_checked_again(house):
    house.start({**MODEL, "checks": ["true"]})
    house.deliver(1, "app/model")
    [first] = house.checks()
    with open(house.bench.layout.run(1) / "writes.jsonl", "a") as journal:
        for what in ("remove", "create"):
            journal.write(json.dumps([what, 1, "app/model"]) + "\n")
    house.bench.finish(first)
    assert house.states() == {"model": "delivered"}
    house.bench.advance(2)
    [second] = house.checks()
    os.chmod(house.bench.layout.root / "app/model", 0o640)  # that is no change of what it delivers
    house.bench.finish(second)
    assert house.states() == {"model": "done"}


# -- any order of things ---------------------------------------------------------------------------------------------------

ENDS = st.sampled_from(["well", "badly", "lost", "killed"])
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 4)),
        st.tuples(st.just("end"), st.integers(0, 4), ENDS),
        st.tuples(st.just("check"), st.integers(0, 2), st.sampled_from([0, 0, 1, "lost", "killed"])),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 0.6, 3.0, 400.0])),
        st.tuples(st.just("steer"), st.sampled_from(["pause", "resume", "resume", "stop"])),
        st.tuples(st.just("deliver"), st.integers(0, 4)),
        st.tuples(st.just("restart")),
        st.tuples(st.just("remove"), st.integers(0, 3)),
        st.tuples(st.just("send"), st.sampled_from(AGENTS)),
    ),
    max_size=25,
)
PHASES = st.lists(
    st.tuples(
        st.sampled_from(AGENTS),
        st.sets(st.integers(0, 3), max_size=2),
        st.booleans(),
        st.sampled_from(["write", "exit", None]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


def _phases(drawn):
    phases = []
    for number, (agent, after, checked, handoff, delivers) in enumerate(drawn):
        before = {n for n in after if n < number} | {
            n for n, phase in enumerate(phases) if phase["agent"] == agent
        }
        phases.append(
            {"id": f"p{number}", "agent": agent, "owns": [f"/app/{number}"]}
            | ({"after": [f"p{n}" for n in sorted(before)]} if before else {})
            | ({"checks": ["true"]} if checked else {})
            | ({"handoff": handoff} if handoff else {})
            | ({"delivers": [f"/app/{number}"]} if delivers else {})
        )
    return phases


def _move(house, move):
    bench = house.bench
    runs = house.runs()
    match move:
        case ("write", number) if number < len(runs):
            dispatch = bench.ledger.one("run", {"id": runs[number]})["dispatch"]
            row = bench.ledger.one("phase_of_dispatch", {"dispatch": dispatch})
            if row is not None:
                house.write(runs[number], f"app/{row['id'][1:]}")
            else:
                # Of what nobody has now: the fence would refuse the rest.
                table = house.runner.territory["table"]["phases"]
                if not any(p["owns"] == [f"/app/{number}"] for p in table):
                    house.held.setdefault(runs[number], set()).add(f"/app/{number}")
                    house.write(runs[number], f"app/{number}")
        case ("end", number, how) if number < len(runs):
            _end(house, runs[number], how)
        case ("check", number, how) if number < len(house.checks()):
            _end_check(house, house.checks()[number], how)
        case ("wait", seconds):
            bench.advance(seconds)
        case ("steer", verb):
            house.steer(verb)
        case ("deliver", number) if number < len(runs):
            bench.ask("deliver", by=runs[number])
        case ("restart",):
            bench.restart()
        case ("remove", number):
            (bench.layout.root / f"app/{number}").unlink(missing_ok=True)
            bench.see(f"app/{number}")
        case ("send", agent):
            bench.ask("send", agent=agent, text="something else")


def _end(house, run, how):
    stopped = run in house.runner.stopped
    outcome = "cancelled" if stopped else {"lost": "lost", "killed": "killed"}.get(how, "exited")
    house.bench.finish(run, outcome=outcome, exit_code=1 if how == "badly" else 0)


def _end_check(house, check, how):
    if check in house.runner.stopped:
        house.bench.finish(check, outcome="cancelled")
    elif how in {"lost", "killed"}:
        house.bench.finish(check, outcome=how)
    else:
        house.bench.finish(check, exit_code=how)


def _is_in_order(house):
    ledger = house.bench.ledger
    rows = ledger.all("phases_of", {"plan": "0001"})
    by_id = {row["id"]: row for row in rows}
    plan = json.loads(ledger.one("plan", {"id": "0001"})["body"])
    after = {phase["id"]: phase.get("after", []) for phase in plan["phases"]}
    for row in rows:
        if row["state"] in {"ready", "running", "delivered", "done"}:
            assert all(by_id[name]["state"] == "done" for name in after[row["id"]]), house.states()
        assert row["checking"] is None or row["state"] == "delivered"
    # No file is two runs' at once, and nobody has what another run holds.
    table = house.runner.territory["table"]["phases"]
    owned = {path: p["run"] for p in table if p["run"] is not None for path in p["owns"]}
    assert len(owned) == sum(len(p["owns"]) for p in table if p["run"] is not None)
    for run in house.runs():
        for path in house.held.get(run, ()):
            assert owned.get(path, run) == run, (path, owned, house.held)


@pytest.mark.slow
@settings(max_examples=rounds(12, 300), deadline=None)
@given(st.sets(st.sampled_from(AGENTS)), PHASES, MOVES, st.booleans())
def test_whatever_happens_a_plan_comes_to_its_end(tmp_path_factory, before, drawn, moves, restarts):
    house = House(tmp_path_factory.mktemp("house"))
    try:
        for agent in before:
            house.bench.ask("send", agent=agent, text="something else")
        for number in range(len(house.runs())):
            _move(house, ("write", number))
        house.start(*_phases(drawn))
        for move in moves:
            _move(house, move)
            _is_in_order(house)
        # From here on everything goes well, and everybody is patient.
        if restarts:
            house.bench.restart()
        for _ in range(60):
            if house.state() == "done":
                break
            if house.state() != "running" or "failed" in house.states().values():
                code, text = house.steer("resume")
                assert code == 0, text
            for run in house.runs():
                if run not in house.runner.stopped:
                    _move(house, ("write", house.runs().index(run)))
            house.bench.advance(1)
            for check in house.checks():
                _end_check(house, check, 0)
            for run in house.runs():
                _end(house, run, "well")
            house.bench.advance(400)
            _is_in_order(house)
        assert house.state() == "done", (house.states(), house.bench.notices())
        done = [e.ref for e in house.bench.events("phase.done")]
        assert sorted(done) == sorted({*done})
    finally:
        house.bench.close()
