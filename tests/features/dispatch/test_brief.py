"""What an agent is told: who it is, what was asked, what it goes on with; and how that is shown."""

import json

import pytest

import aipass
from aipass.cli.logs import _shown
from aipass.text.template import fill


class Model:
    """A driver of a model that is told about itself; it ends as its output says."""

    name = "model"
    briefed = True

    def command(self, job):
        return aipass.Command(("model",))

    def outcome(self, job, end):
        return aipass.Outcome(**json.loads(end.stdout.read_text()))

    @aipass.hookimpl
    def register_drivers(self):
        return [self]


def end(bench, run, state="succeeded", **more):
    bench.finish(run, json.dumps({"state": state, "reason": "it broke off", **more}))


@pytest.fixture
def house(aipass_bench):
    return lambda more="": aipass_bench(
        f'[agents.api]\ndriver = "model"\nowns = ["services/api/", "/x"]\n{more}\n[agents.web]\ndriver = "model"\n'
        '[agents.eyes]\ndriver = "model"\nowns = []\n[agents.plain]\ndriver = "command"\ncommand = ["true"]\n',
        Model(),
    )


def test_a_model_is_told_who_it_is_and_a_program_gets_the_text_alone(house):
    bench = house()
    for agent in ("api", "web", "eyes", "plain"):
        bench.ask("send", agent=agent, text="Add a login")
    api, web, eyes, plain = (bench.runner.prompt(run) for run in (1, 2, 3, 4))
    assert api.startswith("Add a login\n\n---\n\nYou are api, one of several agents")
    assert "You may write: `services/api/`, `/x`." in api
    assert "to another agent (eyes, plain, web)" in api
    assert "You may write: every file that no other agent owns." in web
    assert "You may write: nothing: you read, and answer." in eyes
    assert plain == "Add a login"
    assert "{" not in api


def test_a_brief_of_the_users_takes_its_place(house):
    bench = house('brief = "docs/agent.md"')
    bench.drop("docs/agent.md", 'Your name is {agent} of {others}; JSON looks so: {"a": 1}, {unknown}.\n')
    bench.ask("send", agent="api", text="work")
    assert bench.runner.prompt(1) == (
        'work\n\n---\n\nYour name is api of eyes, plain, web; JSON looks so: {"a": 1}, {unknown}.\n'
    )


def test_an_empty_brief_says_nothing(house):
    bench = house('brief = ""')
    bench.ask("send", agent="api", text="work")
    assert bench.runner.prompt(1) == "work"


def test_a_brief_that_is_not_there_fails_the_start_and_says_so(house):
    bench = house('brief = "nowhere.md"\nretries = 0')
    bench.ask("send", agent="api", text="work")
    assert (
        bench.dispatch(1)["reason"]
        == "agents.api.brief: nowhere.md cannot be read (No such file or directory)"
    )


def test_an_attempt_that_goes_on_is_told_so_and_not_who_it_is_again(house):
    bench = house()
    bench.ask("send", agent="api", text="Add a login")
    end(bench, 1, "overload", session="s-1")
    bench.advance(3600)
    assert bench.runner.prompt(2) == (
        "Your last attempt ended before it was done. Continue where you stopped. You were asked:\n\nAdd a login"
    )
    end(bench, 2, "afresh")
    assert "You are api" in bench.runner.prompt(3)


def test_a_reply_without_a_conversation_is_told_what_was_before(house):
    bench = house()
    bench.ask("send", agent="plain", text="first")
    bench.finish(1, "It is done")
    bench.ask("send", agent="plain", text="and then?", reply_to="1")
    assert bench.runner.prompt(2) == (
        "and then?\n\n---\n\nThis continues dispatch 1. You were asked:\n\nfirst\n\nYou answered:\n\nIt is done\n"
    )
    bench.ask("send", agent="api", text="first")
    end(bench, 3, session="s-1")
    bench.ask("send", agent="api", text="and then?", reply_to="3")
    assert bench.runner.prompt(4) == "and then?", "its CLI remembers"


def test_show_prints_the_prompt_that_was_given_or_will_be(repository):
    repository.write("aipass.toml", '[agents.a]\ndriver = "command"\ncommand = ["cat"]\nbrief = "b.md"\n')
    repository.write("b.md", "You are {agent}.\n")
    repository.aipass("init")
    repository.aipass("up", "--detach")
    number = repository.aipass("send", "a", "work", "--wait").stderr.split()[0]
    whole = "work\n\n---\n\nYou are a.\n"
    assert repository.aipass("show", number, "--prompt").stdout == whole
    assert (repository.root / ".aipass/runs/1/prompt.md").read_text() == whole
    assert repository.aipass("logs", number).stdout == whole


def test_fill_leaves_what_it_does_not_know():
    assert fill("{a} {b} {} {{a}} {A}", {"a": "1"}) == "1 {b} {} {1} {A}"


@pytest.mark.parametrize(
    ("readable", "expected"),
    [
        (lambda line: f"said {line}", "said x\n"),
        (lambda line: None, ""),
        (lambda line: "", ""),
        (lambda line: "a\nb\x1b[2J", "a\nb\\x1b[2J\n"),
        (lambda line: line[99], "x\n"),
    ],
)
def test_a_line_is_shown_as_its_driver_has_it_and_never_speaks_to_the_terminal(readable, expected):
    assert _shown("x", readable) == expected
