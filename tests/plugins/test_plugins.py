"""Hooks and their validation; the example package, installed by pip, with everything that can go wrong in one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from types import SimpleNamespace

import pytest
from paths import ROOT
from repository import agent

import aipass
from aipass import hookimpl
from aipass.config import model, reading
from aipass.errors import ConfigError, PluginError
from aipass.plugins import Plugins

EXAMPLE = ROOT / "examples/plugin"
WRITER = '[agents.writer]\ndriver = "command"\ncommand = ["cat"]\n'


def plugin(**functions):
    """A plugin of these hook implementations."""
    made = SimpleNamespace(**{name: hookimpl(function) for name, function in functions.items()})
    made.__name__ = "mine"
    return made


def test_register_handlers_gives_the_configuration_and_takes_handlers(aipass_bench):
    seen = []

    def register_handlers(config):
        seen.append(config)
        return [
            aipass.Handler(
                "mine", "file.*", lambda event, view: [aipass.Dispatch("writer", event.path)], paths=["src/"]
            )
        ]

    bench = aipass_bench(WRITER, plugin(register_handlers=register_handlers))
    bench.drop("src/x", "1")
    assert seen[0].agents["writer"].driver == "command"
    assert [row["key"] for row in bench.dispatches()] == ["src/x"]


def test_register_kinds_makes_a_kind_that_rules_and_handlers_may_name(aipass_bench):
    toml = (
        WRITER
        + '[[on]]\nname = "r"\nevent = "my.kind"\ndispatch = "writer"\ntask = "{detail.what} {subject}"\n'
    )
    bench = aipass_bench(toml, plugin(register_kinds=lambda: {"my.kind": "mine"}))
    bench.tell("my.kind", detail={"what": "it", "subject": "s"})
    assert bench.runner.prompt(1) == "it s"


def test_register_kinds_refuses_one_that_exists():
    plugins = Plugins()
    plugins.register(plugin(register_kinds=lambda: {"file.closed": "again"}), "mine")
    with pytest.raises(PluginError, match=r"`file\.closed` already exists"):
        plugins.kinds()


def test_register_drivers_makes_a_driver_that_agents_may_name(aipass_bench):
    class Shout:
        name = "shout"

        def command(self, job):
            return aipass.Command(["echo", job.prompt])

        def outcome(self, job, end):
            return aipass.Outcome("succeeded", end.stdout.read_text().upper())

    bench = aipass_bench('[agents.a]\ndriver = "shout"\n', plugin(register_drivers=lambda: [Shout()]))
    bench.ask("send", agent="a", text="hi")
    program, text = bench.runner.started[1]["argv"]
    assert (os.path.isabs(program), os.path.basename(program), text) == (True, "echo", "hi")
    for wrong in (lambda: bench.finish(7), lambda: bench.runner.prompt(7)):
        with pytest.raises(ValueError, match="run 7 is not running; running are: 1"):
            wrong()
    bench.finish(1, "hi")
    assert bench.answer("a", "send.1")[0] == "HI"


@pytest.mark.parametrize(
    ("command", "outcome", "reason"),
    [
        ("raise", None, "the driver raised RuntimeError: boom"),
        ("rubbish", None, "command returned "),
        ("ok", "raise", "could not judge the run: RuntimeError: boom"),
        ("ok", "rubbish", "it must return an Outcome"),
        ("ok", "state", "it must be one of succeeded, failed, overload, limit, afresh, blocked"),
    ],
)
def test_a_driver_that_fails_is_a_run_that_failed(aipass_bench, command, outcome, reason):
    class Bad:
        name = "bad"

        def command(self, job):
            if command == "raise":
                raise RuntimeError("boom")
            return aipass.Command(["cat"]) if command == "ok" else "rubbish"

        def outcome(self, job, end):
            if outcome == "raise":
                raise RuntimeError("boom")
            return aipass.Outcome("wonderful") if outcome == "state" else 7

    bench = aipass_bench(
        '[agents.a]\ndriver = "bad"\nretries = 0\n', plugin(register_drivers=lambda: [Bad()])
    )
    bench.ask("send", agent="a", text="hi")
    if bench.running():
        bench.finish(1, "x")
    assert bench.dispatch(1)["state"] == "failed"
    assert reason in bench.dispatch(1)["reason"]


def test_register_sources_starts_a_source_and_leaves_out_one_that_raises(aipass_bench):
    class Good:
        name = "good"

        def start(self, tell):
            tell([aipass.Fact("my.kind", "good")])

        def stop(self):
            pass

    class Bad(Good):
        name = "bad"

        def start(self, tell):
            raise OSError("no such device")

    mine = plugin(
        register_kinds=lambda: {"my.kind": "mine"}, register_sources=lambda root, config: [Bad(), Good()]
    )
    bench = aipass_bench(WRITER, mine)
    assert bench.events("my.kind")
    (failed,) = bench.events("handler.failed")
    assert failed.detail["error"] == "OSError: no such device"


def test_after_event_sees_what_was_committed_and_may_raise(aipass_bench):
    seen = []

    def after_event(event):
        seen.append(event.kind)
        raise ValueError

    bench = aipass_bench(WRITER, plugin(after_event=after_event))
    bench.drop("src/x")
    assert "file.closed" in seen
    assert bench.events("handler.failed") == []


def test_after_notice_is_told_what_a_person_must_see(aipass_bench):
    seen = []
    bench = aipass_bench(WRITER, plugin(after_notice=lambda text: seen.append(text)))
    bench.drop("aipass.toml", "[")
    assert "aipass.toml is not valid" in seen[0]


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"register_handler": lambda: None}, "names no hook"),
        (
            {"register_handlers": lambda configuration: []},
            "`configuration`, which register_handlers(config) does not give",
        ),
        ({}, "no function marked with @hookimpl"),
    ],
)
def test_registration_refuses_and_shows_the_plugins_own_signature(functions, message):
    with pytest.raises(PluginError) as error:
        Plugins().register(plugin(**functions), "mine")
    assert message in str(error.value)
    if functions:
        assert "lambda" in str(error.value)
        assert "hooks are:" in str(error.value) or "takes" in str(error.value)


def test_a_name_that_is_taken_is_refused():
    plugins = Plugins()
    plugins.register(plugin(register_kinds=lambda: {"a.b": "c"}), "mine")
    with pytest.raises(PluginError, match="mine"):
        plugins.register(plugin(register_kinds=lambda: {"d.e": "f"}), "mine")


def test_a_handler_that_cannot_be_called_is_refused_with_its_signature():
    def handle(event):
        return []

    with pytest.raises(PluginError, match=r"handle\(event\) does not fit; it is called with \(event, view\)"):
        aipass.Handler("h", ["file.closed"], handle)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda: 7, "it returns a list"),
        (lambda: ["x"], "it returns aipass.Handler objects"),
        (lambda: [aipass.Handler("a", ["file.closd"], lambda event, view: [])], "there is no such kind"),
        (lambda: [aipass.Handler("a", ["file.*"], lambda event, view: [])] * 2, "two handlers are named `a`"),
    ],
)
def test_rubbish_from_register_handlers_is_refused(returned, message):
    plugins = Plugins()
    plugins.register(plugin(register_handlers=returned), "mine")
    with pytest.raises(PluginError, match=message):
        plugins.router(reading.parse(""))


@pytest.mark.parametrize("returned", [7, ["x"], [object()], {"a": 1}])
def test_a_handler_that_returns_rubbish_is_told(aipass_bench, returned):
    bench = aipass_bench(
        WRITER,
        plugin(
            register_handlers=lambda: [aipass.Handler("mine", ["file.closed"], lambda event, view: returned)]
        ),
    )
    bench.drop("src/x")
    (failed,) = bench.events("handler.failed")
    assert failed.ref == "mine"


def test_an_action_that_is_no_data_is_told(aipass_bench):
    wake = aipass.Wake("k", 1.0, {"x": object()})
    bench = aipass_bench(
        WRITER,
        plugin(
            register_handlers=lambda: [aipass.Handler("mine", ["file.closed"], lambda event, view: [wake])]
        ),
    )
    bench.drop("src/x")
    assert "not JSON serializable" in bench.events("handler.failed")[0].detail["error"]


def test_a_slow_handler_is_told_and_its_actions_count(aipass_bench, monkeypatch):
    monkeypatch.setattr("aipass.core.calling.HANDLER_SLOW_S", 0.01)

    def handle(event, view):
        time.sleep(0.02)
        return [aipass.Dispatch("writer", "x")]

    bench = aipass_bench(
        WRITER, plugin(register_handlers=lambda: [aipass.Handler("mine", ["file.closed"], handle)])
    )
    bench.drop("src/x")
    assert "slow handler: " in bench.events("handler.failed")[0].detail["error"]
    assert len(bench.dispatches()) == 1


def test_a_driver_that_is_not_installed_is_an_error_of_the_configuration(aipass_bench):
    with pytest.raises(
        ConfigError, match='there is no driver "nope"; installed are: claude, codex, command, gemini'
    ):
        aipass_bench('[agents.a]\ndriver = "nope"\n')


def installed(package, tmp_path):
    """The Python of a virtual environment that has all that ours has, and the package by pip."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", str(package), str(source)], check=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--target",
            str(site),
            str(source),
        ],
        check=True,
        capture_output=True,
    )
    return venv / "bin/python", site


@pytest.mark.slow
def test_the_example_feature_works_when_it_is_installed_with_pip_and_its_table_stays_without_it(
    repository, tmp_path
):
    python, site = installed(EXAMPLE.parent / "plugin-feature", tmp_path)
    repository.python = str(python)
    repository.write("aipass.toml", agent("a", "agent.py"))
    repository.write("agent.py", "import sys; print('did:', sys.stdin.read())")
    repository.aipass("init")
    repository.aipass("up", "--detach")
    assert "snooze" in repository.aipass("--help").stdout
    assert repository.aipass("snooze", "a", "Look again", "--seconds", "600").stdout == "snoozed\n"
    assert "snoozed for a" in repository.aipass("status").stdout
    (waiting,) = json.loads(repository.aipass("status", "--json").stdout)["plugins"]["snooze"]
    assert waiting["text"] == "Look again"
    repository.aipass("snooze", "a", "Now", "--seconds", "0")
    assert repository.answer("a/send.*.md").read_text().startswith("did: Now")
    repository.aipass("down")
    for path in site.glob("aipass_snooze*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    repository.aipass("up", "--detach")
    assert "tables of `snooze`, which is not installed" in repository.aipass("doctor", check=False).stdout
    assert "there is no verb `snooze`" in repository.aipass("snooze", "a", "x", check=2).stderr


@pytest.mark.slow
def test_the_example_package_works_when_it_is_installed_with_pip(repository, tmp_path):
    python, _ = installed(EXAMPLE, tmp_path)
    repository.python = str(python)
    repository.write(
        "aipass.toml",
        agent("md", "agent.py")
        + '[agents.back]\ndriver = "backwards"\n'
        + '[[on]]\nname = "beat"\nevent = "todo.beat"\ndispatch = "back"\ntask = "{subject}"\n',
    )
    repository.write("agent.py", "import sys; print('did:', sys.stdin.read())")
    assert "todo" in repository.aipass("plugins").stdout
    repository.aipass("init")
    repository.aipass("up", "--until-idle")
    repository.write("todo/list.md", "- work")
    repository.aipass("up", "--detach")
    assert repository.answer("md/todo.*.md").read_text().startswith("did: Work on todo/list.md")
    assert repository.answer("back/beat.*.md").read_text() == "taeb tsrif eht"


class Talker:
    """A driver whose CLI has conversations."""

    name = "talker"

    def __init__(self):
        self.jobs = []

    def command(self, job):
        self.jobs.append(job)
        return aipass.Command(["talk"])

    def outcome(self, job, end):
        text = end.stdout.read_text()
        state, _, session = text.partition(" ")
        return aipass.Outcome(state, "said", reason="it asks", session=session or None)

    def session(self, stdout):
        return stdout.read_text() or None

    @aipass.hookimpl
    def register_drivers(self):
        return [self]


def test_a_later_attempt_goes_on_with_the_conversation(aipass_bench):
    talker = Talker()
    bench = aipass_bench('[agents.a]\ndriver = "talker"\nretries = 5\n', talker)
    bench.ask("send", agent="a", text="hello")
    assert talker.jobs[0].session is None
    assert talker.jobs[0].state == bench.layout.cli_state("a")
    bench.finish(1, "s-1", outcome="lost")
    bench.advance(3600)
    assert talker.jobs[1].session == "s-1"
    bench.finish(2, "afresh")  # it is lost
    assert talker.jobs[2].session is None
    bench.finish(3, "blocked s-2")
    assert bench.dispatch(1)["state"] == "blocked"
    assert bench.dispatch(1)["reason"] == "it asks"
    assert (
        'dispatch 1 of a waits for you: it asks; `aipass answer 1 "…"` answers it (question 1)'
        in bench.notices()
    )
    assert bench.running() == []
    bench.ask("retry", id="1")
    assert talker.jobs[3].session == "s-2"
    bench.finish(4, "succeeded")
    assert bench.dispatch(1)["state"] == "succeeded"
    assert bench.dispatch(1)["session"] == "s-2"


BAD = {
    "a handler with one argument": "from aipass import Handler\ndef one(event): return []\n@hookimpl\ndef register_handlers(config): return [Handler('bad', ('file.closed',), one)]\n",
    "a handler's name that is taken": "from aipass import Handler\n@hookimpl\ndef register_handlers(config): return [Handler('inbox', ('file.closed',), lambda event, view: [])]\n",
    "a handler of no kind": "from aipass import Handler\n@hookimpl\ndef register_handlers(config): return [Handler('x', ('no.kind',), lambda event, view: [])]\n",
    "handlers that raise": "@hookimpl\ndef register_handlers(config): raise RuntimeError('boom')\n",
    "a driver's name that is taken": "from aipass_plugins.command import CommandDriver\n@hookimpl\ndef register_drivers(): return [CommandDriver()]\n",
    "a driver that is none": "@hookimpl\ndef register_drivers(): return [3]\n",
    "a kind that exists": "@hookimpl\ndef register_kinds(): return {'file.closed': 'x'}\n",
    "kinds that raise": "@hookimpl\ndef register_kinds(): raise OSError('boom')\n",
    "a forge that is none": "@hookimpl\ndef register_forges(): return [3]\n",
    "a source that is none": "@hookimpl\ndef register_sources(root, config): return [3]\n",
    "sources that raise": "@hookimpl\ndef register_sources(root, config): raise ValueError('boom')\n",
    "no import": "import nothing_of_this_name\n",
}  # fmt: skip
GOOD = "from aipass import Handler\n@hookimpl\ndef register_handlers(config): return [Handler('good', ('file.closed',), lambda event, view: [])]\n"


@pytest.mark.parametrize("what", BAD)
def test_a_third_partys_plugin_that_does_not_fit_is_left_out_in_words_and_the_others_work(
    tmp_path, monkeypatch, what
):
    for name, text in (("zz_bad", BAD[what]), ("zz_good", GOOD)):
        (tmp_path / f"{name}.py").write_text(f"from aipass import hookimpl\n{text}")
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[aipass]\n{name} = {name}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = Plugins()
    plugins.load_installed(None)
    settings = model.Config()
    router = plugins.router(settings)
    assert "good" in [handler.name for handler in router.handlers]
    assert "inbox" in [handler.name for handler in router.handlers]
    assert "command" in plugins.drivers()
    plugins.forges()
    plugins.sources(tmp_path, settings)
    assert list(plugins.failed) == ["zz_bad"]
    assert what == "no import" or "(package zz_bad)" in plugins.failed["zz_bad"]
    assert "zz_bad" not in plugins.names()
    assert plugins.router(settings), "the same again"
