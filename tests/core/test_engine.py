"""The engine on the bench: what a fact leads to, and that it leads there once."""

from __future__ import annotations

from repository import agent

import aipass
from aipass.event import Fact

TWO = """
[agents.writer]
driver = "command"
command = ["cat"]

[agents.reviewer]
driver = "command"
command = ["cat"]
"""


def test_a_dropped_file_starts_its_agent_and_is_answered(aipass_bench):
    bench = aipass_bench()
    file = bench.drop("inbox/writer/hello.md", "Write hello.txt\n")
    assert not file.exists()
    assert (bench.layout.dispatch(1) / "hello.md").read_text() == "Write hello.txt\n"
    assert bench.running() == [1]
    assert bench.runner.prompt(1) == "Write hello.txt\n"
    bench.finish(1, "done\n")
    text, record = bench.answer("writer", "hello.1")
    assert text == "done\n"
    assert record["state"] == "succeeded"
    assert record["senders"] == ["inbox/writer/hello.md"]
    assert record["answer"] == "outbox/writer/hello.1.md"
    assert bench.dispatch(1)["answer"] == "outbox/writer/hello.1.md"


def test_the_same_file_seen_twice_starts_one_run(aipass_bench):
    bench = aipass_bench()
    target = bench.layout.root / "inbox/writer/x.md"
    target.write_text("once")
    from aipass.sources.observation import Seen, identity_of

    seen = Seen("inbox/writer/x.md", identity_of(target.lstat()), complete=True)
    bench.engine.tell([seen, seen, seen])
    bench.settle()
    assert len(bench.dispatches()) == 1
    assert len(bench.events("file.closed")) == 1


def test_a_request_is_consumed_once_however_often_its_file_is_read(aipass_bench):
    bench = aipass_bench()
    fact = Fact(
        "request.received", "spool", ref="r-0001", detail={"verb": "send", "agent": "writer", "text": "hi"}
    )
    bench.engine.tell([fact])
    bench.settle()
    bench.engine.tell([fact, fact])
    bench.settle()
    assert len(bench.dispatches()) == 1
    assert len(bench.events("request.received")) == 1


def test_five_senders_of_one_subject_share_one_run_and_all_are_answered(aipass_bench):
    bench = aipass_bench()
    for number in range(5):
        bench.drop(f"inbox/writer/{number}.md", f"---\nsubject: same\n---\ntext {number}\n")
    assert (
        len(bench.dispatches()) == 2
    )  # one that runs, and one follow-up for the four that said something else
    bench.finish(1, "a")
    assert bench.runner.prompt(2).count("text ") == 4
    bench.finish(2, "b")
    names = sorted(path.name for path in (bench.layout.outbox / "writer").glob("*.md"))
    assert names == ["0.1.md", "1.2.md", "2.2.md", "3.2.md", "4.2.md"]


def test_the_same_text_joins_what_runs(aipass_bench):
    bench = aipass_bench()
    assert bench.ask("send", agent="writer", text="same")["dispatch"] == 1
    assert bench.ask("send", agent="writer", text="same")["dispatch"] == 1
    assert bench.running() == [1]


def test_different_subjects_run_in_order_never_two_at_once(aipass_bench):
    bench = aipass_bench()
    for number in range(5):
        bench.ask("send", agent="writer", text=f"t{number}")
    for number in range(1, 6):
        assert bench.running() == [number]
        bench.finish(number, "ok")
    assert [row["state"] for row in bench.dispatches()] == ["succeeded"] * 5


def test_priority_comes_before_the_order_of_asking(aipass_bench):
    bench = aipass_bench()
    for text, priority in (("first", 0), ("low", -5), ("high", 5), ("mid", 0)):
        bench.ask("send", agent="writer", text=text, priority=priority)
    order = []
    while bench.running():
        (run,) = bench.running()
        order.append(bench.runner.prompt(run))
        bench.finish(run)
    assert order == ["first", "high", "mid", "low"]


def test_concurrency_is_for_the_machine_and_for_each_driver(aipass_bench):
    toml = "".join(f'[agents.a{n}]\ndriver = "command"\ncommand = ["cat"]\n' for n in range(6))
    bench = aipass_bench(toml + "[limits]\nconcurrency = 4\n")
    for n in range(6):
        bench.ask("send", agent=f"a{n}", text="go")
    assert len(bench.running()) == 4
    limited = aipass_bench(toml + "[limits]\nconcurrency = 4\nper_driver = { command = 2 }\n")
    for n in range(6):
        limited.ask("send", agent=f"a{n}", text="go")
    assert len(limited.running()) == 2


def test_a_lost_run_is_retried_as_a_new_run_and_then_visibly_fails(aipass_bench):
    bench = aipass_bench()
    bench.ask("send", agent="writer", text="go")
    for run in (1, 2, 3):
        assert bench.running() == [run]
        bench.finish(run, outcome="lost")
        bench.advance(30)
    row = bench.dispatch(1)
    assert (row["state"], row["attempts"]) == ("failed", 3)
    assert "after 3 attempts" in row["reason"]
    assert len(bench.events("run.lost")) == 3
    assert all(event.detail["reason"] for event in bench.events("run.lost"))


def test_a_lost_run_is_never_retried_where_retries_is_0(aipass_bench):
    bench = aipass_bench('[agents.writer]\ndriver = "command"\ncommand = ["cat"]\nretries = 0\n')
    bench.ask("send", agent="writer", text="go")
    bench.finish(1, outcome="lost")
    bench.advance(60)
    assert bench.dispatch(1)["state"] == "failed"
    assert bench.running() == []


def test_an_agent_that_reports_failure_is_believed(aipass_bench):
    bench = aipass_bench()
    bench.drop("inbox/writer/x.md")
    bench.finish(1, "half", exit_code=3, stderr="no luck\n")
    assert bench.dispatch(1)["state"] == "failed"
    text, record = bench.answer("writer", "x.1")
    assert "exit status 3: no luck" in text
    assert "half" in text
    assert record["exit"] == 3
    assert bench.running() == []


def test_cancel_ends_a_queued_dispatch_at_once_and_answers_it(aipass_bench):
    bench = aipass_bench()
    bench.ask("send", agent="writer", text="one")
    bench.ask("send", agent="writer", text="two")
    assert bench.ask("cancel", id="2")["exit"] == 0
    assert bench.dispatch(2)["state"] == "cancelled"
    assert bench.answer("writer", "send.2")[1]["state"] == "cancelled"


def test_cancel_stops_a_running_dispatch_and_it_is_not_retried(aipass_bench):
    bench = aipass_bench()
    bench.ask("send", agent="writer", text="one")
    bench.ask("cancel", id="1")
    assert bench.runner.stopped[1][0] == "cancelled"
    assert bench.dispatch(1)["state"] == "running"
    bench.finish(1, outcome="cancelled", reason="cancelled by a person")
    assert bench.dispatch(1)["state"] == "cancelled"


def test_a_cancelled_run_that_is_lost_is_cancelled_all_the_same(aipass_bench):
    bench = aipass_bench()
    bench.ask("send", agent="writer", text="one")
    bench.ask("cancel", id="1")
    bench.finish(1, outcome="lost")
    bench.advance(60)
    assert bench.dispatch(1)["state"] == "cancelled"
    assert bench.running() == []


def test_retry_queues_a_finished_dispatch_again_for_all_its_senders(aipass_bench):
    bench = aipass_bench()
    bench.drop("inbox/writer/x.md")
    bench.finish(1, "bad", exit_code=1)
    assert bench.ask("retry", id="1")["exit"] == 0
    assert bench.running() == [2]
    bench.finish(2, "good")
    assert bench.answer("writer", "x.1")[0] == "good"


def test_an_engine_that_was_killed_finds_its_runs_and_its_pending_work(aipass_bench):
    bench = aipass_bench()
    bench.drop("inbox/writer/a.md", "one")
    bench.ask("send", agent="writer", text="two")
    bench.restart()
    assert bench.runner.adopted[-1] == 1
    assert bench.running() == [1]
    bench.finish(1, "first")
    assert bench.running() == [2]
    bench.finish(2, "second")
    assert [row["state"] for row in bench.dispatches()] == ["succeeded", "succeeded"]


def test_a_run_that_was_recorded_and_never_started_is_started_by_the_next_engine(aipass_bench):
    bench = aipass_bench()
    held = bench.runner.start_run
    bench.runner.start_run = lambda message: None  # the engine dies between commit and start
    bench.ask("send", agent="writer", text="go")
    assert bench.running() == []
    bench.runner.start_run = held
    bench.restart()
    assert bench.running() == [1]


def test_a_run_that_ended_while_no_engine_ran_is_answered_by_the_next_one(aipass_bench):
    bench = aipass_bench()
    bench.drop("inbox/writer/a.md")
    tell, bench.runner._tell = bench.runner._tell, lambda reports: None
    bench.runner.finish(1, "meanwhile")
    bench.runner._tell = tell
    bench.restart()
    assert bench.answer("writer", "a.1")[0] == "meanwhile"


def test_a_dispatch_chain_ends_at_the_hop_limit(aipass_bench):
    toml = (
        TWO
        + """
[limits]
hops = 3
[[on]]
name = "ping"
event = "run.finished"
where = { agent = "writer" }
dispatch = "reviewer"
task = "review {dispatch}"
[[on]]
name = "pong"
event = "run.finished"
where = { agent = "reviewer" }
dispatch = "writer"
task = "write {dispatch}"
"""
    )
    bench = aipass_bench(toml)
    bench.ask("send", agent="writer", text="go")
    for _ in range(20):
        for run in bench.running():
            bench.finish(run)
    assert [row["hops"] for row in bench.dispatches()] == [0, 1, 2, 3]
    last = bench.events("run.finished")[-1]
    assert any("a chain of 4 agents" in outcome for _, _, outcome in bench.actions(last.id))


def test_runs_per_hour_holds_a_dispatch_back_until_the_hour_allows(aipass_bench):
    bench = aipass_bench(
        '[agents.writer]\ndriver = "command"\ncommand = ["cat"]\n[limits]\nruns_per_hour = 2\n'
    )
    for number in range(3):
        bench.ask("send", agent="writer", text=f"t{number}")
    bench.finish(1)
    bench.finish(2)
    assert bench.running() == []
    bench.advance(3599)
    assert bench.running() == []
    bench.advance(2)
    assert bench.running() == [3]


def test_a_clock_set_back_lengthens_nothing(aipass_bench):
    bench = aipass_bench(
        '[agents.writer]\ndriver = "command"\ncommand = ["cat"]\n[limits]\nruns_per_hour = 1\n'
    )
    bench.ask("send", agent="writer", text="a")
    bench.finish(1)
    bench.ask("send", agent="writer", text="b")
    bench.clock.jump(-10 * 86400)
    bench.advance(3601)
    assert bench.running() == [2]
    bench.finish(2, outcome="lost")
    bench.clock.jump(-10 * 86400)
    bench.restart()
    bench.advance(3601)
    assert bench.running() == [3]


def test_a_handler_that_raises_is_told_skipped_and_at_last_disabled(aipass_bench):
    calls = []

    class Broken:
        __name__ = "broken"

        @aipass.hookimpl
        def register_handlers(self, config):
            def handle(event, view):
                calls.append(event.id)
                raise RuntimeError("boom")

            return [aipass.Handler("broken", ["file.closed"], handle)]

    bench = aipass_bench(aipass.testing.plugin.TOML, Broken())
    for number in range(7):
        bench.drop(f"src/{number}.py", "x")
    assert len(calls) == 5
    assert len(bench.events("handler.failed")) == 5
    (disabled,) = bench.events("handler.disabled")
    assert disabled.detail["error"] == "RuntimeError: boom"
    assert "`broken` failed 5 times" in bench.notices()[-1]
    assert bench.ask("resume", name="broken")["exit"] == 0
    for number in range(4):
        bench.drop(f"src/again{number}.py", "x")
    assert len(calls) == 9
    assert len(bench.events("handler.disabled")) == 1


def test_a_bug_in_one_item_leaves_the_others_alone(aipass_bench):
    bench = aipass_bench()
    bench.engine.tell([object()])  # nothing that the engine knows
    bench.ask("send", agent="writer", text="go")
    assert bench.running() == [1]
    (report,) = bench.layout.crashes.glob("*.md")
    assert "aipass stopped unexpectedly" in report.read_text()


def test_the_ledger_knows_what_an_event_caused_in_the_same_transaction(aipass_bench):
    bench = aipass_bench()
    event = None
    bench.drop("inbox/writer/x.md")
    (event,) = bench.events("file.closed")
    assert bench.dispatch(1)["cause"] == event.id
    assert ("inbox", "Dispatch", "dispatch 1") in bench.actions(event.id)


def test_a_configuration_that_changed_is_taken_over_and_a_broken_one_is_not(aipass_bench):
    bench = aipass_bench(TWO)
    bench.drop("aipass.toml", TWO + "[limits]\nconcurrency = 3\n")
    assert bench.engine.config.limits.concurrency == 3
    bench.drop("aipass.toml", TWO + "[limits]\nconcurrency = 'x'\n")
    assert bench.engine.config.limits.concurrency == 3
    (rejected,) = bench.events("config.rejected")
    assert "limits.concurrency" in rejected.detail["error"]
    assert bench.ledger.meta("config.error")


def test_what_could_start_other_programs_waits_for_a_person(aipass_bench):
    bench = aipass_bench(TWO)
    changed = TWO.replace('["cat"]', '["rm"]', 1) + '[agents.new]\ndriver = "command"\ncommand = ["x"]\n'
    bench.drop("aipass.toml", changed)
    assert bench.engine.config.agents["writer"].command == ("cat",)
    assert "new" not in bench.engine.config.agents
    (event,) = bench.events("config.changed")
    assert event.detail["waiting"] == ["agents.writer.command", "agents.new"]
    assert bench.ask("reload")["exit"] == 0
    assert bench.engine.config.agents["writer"].command == ("rm",)
    assert (bench.layout.inbox / "new").is_dir()


def test_dispatches_of_an_agent_that_is_gone_are_blocked_and_go_on_when_it_is_back(aipass_bench):
    bench = aipass_bench(TWO)
    bench.ask("send", agent="writer", text="a")
    bench.ask("send", agent="writer", text="b")
    bench.drop("aipass.toml", TWO[TWO.index("[agents.reviewer]") :])
    assert bench.dispatch(2)["state"] == "blocked"
    bench.finish(1, "x")
    assert bench.dispatch(1)["state"] == "failed"  # nobody knows any more what its output means
    bench.drop("aipass.toml", TWO)
    bench.ask("reload")
    assert bench.running() == [2]


def test_an_agent_may_not_do_what_is_for_people_or_the_orchestrator(aipass_bench):
    bench = aipass_bench('orchestrator = "reviewer"\n' + TWO)
    bench.ask("send", agent="writer", text="a")
    bench.ask("send", agent="reviewer", text="b")
    assert bench.ask("cancel", by=1, id="2")["exit"] == 3
    assert bench.ask("reload", by=2)["exit"] == 3
    assert bench.ask("cancel", by=2, id="1")["exit"] == 0
    assert bench.ask("send", by=99, agent="writer", text="x")["exit"] == 3
    assert bench.ask("send", by=1, agent="reviewer", text="from the writer")["exit"] == 0


def test_who_sends_follows_from_the_spool_folder(aipass_bench):
    bench = aipass_bench(TWO)
    bench.ask("send", agent="writer", text="a")
    reply = bench.ask("send", by=1, agent="reviewer", text="b", sender="human")
    senders = bench.ledger.all("senders", {"dispatch": reply["dispatch"]})
    assert [row["sender"] for row in senders] == ["writer"]
    assert bench.dispatch(reply["dispatch"])["hops"] == 1


def test_a_stalled_run_is_told_and_goes_on(aipass_bench):
    from aipass.features.dispatch.supervisors import Report

    bench = aipass_bench()
    bench.ask("send", agent="writer", text="a")
    bench.engine.tell([Report({"tell": "stalled", "run": 1, "quiet_s": 600})])
    bench.settle()
    assert bench.events("run.stalled")[0].by == 1
    assert bench.dispatch(1)["state"] == "running"


def test_environment_of_a_run_is_the_shells_less_what_leads_outside(aipass_bench):
    environ = {
        "PATH": "/bin",
        "TMUX": "x",
        "SSH_AUTH_SOCK": "x",
        "DBUS_SESSION_BUS_ADDRESS": "x",
        "DOCKER_HOST": "x",
        "MY": "1",
        "AIPASS_RUN": "7",
    }
    bench = aipass_bench(
        '[agents.writer]\ndriver = "command"\ncommand = ["cat"]\nenv = { A = "b", C = { from_env = "MY" } }\n',
        environ=environ,
    )
    bench.ask("send", agent="writer", text="a")
    env = bench.runner.started[1]["env"]
    assert not {"TMUX", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST"} & set(env)
    assert (env["A"], env["C"], env["MY"], env["AIPASS_RUN"], env["AIPASS_HOPS"]) == ("b", "1", "1", "1", "0")
    assert env["AIPASS_PROMPT_FILE"].endswith("/.aipass/runs/1/prompt.md")
    assert env["PATH"].endswith(":/bin")


def test_a_variable_that_the_shell_lacks_is_a_failed_start_that_says_so(aipass_bench):
    bench = aipass_bench(
        '[agents.writer]\ndriver = "command"\ncommand = ["cat"]\nretries = 0\nenv = { C = { from_env = "NOPE" } }\n'
    )
    bench.ask("send", agent="writer", text="a")
    assert "`NOPE`" in bench.dispatch(1)["reason"]


def test_the_engine_is_idle_only_when_nothing_is_queued_running_or_due(aipass_bench):
    bench = aipass_bench()
    assert bench.engine.is_idle()
    bench.ask("send", agent="writer", text="a")
    assert not bench.engine.is_idle()
    bench.finish(1, outcome="lost")
    assert not bench.engine.is_idle()
    bench.advance(5)
    bench.finish(2)
    assert bench.engine.is_idle()


def test_what_a_cli_always_tries_and_is_refused_is_on_record_and_shown_to_nobody(aipass_bench):
    bench = aipass_bench('[agents.writer]\ndriver = "opencode"\n')
    bench.ask("send", agent="writer", text="go")
    about = {"operation": "write", "reason": "git's own files", "owner": None, "count": 1, "pid": 7}
    for path in (".git/opencode", ".git/config"):
        bench.runner._report({"tell": "denied", "run": 1, "path": path, **about})
        bench.settle()
    assert [event.path for event in bench.events("write.denied")] == [".git/opencode", ".git/config"]
    assert [row["path"] for row in bench.ledger.all("refused_of", {"dispatch": 1})] == [".git/config"]


def test_what_was_asked_while_no_engine_ran_and_is_refused_is_a_notice(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("w.py", "print('done')")
    repository.aipass("init")
    repository.aipass("cancel", "15")
    repository.aipass("send", "w", "go")
    repository.aipass("up", "--detach")
    repository.wait_for(
        lambda: "`cancel`, requested while no engine ran" in repository.aipass("status").stdout
    )
    repository.answer("w/*.md")
    assert "`send`" not in repository.aipass("status").stdout
    # Who waits for the reply has it.
    repository.aipass("cancel", "16", check=None)
    assert repository.aipass("status").stdout.count("requested while no engine ran") == 1
