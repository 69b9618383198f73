"""Limits that pause a driver until they end, faults that pause an agent, and replies that go on with a conversation."""

import json
from datetime import UTC, datetime

import pytest

import aipass
from aipass.clock import Instant
from aipass.core.timers import Timers
from aipass.features.dispatch.pauses import FIRST_WAIT_S, LONGEST_WAIT_S, Pauses
from aipass.ledger import Ledger

HOUR = 3600.0


class Talker:
    """A driver that says of a run what its output says, as the fields of an Outcome in JSON."""

    name = "talker"

    def __init__(self):
        self.jobs = []

    def command(self, job):
        self.jobs.append(job)
        return aipass.Command(("talk",))

    def outcome(self, job, end):
        told = json.loads(end.stdout.read_text())
        usage = aipass.Usage(**told.pop("usage")) if "usage" in told else None
        return aipass.Outcome(**told, usage=usage)

    @aipass.hookimpl
    def register_drivers(self):
        return [self]


@pytest.fixture
def house(aipass_bench):
    """Three agents of one driver; `b` would rather fail than wait, `c` waits two hours at most."""
    talker = Talker()
    agents = "".join(f'[agents.{name}]\ndriver = "talker"\n{more}' for name, more in AGENTS.items())
    bench = aipass_bench(f"[limits]\nconcurrency = 50\n{agents}", talker)
    bench.jobs = talker.jobs
    return bench


AGENTS = {"a": "", "b": 'on_limit = "fail"\n', "c": 'max_wait = "2h"\n', "d": "", "e": ""}


def end(bench, run, state, **more):
    more.setdefault("reason", None if state == "succeeded" else f"it is {state}")
    bench.finish(run, json.dumps({"state": state, **more}))


def resets(bench, seconds):
    return bench.clock.now().wall + seconds


def states(bench):
    return [row["state"] for row in bench.dispatches()]


def test_a_limit_pauses_its_driver_until_it_ends_and_one_run_tries_first(house):
    for agent in "acde":
        house.ask("send", agent=agent, text="work")
    assert house.running() == [1, 2, 3, 4]
    until = resets(house, HOUR)
    end(house, 1, "limit", reason="5-hour limit", resets=until)
    end(house, 2, "limit", reason="5-hour limit", resets=until)
    end(house, 3, "succeeded", answer="done before it was noticed")
    end(house, 4, "limit", reason="5-hour limit", resets=until)
    assert states(house) == ["queued", "queued", "succeeded", "queued"]
    (paused,) = house.events("driver.paused")
    assert (paused.ref, paused.detail["reason"]) == ("talker", "5-hour limit")
    house.advance(HOUR - 1)
    assert house.running() == []
    house.advance(1)
    assert house.running() == [5], "one tries"
    house.advance(600)
    assert house.running() == [5]
    end(house, 5, "succeeded", answer="done")
    assert house.running() == [6, 7], "then all"
    assert len(house.events("driver.resumed")) == 1
    assert [row["tries"] for row in house.dispatches()][1:] == [1, 1, 1], "waiting costs no attempt"


def test_a_limit_that_goes_on_is_waited_for_again_and_longer(house):
    house.ask("send", agent="a", text="work")
    for run, wait in enumerate(
        (FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S, 8 * FIRST_WAIT_S, LONGEST_WAIT_S), 1
    ):
        end(house, run, "limit")
        house.advance(wait - 1)
        assert house.running() == []
        house.advance(1)
        assert house.running() == [run + 1]
    end(house, 6, "succeeded")
    assert house.ledger.all("pauses") == []


def test_a_limit_that_is_told_too_short_is_no_storm(house):
    house.ask("send", agent="a", text="work")
    for run in range(1, 12):
        end(house, run, "limit", resets=resets(house, 2))
        before = house.clock.now().mono
        while not house.running():
            house.advance(1)
        waited = house.clock.now().mono - before
    assert 3600 <= waited < 3700, "each time in a row twice as long, up to an hour"


def test_a_limit_never_becomes_shorter_and_never_longer_than_limits_are(house):
    for agent in "ad":
        house.ask("send", agent=agent, text="work")
    end(house, 1, "limit", resets=resets(house, 4 * HOUR))
    end(house, 2, "limit", resets=resets(house, 6))
    house.advance(4 * HOUR - 10)
    assert house.running() == []
    house.advance(20)
    assert len(house.running()) == 1
    (run,) = house.running()
    house.ask("send", agent="c", text="x")
    end(house, run, "limit", resets=resets(house, 1e9))
    assert datetime.fromisoformat(house.events("driver.paused")[-1].detail["until"]).timestamp() == resets(
        house, 8 * 24 * HOUR
    )


def test_what_runs_since_before_a_limit_neither_tries_nor_holds_the_trial_back(house):
    for agent in "ad":
        house.ask("send", agent=agent, text="work")
    end(house, 1, "limit", resets=resets(house, HOUR))
    house.advance(HOUR)
    assert house.running() == [2, 3], "one tries, while the older run goes on"
    house.ask("send", agent="e", text="work")
    end(house, 2, "succeeded")
    assert house.running() == [3], "the older one's end proves nothing"
    end(house, 3, "succeeded")
    assert house.running() == [4]


def test_a_limit_and_a_pause_of_one_name_are_two(aipass_bench):
    talker = Talker()
    bench = aipass_bench('[agents.talker]\ndriver = "talker"\n[agents.b]\ndriver = "talker"\n', talker)
    for number in (1, 2, 3):
        bench.ask("send", agent="talker", text=f"work {number}")
        end(bench, number, "failed", reason="no key", fault="no key")
    assert bench.dispatch(3)["state"] == "failed"
    bench.ask("send", agent="b", text="work")
    bench.ask("send", agent="talker", text="more")
    end(bench, 4, "limit", resets=resets(bench, HOUR))
    bench.advance(HOUR)
    end(bench, 5, "succeeded")
    assert [row["name"] for row in bench.ledger.all("pauses")] == ["talker"], "the agent's pause"
    assert bench.running() == []
    assert bench.ask("resume", name="talker")["exit"] == 0
    assert bench.running() == [6]


def test_what_waits_behind_a_limit_longer_than_it_may_fails(house):
    for agent in "ac":
        house.ask("send", agent=agent, text="work")
    house.ask("send", agent="c", text="more")
    end(house, 1, "limit", resets=resets(house, 3 * HOUR))
    assert house.dispatch(3)["state"] == "failed"
    assert "later than max_wait allows" in house.dispatch(3)["reason"]
    assert house.ask("send", agent="c", text="still more")["exit"] == 3


def test_work_between_limits_does_not_count_as_waiting(house):
    house.ask("send", agent="c", text="work")
    end(house, 1, "limit", resets=resets(house, HOUR))
    house.advance(HOUR)
    house.advance(5 * HOUR)  # it works
    end(house, 2, "limit", resets=resets(house, 0.9 * HOUR))
    assert house.dispatch(1)["state"] == "queued"


def test_a_limit_outlives_the_engine(house):
    house.ask("send", agent="a", text="work")
    end(house, 1, "limit", resets=resets(house, HOUR))
    house.advance(HOUR / 2)
    house.restart()
    assert house.running() == []
    house.advance(HOUR / 2)
    assert house.running() == [2]
    house.restart()
    house.ask("send", agent="d", text="work")
    assert house.running() == [2], "still one tries first"


def test_a_person_can_try_at_once(house):
    house.ask("send", agent="a", text="work")
    end(house, 1, "limit", resets=resets(house, HOUR))
    assert house.ask("resume", name="talker")["exit"] == 0
    assert house.running() == [2]


def test_who_would_rather_fail_fails_at_once(house):
    for agent in "ab":
        house.ask("send", agent=agent, text="work")
    house.ask("send", agent="b", text="more")
    end(house, 1, "limit", reason="5-hour limit", resets=resets(house, HOUR))
    assert states(house) == ["queued", "running", "failed"], "what runs goes on, what waits fails"
    end(house, 2, "limit", reason="5-hour limit", resets=resets(house, HOUR))
    assert states(house) == ["queued", "failed", "failed"]
    assert house.dispatch(3)["reason"] == "5-hour limit"
    assert {event.ref for event in house.events("dispatch.finished")} == {"2", "3"}
    asked = house.ask("send", agent="b", text="still more")
    assert asked["exit"] == 3
    assert "talker has reached a limit: 5-hour limit; it is tried again at" in asked["message"]


def test_a_limit_that_ends_too_late_fails_what_met_it(house):
    for agent in "ac":
        house.ask("send", agent=agent, text="work")
    end(house, 2, "limit", reason="weekly limit", resets=resets(house, 3 * HOUR))
    assert house.dispatch(2)["state"] == "failed"
    assert house.dispatch(2)["reason"].startswith("weekly limit; it ends at ")
    assert "later than max_wait allows" in house.dispatch(2)["reason"]


def test_waits_for_limits_are_counted_together(house):
    house.ask("send", agent="c", text="work")
    end(house, 1, "limit", resets=resets(house, 1.5 * HOUR))
    house.advance(1.5 * HOUR)
    assert house.running() == [2]
    end(house, 2, "limit", resets=resets(house, HOUR))
    assert house.dispatch(1)["state"] == "failed"


def test_a_limit_does_not_take_the_place_of_a_persons_pause(house):
    class Keeper:
        @aipass.hookimpl
        def register_handlers(self, config):
            def pause(event, view):
                return [aipass.Pause("driver", "talker", "it is Sunday")]

            return [aipass.Handler("keeper", ("file.closed",), pause, paths=("/sunday",))]

    house._given = (*house._given, Keeper())
    house.restart()
    house.ask("send", agent="a", text="work")
    house.drop("sunday")
    end(house, 1, "limit", resets=resets(house, HOUR))
    house.advance(2 * HOUR)
    assert house.running() == []
    house.ask("resume", name="talker")
    assert house.running() == [2]


def test_three_equal_faults_pause_the_agent_until_somebody_resumes_it(house):
    for number, fault in enumerate(["no key", "no such model", "no key", "no key"], 1):
        house.ask("send", agent="a", text=f"work {number}")
        end(house, number, "failed", reason=fault, fault=fault)
    assert house.events("agent.paused") == []
    house.ask("send", agent="a", text="work 5")
    house.ask("send", agent="a", text="work 6")
    end(house, 5, "failed", reason="no key", fault="no key")
    (paused,) = house.events("agent.paused")
    assert (paused.ref, paused.detail) == ("a", {"reason": "no key"})
    assert house.running() == []
    assert house.dispatch(6)["state"] == "queued"
    text = "a is paused: its last dispatches all failed with the same fault: no key; fix that, then `aipass resume a`"
    assert text in house.notices()
    house.ask("resume", name="a")
    assert house.running() == [6]
    end(house, 6, "failed", reason="no key", fault="no key")
    assert len(house.events("agent.paused")) == 1, "it begins to count anew"


def test_faults_are_alike_whatever_the_request_was_called(house):
    for number, request in enumerate(["req_011CX", "req_2aZ9", "req_9"], 1):
        house.ask("send", agent="a", text=f"work {number}")
        fault = f"API Error: 401 invalid x-api-key ({request}, 14:0{number})"
        end(house, number, "failed", reason=fault, fault=fault)
    assert len(house.events("agent.paused")) == 1


@pytest.mark.parametrize("between", ["succeeded", "no fault", "an hour"])
def test_faults_that_are_not_in_a_row_pause_nobody(house, between):
    for number in range(1, 6):
        house.ask("send", agent="a", text=f"work {number}")
        if number == 3 and between == "succeeded":
            end(house, number, "succeeded")
        elif number == 3 and between == "no fault":
            end(house, number, "failed", reason="the tests fail")
        else:
            if number == 3:
                house.advance(2 * HOUR)
            end(house, number, "failed", reason="no key", fault="no key")
    assert len(house.events("agent.paused")) == (1 if between == "an hour" else 0), (
        "the last three were alike"
    )


def test_a_program_that_is_not_there_pauses_its_agent(aipass_bench):
    bench = aipass_bench('[agents.a]\ndriver = "command"\ncommand = ["nowhere"]\nretries = 0\n')
    for number in (1, 2, 3):
        bench.ask("send", agent="a", text=f"work {number}")
        bench.finish(number, outcome="start-failed", reason="nowhere: not found")
    assert [event.detail["reason"] for event in bench.events("agent.paused")] == ["nowhere: not found"]


# -- replies -----------------------------------------------------------------------------------------------------------


def test_a_reply_goes_on_with_the_conversation(house):
    house.ask("send", agent="a", text="first")
    asked = house.ask("send", agent="a", text="and then?", reply_to="1")
    assert asked["dispatch"] == 2
    end(house, 1, "succeeded", session="s-1")
    assert house.jobs[-1].session == "s-1"
    end(house, 2, "afresh")
    assert house.jobs[-1].session is None, "a conversation that is lost is not taken up again"
    assert house.dispatch(2)["tries"] == 1, "which costs no attempt"
    end(house, 3, "succeeded", session="s-2")
    house.drop("inbox/a/more.md", "---\nreply_to: 2\n---\nand more?\n")
    assert house.jobs[-1].session == "s-2"


def test_a_run_that_never_had_a_conversation_has_not_lost_it(house):
    house.ask("send", agent="a", text="first")
    end(house, 1, "afresh")
    assert house.dispatch(1)["state"] == "failed"


@pytest.mark.parametrize("state", ["limit", "blocked", "overload", "afresh"])
def test_what_was_cancelled_does_not_come_back(house, state):
    house.ask("send", agent="a", text="first")
    house.ask("cancel", id="1")
    end(house, 1, state)
    house.advance(24 * HOUR)
    assert house.dispatch(1)["state"] == "cancelled"
    assert house.running() == []


def test_what_several_attempts_used_is_added_up(house):
    house.ask("send", agent="a", text="first")
    for number, (state, cost) in enumerate([("overload", 5.0), ("blocked", 0.5), ("succeeded", 1.0)], 1):
        talk = {"input_tokens": 10, "output_tokens": None, "cost_usd": cost}
        end(house, number, state, session="s-1", usage=talk)
        if state == "overload":
            house.advance(HOUR)
        elif state == "blocked":
            house.ask("retry", id="1")
    found = json.loads(house.dispatch(1)["usage"])
    assert found == {"input_tokens": 30, "output_tokens": None, "cost_usd": 6.5}


def test_another_drivers_conversation_is_none(house):
    house.ask("send", agent="a", text="first")
    end(house, 1, "blocked", session="s-1")
    (house.layout.config).write_text('[agents.a]\ndriver = "command"\ncommand = ["x"]\n')
    house.ask("reload")
    house.ask("retry", id="1")
    (start,) = house.runner.started.values()
    assert start["argv"] == ["x"]
    house.finish(2, outcome="lost")
    (house.layout.config).write_text('[agents.a]\ndriver = "talker"\n')
    house.ask("reload")
    house.advance(HOUR)
    assert house.jobs[-1].session is None


def test_a_reply_to_what_is_blocked_is_its_answer(house):
    house.ask("send", agent="a", text="first")
    end(house, 1, "blocked", reason="Which one?", session="s-1")
    asked = house.ask("send", agent="a", text="The second", reply_to="1")
    assert (asked["dispatch"], asked["message"]) == (1, "dispatch 1 goes on")
    assert house.jobs[-1].session == "s-1"
    assert "The second" in house.runner.prompt(2)
    end(house, 2, "succeeded", answer="done")
    assert house.dispatch(1)["state"] == "succeeded"


def test_a_reply_joins_nothing_but_the_same_reply(house):
    house.ask("send", agent="a", text="first")
    end(house, 1, "succeeded", session="s-1")
    house.ask("send", agent="a", text="busy")
    found = [
        house.ask("send", agent="a", text="again", **more)["dispatch"]
        for more in ({}, {"reply_to": "1"}, {"reply_to": "1"})
    ]
    assert found == [3, 4, 4]


@pytest.mark.parametrize(
    ("to", "agent", "exit_code", "words"),
    [
        ("99", "a", 1, "there is no dispatch `99` to reply to"),
        ("nonsense", "a", 1, "there is no dispatch `nonsense` to reply to"),
        ("1", "d", 1, "dispatch 1 was a's; a reply to it goes to a"),
    ],
)
def test_a_reply_to_what_is_not_there_or_not_the_agents_is_refused(house, to, agent, exit_code, words):
    house.ask("send", agent="a", text="first")
    reply = house.ask("send", agent=agent, text="and then?", reply_to=to)
    assert (reply["exit"], words in reply["message"]) == (exit_code, True), reply["message"]
    house.drop(f"inbox/{agent}/more.md", f"---\nreply_to: {to}\n---\nand more?\n")
    note = json.loads((house.layout.inbox / agent / "more.md.rejected.json").read_text())
    assert words in note["reason"]


# -- the pure part -----------------------------------------------------------------------------------------------------


def test_neither_clock_alone_can_make_a_limit_longer(tmp_path):
    ledger, timers = Ledger.open(tmp_path / "l.db"), Timers()
    pauses = Pauses(ledger, timers)
    with ledger.transaction():
        pauses.limit("x", "limit", 2_000.0, Instant(0.0, 1_000.0))
        assert pauses.until("x", Instant(999.0, 1_999.0)) == 2_000.0
        assert pauses.until("x", Instant(10.0, 2_000.0)) is None, "the machine was suspended"
        assert pauses.until("x", Instant(1_000.0, 500.0)) is None, "the clock was set back"
        again = Pauses(ledger, Timers())
        again.load(Instant(0.0, -50_000.0))
        assert again.until("x", Instant(1_000.0, -49_000.0)) is None
    ledger.close()


def test_the_moment_in_status_is_the_users(house):
    house.ask("send", agent="a", text="work")
    until = resets(house, HOUR)
    end(house, 1, "limit", resets=until)
    reason = house.ask("send", agent="b", text="x")["message"]
    assert datetime.fromtimestamp(until, UTC).astimezone().strftime("%H:%M") in reason
