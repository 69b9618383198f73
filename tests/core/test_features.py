"""Features: what a third party's may add, what is refused, and that an effect is done once whatever happens between commit and world."""

from __future__ import annotations

import dataclasses
import importlib.util
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import ROOT

from aipass import Action, Applied, Authority, Effect, Fact, Field, PluginError, RunHook, Verb, app, hookimpl
from aipass.core.step import Again, Done
from aipass.errors import ConfigError, LedgerError
from aipass.ledger import Ledger
from aipass.plugins import Plugins

EXAMPLE = ROOT / "examples/plugin-feature/aipass_snooze.py"
WRITER = '[agents.writer]\ndriver = "command"\ncommand = ["cat"]\n'
OTHER = WRITER + '[agents.other]\ndriver = "command"\ncommand = ["cat"]\n'


def load(path=EXAMPLE):
    spec = importlib.util.spec_from_file_location("aipass_snooze", path)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["aipass_snooze"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def snooze():
    return load()


def feature(setup):
    """A plugin of one `setup`."""
    return SimpleNamespace(__name__="thirdparty", setup=hookimpl(setup, specname="setup"))


@dataclasses.dataclass(frozen=True, slots=True)
class Hum(Action):
    """An action of nobody's."""

    text: str = ""


# -- the example -------------------------------------------------------------------------------------------------------


def test_setup_lets_a_third_party_bring_a_whole_feature(aipass_bench, snooze):
    bench = aipass_bench(WRITER, snooze)
    assert bench.ask("snooze", agent="writer", text="Look again", seconds=60)["message"] == "snoozed"
    assert bench.dispatches() == []
    assert (bench.layout.state / "snoozed-1").exists()
    bench.advance(61)
    (dispatch,) = bench.dispatches()
    assert (dispatch["agent"], dispatch["handler"]) == ("writer", "snooze")
    assert bench.runner.prompt(1).startswith("Look again")


def test_its_part_of_the_prompt_and_of_the_status(aipass_bench, snooze):
    bench = aipass_bench(WRITER, snooze)
    bench.ask("snooze", agent="writer", text="later", seconds=600)
    bench.ask("send", agent="writer", text="now")
    assert "Snoozed for you: 1." in bench.runner.prompt(1)
    gather, show = bench.engine.core.status["snooze"]
    assert show(gather(bench.ledger)) == ["snoozed for writer"]


def test_its_setting_is_checked_now_and_later(aipass_bench, snooze):
    bench = aipass_bench(WRITER + "[plugins.snooze]\nlongest_s = 10\n", snooze)
    reply = bench.ask("snooze", agent="writer", text="x", seconds=11)
    assert (reply["exit"], reply["message"]) == (2, "that is longer than plugins.snooze.longest_s allows")
    bench.layout.config.write_text(WRITER + '[plugins.snooze]\nlongest_s = "long"\n')
    reply = bench.ask("reload")
    assert reply["exit"] == 2
    assert "plugins.snooze.longest_s" in reply["message"]
    bench.layout.config.write_text(WRITER + "[plugins.snooze]\nlongest_s = 20\n")
    assert bench.ask("reload")["exit"] == 0
    assert bench.ask("snooze", agent="writer", text="x", seconds=11)["exit"] == 0


def test_settings_that_do_not_fit_keep_the_engine_from_starting(aipass_bench, snooze):
    with pytest.raises(ConfigError, match=r"plugins\.snooze\.longest"):
        aipass_bench(WRITER + "[plugins.snooze]\nlongest = 1\n", snooze)


def test_what_an_agent_may_not_ask_for_it_does_not_get(aipass_bench, snooze):
    bench = aipass_bench(OTHER, snooze)
    bench.ask("send", agent="writer", text="go")
    reply = bench.ask("snooze", by=1, agent="other", text="x", seconds=1)
    assert reply["exit"] == 3
    assert "people and the orchestrator" in reply["message"]


def test_a_timer_survives_a_restart(aipass_bench, snooze):
    bench = aipass_bench(WRITER, snooze)
    bench.ask("snooze", agent="writer", text="later", seconds=60)
    bench.restart()
    bench.advance(61)
    assert len(bench.dispatches()) == 1


def test_without_it_its_table_stays_and_is_named(aipass_bench, snooze):
    bench = aipass_bench(WRITER, snooze)
    bench.ask("snooze", agent="writer", text="later", seconds=60)
    bench._given = ()
    bench.restart()
    assert bench.ledger.left_by() == ["snooze"]
    db = sqlite3.connect(bench.layout.ledger)
    assert db.execute("SELECT text FROM snooze_later").fetchall() == [("later",)]
    db.close()
    bench._given = (snooze,)
    bench.restart()
    assert bench.ledger.left_by() == []


# -- effects -----------------------------------------------------------------------------------------------------------


def test_an_effect_that_a_killed_engine_left_is_done_once_by_the_next(aipass_bench, snooze, monkeypatch):
    bench = aipass_bench(WRITER, snooze)
    core = bench.engine.core
    _, settled = core.effects["snooze.note"]

    def killed(pending):
        raise KeyboardInterrupt  # whatever ends a process between the commit and the world

    core.effects["snooze.note"] = killed, settled
    with pytest.raises(KeyboardInterrupt):
        bench.ask("snooze", agent="writer", text="x", seconds=60)
    assert not (bench.layout.state / "snoozed-1").exists()
    bench.restart()
    assert (bench.layout.state / "snoozed-1").exists()
    (pending,) = [
        row
        for row in bench.ledger.all("actions_of_event", {"event": _event(bench)})
        if row["type"] == "Snooze"
    ]
    assert pending["outcome"] == "snoozed as 1, and noted"
    (bench.layout.state / "snoozed-1").unlink()
    bench.restart()
    assert not (bench.layout.state / "snoozed-1").exists(), "what has settled is not done again"


def _event(bench):
    return bench.events("request.received")[0].id


def test_an_effect_that_cannot_be_done_yet_is_tried_again(aipass_bench):
    tries = []

    def do(pending):
        tries.append(pending.arguments["n"])
        return Again(5.0) if len(tries) < 3 else Done("done at last")

    bench = aipass_bench(WRITER, feature(lambda core: _hums(core, do)))
    event = bench.tell("engine.started")
    assert tries == [1]
    assert not bench.engine.is_idle(), "it waits for another try"
    bench.advance(20)
    assert tries == [1, 1, 1]
    assert ("hum", "Hum", "done at last") in bench.actions(event.id)


def test_what_an_effect_raises_is_its_outcome(aipass_bench):
    def do(pending):
        raise OSError(28, "No space left on device")

    bench = aipass_bench(WRITER, feature(lambda core: _hums(core, do)))
    event = bench.tell("engine.started")
    assert any("No space left" in outcome for _, kind, outcome in bench.actions(event.id) if kind == "Hum")
    assert any("No space left" in text for text in bench.notices())


def _hums(core, do):
    core.add_action(Hum, lambda step, event, action: Applied("to be done", effect=Effect("hum.do", {"n": 1})))
    core.add_effect("hum.do", do)
    core.add_listener(
        ("engine.started",),
        lambda step, event: event.source == "test" and core.execute(step, event, Hum(), "hum"),
    )


def test_what_was_pending_before_effects_were_data_is_done_after_the_upgrade(aipass_bench):
    bench = aipass_bench(WRITER)
    bench.ask("send", agent="writer", text="go")
    bench.finish(1, "the answer")
    (answer,) = (bench.layout.outbox / "writer").glob("*.md")
    answer.unlink()
    bench.ledger.close()
    db = sqlite3.connect(bench.layout.ledger)
    db.execute("UPDATE actions SET state = 'pending' WHERE type = 'Deliver'")
    db.execute("ALTER TABLE actions DROP COLUMN effect")
    db.execute("PRAGMA user_version = 11")
    db.commit()
    db.close()
    bench.restart()
    assert "the answer" in answer.read_text()
    assert not bench.ledger.all("pending_actions")


# -- what is refused when it is added ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Odd(Action):
    """An action with a field that no ledger holds."""

    when: complex = 0j


WRONG = {
    "action of no class": (lambda core: core.add_action(Hum(), lambda step, event, action: None), "not a class of actions"),
    "action's field": (lambda core: core.add_action(Odd, lambda step, event, action: None), "Odd.when is a complex"),
    "action that is there": (lambda core: [core.add_action(Hum, _apply), core.add_action(Hum, _apply)], "Hum already"),
    "apply of one argument": (lambda core: core.add_action(Hum, lambda step: None), "does not fit"),
    "effect that is there": (lambda core: [core.add_effect("x", _do), core.add_effect("x", _do)], "effect `x` already"),
    "effect's arguments": (lambda core: core.add_effect("x", lambda: None), "does not fit"),
    "verb that is ours": (lambda core: core.add_verb(Verb("send", lambda request: [])), "verb `send` already"),
    "timer's name": (lambda core: core.add_timer("a:b", lambda step, rest: None), "not a name"),
    "timer that is ours": (lambda core: core.add_timer("retry", lambda step, rest: None), "timer `retry` already"),
    "listener's arguments": (lambda core: core.add_listener(("*",), lambda event: None), "does not fit"),
    "filter's arguments": (lambda core: core.add_fact_filter(("*",), lambda fact: None), "does not fit"),
    "report that is ours": (lambda core: core.add_report(next(iter(core.reports)), lambda step, report: None), "already"),
    "no run hook": (lambda core: core.add_run_hook(object()), "not a RunHook"),
    "view that is ours": (lambda core: core.add_view("agents", lambda: ()), "view `agents` already"),
    "view's name": (lambda core: core.add_view("now", lambda: ()), "cannot be the name"),
    "prompt part": (lambda core: core.add_prompt_part(1, lambda: ""), "does not fit"),
    "status": (lambda core: core.add_status("x", lambda: 1, lambda found: []), "does not fit"),
    "prune": (lambda core: core.add_prune(lambda: 0), "does not fit"),
    "look again": (lambda core: core.add_look_again(lambda: None), "does not fit"),
    "locked": (lambda core: core.add_locked(lambda: None), "does not fit"),
    "gone": (lambda core: core.add_gone(lambda x: None), "does not fit"),
    "idle check": (lambda core: core.add_idle_check(lambda x: True), "does not fit"),
    "source": (lambda core: core.add_source(object()), "not a source"),
    "reconfigure": (lambda core: core.add_reconfigure(lambda: None), "does not fit"),
    "table of ours": (lambda core: core.ledger.extend("x1", ["DROP TABLE events;"]), "more than tables"),
    "table of another's name": (lambda core: core.ledger.extend("x1", ["CREATE TABLE y1_t (a);"]), "more than tables"),
    "a pragma": (lambda core: core.ledger.extend("x1", ["PRAGMA user_version = 9;"]), "more than tables"),
    "an attached file": (lambda core: core.ledger.extend("x1", ["ATTACH 'y' AS z;"]), "more than tables"),
    "a trigger": (lambda core: core.ledger.extend("x1", ["CREATE TRIGGER x1_t AFTER INSERT ON events BEGIN DELETE FROM events; END;"]), "more than tables"),
    "statement on ours": (lambda core: core.ledger.extend("x1", [], "-- name: x1_a\n-- a\nDELETE FROM events"), "more than tables"),
    "statement of another's name": (lambda core: core.ledger.extend("x1", [], "-- name: other\n-- a\nSELECT 1"), "must be named"),
    "no SQL": (lambda core: core.ledger.extend("x1", ["CREATE TABEL x1_t (a);"]), "syntax error"),
    "a name of ours": (lambda core: core.ledger.extend("events", ["DROP TABLE events;"]), "ledger's own"),
    "a rollback": (lambda core: core.ledger.extend("x1", ["CREATE TABLE x1_t (a UNIQUE);"], "-- name: x1_a\n-- a\nINSERT OR ROLLBACK INTO x1_t VALUES (1)"), "OR ABORT"),
    "a table that rolls back": (lambda core: core.ledger.extend("x1", ["CREATE TABLE x1_t (a UNIQUE ON CONFLICT ROLLBACK);"]), "OR ABORT"),
    "a new name": (lambda core: core.ledger.extend("x1", ["CREATE TABLE x1_t (a); ", "ALTER TABLE x1_t RENAME TO sneaky;"]), "more than tables"),
    "numbers of ours": (lambda core: core.ledger.extend("x1", [], "-- name: x1_a\n-- a\nDELETE FROM sqlite_sequence"), "more than tables"),
    "two in one": (lambda core: core.ledger.extend("x1", [], "-- name: x1_a\n-- a\nSELECT 1; SELECT 2"), "more than one|only execute one"),
    "feature's name": (lambda core: core.ledger.extend("X-1", []), "small letters"),
}  # fmt: skip


def _apply(step, event, action):
    return Applied("")


def _do(pending):
    return Done("")


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_in_words_when_it_is_added(aipass_bench, what):
    add, words = WRONG[what]
    with pytest.raises(PluginError, match=words):
        aipass_bench(WRITER, feature(add))


def test_a_feature_that_fails_half_way_leaves_nothing_behind(aipass_bench):
    bench = aipass_bench(WRITER)
    plugins = Plugins()

    def setup(core):
        core.add_action(Hum, _apply)
        core.add_verb(Verb("hum", lambda request: []))
        core.add_run_hook(RunHook())
        raise RuntimeError("half way")

    plugins.register(feature(setup), "half", origin="somebody's")
    core = bench.engine.core
    before = len(core.actions), len(core.verbs), len(core.run_hooks)
    plugins.set_up(core)
    assert (len(core.actions), len(core.verbs), len(core.run_hooks)) == before
    assert "half way" in plugins.failed["half"]


def test_a_newer_versions_tables_are_not_touched(tmp_path):
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path)
    ledger.extend("x1", ["CREATE TABLE x1_t (a);", "ALTER TABLE x1_t ADD COLUMN b;"])
    ledger.close()
    ledger = Ledger.open(path)
    with pytest.raises(LedgerError, match="newer version"):
        ledger.extend("x1", ["CREATE TABLE x1_t (a);"])
    ledger.extend(
        "x1", ["CREATE TABLE x1_t (a);", "ALTER TABLE x1_t ADD COLUMN b;", "CREATE INDEX x1_i ON x1_t (b);"]
    )
    ledger.close()


def test_a_migration_that_fails_changes_nothing(tmp_path):
    ledger = Ledger.open(tmp_path / "ledger.db")
    with pytest.raises(PluginError):
        ledger.extend("x1", ["CREATE TABLE x1_t (a); INSERT INTO meta VALUES ('a', 'b');"])
    assert ledger.meta("extension.x1") is None
    ledger.extend("x1", ["CREATE TABLE x1_t (a);"])
    ledger.close()


# -- the registry's own rules ------------------------------------------------------------------------------------------


def test_a_verb_that_says_nothing_of_it_is_for_people(aipass_bench):
    verb = Verb("hum", lambda request: request.refuse("it was asked", 1))
    bench = aipass_bench(WRITER, feature(lambda core: core.add_verb(verb)))
    bench.ask("send", agent="writer", text="go")
    assert bench.ask("hum")["message"] == "it was asked"
    assert bench.ask("hum", by=1)["message"] == "`hum` is for people, and `writer` is an agent"


AUTHORITY = {
    "send": Authority.ANYONE, "deliver": Authority.ANYONE, "commit": Authority.ANYONE, "note": Authority.ANYONE,
    "message": Authority.ANYONE, "ask": Authority.ANYONE, "answer": Authority.ANYONE, "read": Authority.ANYONE,
    "forget": Authority.ANYONE, "cancel": Authority.ORCHESTRATOR, "retry": Authority.ORCHESTRATOR,
    "resume": Authority.ORCHESTRATOR, "plan": Authority.ORCHESTRATOR, "reload": Authority.PERSON,
}  # fmt: skip


def test_every_verb_refuses_whom_it_must(aipass_bench):
    """A verb more needs its line here: who may ask is decided, not forgotten."""
    bench = aipass_bench(WRITER)
    bench.ask("send", agent="writer", text="go")
    verbs = bench.engine.core.verbs
    assert verbs.keys() == AUTHORITY.keys() | {"pr"}
    assert {verbs["pr"].asks_for({"do": do}) for do in ("merge", "close")} == {Authority.ORCHESTRATOR}
    assert verbs["pr"].asks_for({"do": "open"}) is Authority.ANYONE
    filled = {str: "x", int: 1, bool: True, list: []}
    for name, needed in AUTHORITY.items():
        assert verbs[name].asks_for({}) is needed
        fields = {field: filled[kind] for field, (kind, required) in verbs[name].fields.items() if required}
        reply = bench.ask(name, by=1, **fields)
        refused = reply["exit"] == 3 and "is for people" in (reply["message"] or "")
        assert refused is (needed is not Authority.ANYONE), name


def test_every_action_is_somebodys(aipass_bench):
    from aipass import action

    kinds = {one for one in vars(action).values() if isinstance(one, type) and issubclass(one, Action)} - {
        Action
    }
    assert kinds == aipass_bench(WRITER).engine.core.actions.keys()


def test_what_is_added_is_asked_for_each_by_a_docs_heading():
    """`docs/features.md` has a heading for every `add_…`, and a test names each."""
    from aipass.core.registry import Core

    page = (ROOT / "docs/features.md").read_text()
    tests = Path(__file__).read_text()
    for name in dir(Core):
        if name.startswith("add_") or name in {"settings", "execute", "post", "settle", "answer"}:
            assert f"## `{name}`" in page, name
            assert name in tests + EXAMPLE.read_text() or name in {"settle", "post"}, name


def test_a_feature_that_another_needs_is_missed_in_words(aipass_bench):
    class Face:
        pass

    with pytest.raises(PluginError, match="Face is needed, and nothing provides it"):
        aipass_bench(WRITER, feature(lambda core: core.need(Face)))


class Watcher(RunHook):
    """Writes down what it is told, with the place where that stands among the ledger's facts."""

    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name in {"before_start", "begins", "furnish", "started", "over", "judge", "may_retry", "ended"}:
            object.__getattribute__(self, "seen").append(name)
        return super().__getattribute__(name)


def test_run_hooks_are_called_in_one_order(aipass_bench):
    watcher = Watcher()
    bench = aipass_bench(WRITER, feature(lambda core: core.add_run_hook(watcher)))
    watcher.seen.clear()
    bench.ask("send", agent="writer", text="go")
    bench.finish(1, "done")
    assert watcher.seen == [
        "before_start",
        "begins",
        "furnish",
        "started",
        "over",
        "judge",
        "may_retry",
        "ended",
    ]


def test_listeners_filters_and_reports_meet_what_they_want(aipass_bench):
    heard = []

    @dataclasses.dataclass
    class Report:
        text: str

    def setup(core):
        core.add_report(
            Report, lambda step, report: step.facts.append(Fact("engine.started", "x", ref=report.text))
        )
        core.add_fact_filter(("engine.started",), lambda step, fact: None if fact.ref == "drop" else fact)
        core.add_listener(("engine.*",), lambda step, event: heard.append(event.ref))
        core.add_step(begin=lambda step: None, end=lambda step: None)
        core.add_start(ready=lambda: core.post(Report("from the start")))
        core.add_view("hum", lambda: "hums")
        core.add_prune(lambda before: 0)
        core.add_idle_check(lambda: True)
        core.add_config_check(lambda config: None)
        core.add_reconfigure(after=lambda now: None)

    bench = aipass_bench(WRITER, feature(setup))
    bench.engine.tell_now([Report("keep"), Report("drop")])
    bench.settle()
    assert "keep" in heard
    assert "from the start" in heard
    assert "drop" not in heard
    assert bench.engine._view.hum() == "hums"
    assert bench.engine._view["hum"]() == "hums"


def test_a_source_of_a_feature_is_started(aipass_bench):
    calls = []
    source = SimpleNamespace(
        name="x", start=lambda tell: calls.append("start"), stop=lambda: calls.append("stop")
    )
    aipass_bench(WRITER, feature(lambda core: core.add_source(source)))
    assert calls == ["start"]


def test_the_built_in_features_stand_in_one_tuple():
    assert len(app.FEATURES) == len(set(app.FEATURES))


# -- features that are left out ----------------------------------------------------------------------------------------

ALONE = [("plans",), ("rules",), ("reload",), ("inbox",), ("messages", "memory"), ("messages",), ("plans", "git"), ("plans", "git", "messages", "memory", "rules", "reload", "inbox")]  # fmt: skip


@pytest.mark.parametrize("without", ALONE, ids="-".join)
def test_what_nothing_else_needs_may_be_left_out(aipass_bench, without):
    bench = aipass_bench(WRITER, without=without)
    assert bench.ask("send", agent="writer", text="go")["exit"] == 0
    bench.finish(1, "the answer")
    assert [row["state"] for row in bench.dispatches()] == ["succeeded"]
    assert bench.answer("writer", "send.1")[0] == "the answer"
    assert not [text for text in bench.notices() if "failed" in text or "disabled" in text]


@pytest.mark.parametrize(
    ("without", "words"),
    [
        (("memory",), "messages needs memory, which is left out"),
        (("git",), "plans needs git, which is left out"),
        (("plan",), "there is no feature `plan`; did you mean `plans`"),
        (("nothing",), "the features are: "),
    ],
)
def test_what_another_needs_is_said(aipass_bench, without, words):
    with pytest.raises(ConfigError, match=words):
        aipass_bench(WRITER, without=without)


# -- a plugin's feature that fails -------------------------------------------------------------------------------------


class Faulty(RunHook):
    """Raises wherever it can."""

    def __getattribute__(self, name):
        if name in {
            "before_start",
            "begins",
            "furnish",
            "adopt",
            "started",
            "over",
            "judge",
            "may_retry",
            "ended",
            "stays",
        }:
            return _raise
        return super().__getattribute__(name)


def _raise(*_):
    raise RuntimeError("a bug of the plugin's")


def test_a_plugins_feature_that_raises_everywhere_keeps_nothing_from_being_done(tmp_path):
    """Each is reported; runs start and end, requests are answered, and the engine stops in good order."""
    from aipass.testing.bench import Bench

    def setup(core):
        core.add_run_hook(Faulty())
        core.add_listener(("*",), lambda step, event: _raise())
        core.add_fact_filter(("*",), lambda step, fact: _raise())
        core.add_step(begin=lambda step: _raise(), end=lambda step: _raise())
        core.add_start(start=lambda step: _raise(), ready=lambda: _raise(), stop=lambda: _raise())
        core.add_memory(lambda now: _raise())
        core.add_prompt_part(1, lambda work: _raise())
        core.add_idle_check(lambda: _raise())
        core.add_timer("faulty", lambda step, rest: _raise())
        core.timers.set("faulty:x", 0.0)
        core.add_reconfigure(lambda step: _raise(), lambda now: _raise())
        core.add_prune(lambda before: _raise())

    bench = Bench(tmp_path, WRITER, feature(setup))
    assert bench.ask("send", agent="writer", text="go")["exit"] == 0
    bench.finish(1, "the answer")
    bench.layout.config.write_text(OTHER)
    assert bench.ask("reload")["exit"] == 0
    bench.advance(100_000)
    assert [row["state"] for row in bench.dispatches()] == ["succeeded"]
    assert bench.answer("writer", "send.1")[0] == "the answer"
    assert bench.engine.is_idle()
    assert list(bench.layout.crashes.iterdir())
    bench.close()


def test_a_verb_that_raises_is_answered_and_keeps_no_other_from_being_asked_for(aipass_bench):
    verb = Verb("hum", _raise, {"loud": Field(bool)})
    bench = aipass_bench(WRITER, feature(lambda core: core.add_verb(verb)))
    for _ in range(10):
        reply = bench.ask("hum")
        assert (reply["exit"], "a bug of the plugin's" in reply["message"]) == (70, True)
    assert bench.ask("send", agent="writer", text="go")["exit"] == 0


def test_events_of_the_end_of_a_step_and_of_the_start_are_recorded(aipass_bench):
    told = []

    def end(step):
        if not told:
            told.append(1)
            step.facts.append(Fact("clock.tick", "hum", ref="end"))

    def setup(core):
        core.add_step(end=end)
        core.add_start(start=lambda step: step.facts.append(Fact("clock.tick", "hum", ref="start")))

    bench = aipass_bench(WRITER, feature(setup))
    bench.ask("send", agent="writer", text="go")
    assert {event.ref for event in bench.events("clock.tick")} == {"start", "end"}


def test_what_may_be_asked_for_is_one_list(aipass_bench):
    assert app.verbs() == aipass_bench(WRITER).engine.core.fields()


def test_a_persons_reload_and_a_save_in_one_step_leave_the_persons_word_in_force(aipass_bench):
    bench = aipass_bench(WRITER)
    bench.layout.config.write_text(OTHER)
    asked = {"verb": "reload"}
    saved = Fact("file.closed", "filesystem", path="aipass.toml")
    bench.engine.tell_now([Fact("request.received", "spool", ref="r-0001", detail=asked), saved])
    bench.settle()
    assert "other" in bench.engine.config.agents
    assert bench.ledger.meta("config.waiting") == "[]"
    assert not list(bench.layout.crashes.iterdir()) if bench.layout.crashes.exists() else True
    assert bench.ask("send", agent="other", text="go")["exit"] == 0


def test_what_fails_when_a_configuration_is_taken_over_keeps_nothing_else_from_it(aipass_bench):
    bench = aipass_bench(WRITER)
    (bench.layout.inbox / "other").symlink_to("/nonexistent")
    cron = '[[on]]\nname = "minutely"\ncron = "* * * * *"\ndispatch = "writer"\ntask = "x"\n'
    bench.layout.config.write_text(OTHER + cron)
    assert bench.ask("reload")["exit"] == 0
    bench.advance(200)
    assert bench.events("clock.cron")


def test_secrets_are_masked_whatever_is_left_out(aipass_bench):
    key = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
    bench = aipass_bench(OTHER, without=("messages",))
    bench.ask("send", agent="writer", text="go")
    bench.ask("note", by=1, do="learning", text=f"it is {key}")
    bench.ask("send", by=1, agent="other", text=f"use {key}")
    assert bench.ask("send", by=1, agent="other", text="x" * 100_000)["exit"] == 2
    assert key not in str([event.detail for event in bench.events()])


@pytest.mark.parametrize("name", sorted(app.ALWAYS))
def test_what_makes_the_engine_cannot_be_left_out(aipass_bench, name):
    with pytest.raises(ConfigError, match="cannot be left out"):
        aipass_bench(WRITER, without=(name,))


@pytest.mark.parametrize("said", [None, "people", "anyone", True])
def test_who_may_ask_is_people_where_it_is_not_understood(said):
    assert Verb("hum", _do, {}, lambda fields: said).asks_for({}) is Authority.PERSON


def test_what_a_plugin_added_to_other_features_is_taken_back_too(aipass_bench):
    from aipass.features.dispatch.feature import DispatchFeature
    from aipass.features.dispatch.hook import DispatchHook

    class Never(DispatchHook):
        def refuses(self, step, event, wish):
            return "never"

    def setup(core):
        core.need(DispatchFeature).add_hook(Never())
        core.ledger.extend("hum", [], "-- name: hum_one\n-- One.\nSELECT 1")
        raise RuntimeError("half way")

    bench = aipass_bench(WRITER)
    plugins = Plugins()
    plugins.register(feature(setup), "half", origin="somebody's")
    plugins.set_up(bench.engine.core)
    assert bench.ask("send", agent="writer", text="go")["exit"] == 0
    with pytest.raises(KeyError):
        bench.ledger.one("hum_one")


def test_what_a_failing_function_of_a_plugin_had_written_is_taken_back(aipass_bench):
    """And nothing else of its step: not what was recorded before, buffered or not."""

    def listen(step, event):
        core.ledger.flush()
        core.ledger.run("set_meta", {"key": "hum", "value": "half"})
        step.facts.append(Fact("clock.tick", "hum", ref="half"))
        step.notify(core.ledger, "half")
        raise RuntimeError("half way")

    bench = aipass_bench(WRITER, feature(lambda core: core.add_listener(("request.received",), listen)))
    core = bench.engine.core
    assert bench.ask("send", agent="writer", text="go")["exit"] == 0
    assert bench.ledger.meta("hum") is None
    assert not bench.events("clock.tick")
    assert bench.notices() == []
    ids = [event.id for event in bench.events()]
    assert ids == list(range(1, len(ids) + 1)), "no event is lost or twice"
    assert bench.events("request.received")
    assert bench.events("run.started") or bench.running() == [1]
