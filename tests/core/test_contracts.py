"""What holds for every action, by parameter over the registry: a new action that breaks it, or has no sample here, fails."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from types import SimpleNamespace

import pytest

from aipass import action as actions
from aipass import hookimpl
from aipass.action import Action
from aipass.cli.status import PARTS

TOML = """
[agents.writer]
driver = "command"
command = ["cat"]
[agents.other]
driver = "command"
command = ["cat"]
"""
PLAN = {
    "id": "1", "title": "One", "phases": [{"id": "build", "agent": "writer", "task": "Build it.", "owns": ["/a/"], "delivers": ["/a/x"]}],
}  # fmt: skip
#: One of each that can be carried out after `prepared`: dispatch 1 has ended, dispatch 2 runs, plan 1 lies in plans/.
SAMPLES: dict[type[Action], Action] = {
    type(one): one
    for one in (
        actions.Dispatch("other", "Do it"), actions.Deliver(1), actions.Reject("inbox/writer/x.bin", "it is no text", "drop text"),
        actions.Refuse("r-none", "no"), actions.Reply("r-none", "yes"), actions.Cancel(2), actions.Retry(1),
        actions.Pause("agent", "writer", "enough"), actions.Resume("writer"), actions.Wake("later", 5.0), actions.Notify("look"),
        actions.Reload(trusted=True), actions.Advance("1", "build", "ready"), actions.Written("1", "build", "a/x"), actions.Check("1", "build"),
        actions.OpenPr("writer", "Work", dispatch=1), actions.MergePr([1]), actions.ClosePr([1]), actions.Note("writer", "todo", "mend it"),
        actions.FinishTodo("writer", 1), actions.Forget(1), actions.Message("writer", "hello", "human"), actions.Ask("human", "what?", "writer", run=2),
        actions.Answer(1, "that", "human"), actions.MarkRead([1], "writer"), actions.Steer("start", "1"), actions.Ignore("nothing to do"),
    )
}  # fmt: skip
#: The same, of what is not there. None where an action is about nothing that could be missing.
MISSING: dict[type[Action], Action | None] = {
    type(one): one
    for one in (
        actions.Dispatch("nobody", "Do it"), actions.Deliver(99), actions.Cancel(99), actions.Retry(99), actions.Resume("nobody"),
        actions.Advance("9", "none", "ready"), actions.Written("9", "none", "x"), actions.Check("9", "none"), actions.OpenPr("nobody", "Work"),
        actions.MergePr([99]), actions.ClosePr([99]), actions.Note("nobody", "todo", "x"), actions.FinishTodo("nobody", 1), actions.Forget(99),
        actions.Message("nobody", "x", "human"), actions.Ask("nobody", "x", "writer"), actions.Answer(99, "x", "human"),
        actions.Steer("start", "99"),
    )
} | dict.fromkeys(
    (
        actions.Reject, actions.Refuse, actions.Reply, actions.Pause, actions.Wake, actions.Notify, actions.Reload, actions.Ignore,
        actions.MarkRead,
    )
)  # fmt: skip
EVERY = pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)


def asking(action: Action) -> SimpleNamespace:
    """A plugin whose feature wants this action on `poke`, once."""

    def setup(core):
        core.add_listener(("poke",), lambda step, event: core.execute(step, event, action, "contract"))

    return SimpleNamespace(__name__="contract", setup=hookimpl(setup), register_kinds=hookimpl(lambda: {"poke": "Somebody pokes."}, specname="register_kinds"))  # fmt: skip


def prepared(aipass_bench, action: Action):
    bench = aipass_bench(TOML, asking(action))
    plans = bench.layout.root / "plans"
    plans.mkdir(exist_ok=True)
    (plans / "0001-one.json").write_text(json.dumps(PLAN))
    bench.ask("send", agent="writer", text="first")
    bench.finish(1, "done")
    bench.ask("send", agent="writer", text="second")
    bench.drop("inbox/writer/x.bin", b"\0")
    return bench


def recorded(bench, event):
    """The row of the action itself; what it wants besides is recorded before it."""
    rows = bench.ledger.all("actions_of_event", {"event": event.id})
    return [row for row in rows if row["handler"] == "contract"][-1]


def test_every_action_of_the_registry_has_its_samples(aipass_bench):
    kinds = aipass_bench(TOML).engine.core.actions.keys()
    assert SAMPLES.keys() == kinds
    assert MISSING.keys() == kinds


@EVERY
def test_it_is_recorded_with_its_fields_and_what_came_of_it(aipass_bench, kind):
    bench = prepared(aipass_bench, SAMPLES[kind])
    row = recorded(bench, bench.tell("poke"))
    assert row["type"] == kind.__name__
    given = dataclasses.asdict(SAMPLES[kind])
    assert {name: given[name] for name in json.loads(row["payload"])} == json.loads(row["payload"])
    assert row["state"] in {"done", "failed"}
    assert row["outcome"]


@EVERY
def test_what_a_kill_left_of_it_is_done_by_the_next_engine(aipass_bench, kind):
    bench = prepared(aipass_bench, SAMPLES[kind])
    effects = bench.engine.core.effects

    def killed(pending):
        raise KeyboardInterrupt

    for name, (_, settled) in list(effects.items()):
        effects[name] = killed, settled
    try:
        bench.tell("poke")
    except KeyboardInterrupt:
        event = bench.events("poke")[-1]
        assert recorded(bench, event)["state"] == "pending"
        bench.restart()
    row = recorded(bench, bench.events("poke")[-1])
    assert row["state"] in {"done", "failed"}
    assert len(bench.events("poke")) == 1


@EVERY
def test_of_what_is_not_there_it_is_refused_in_words(aipass_bench, kind):
    action = MISSING[kind]
    if action is None:
        return
    bench = prepared(aipass_bench, action)
    before = len(bench.dispatches())
    row = recorded(bench, bench.tell("poke"))
    assert row["state"] == "failed" or "no " in row["outcome"] or "not " in row["outcome"], dict(row)
    assert len(bench.dispatches()) == before
    assert bench.ask("send", agent="other", text="the engine goes on")["exit"] == 0


def test_the_parts_of_the_status_are_those_that_features_add(aipass_bench):
    """The verb has a list of its own, because it must not import the engine."""
    assert set(PARTS) == aipass_bench(TOML).engine.core.status.keys()


def test_a_part_of_the_status_that_has_nothing_to_say_says_nothing(aipass_bench):
    bench = aipass_bench(TOML)
    for name, (gather, show) in bench.engine.core.status.items():
        found = gather(bench.ledger)
        assert json.loads(json.dumps(found)) == found, name
        assert all(isinstance(line, str) for line in show(found)), name


def test_each_feature_prunes_its_own_folders_and_only_what_is_old(aipass_bench):
    bench = aipass_bench(TOML)
    state = bench.layout.state
    places = ["quarantine/spool/x", "quarantine/foreign/7", "quarantine/trinity/writer/x", "quarantine/handover/x", "mail/writer/1.md", "merges/1", "checks/1"]  # fmt: skip
    for place in places:
        for name, age in (("old", 1000.0), ("new", 0.0)):
            path = state / f"{place}-{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
            os.utime(path, (time.time() - age, time.time() - age))
    (state / "quarantine/spool/link").symlink_to(state / "quarantine/spool/x-new")
    before = time.time() - 500
    assert sum(prune(before) for prune in bench.engine.core.prunes) == len(places)
    for place in places:
        assert not (state / f"{place}-old").exists()
        assert (state / f"{place}-new").exists()
