"""What first users stumbled over: each is said, or does what its name says."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from patience import PATIENCE
from repository import agent
from rounds import few

import aipass
from aipass import DISTRIBUTION, __version__, action
from aipass.cli import doctor
from aipass.cli.main import GROUPS, SYNONYMS, VERBS
from aipass.features.dispatch.driver import Outcome
from aipass.plugins import Plugins
from aipass.testing import Bench
from aipass.workspace.layout import Layout


def commit(root):
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    subprocess.run(["git", *identity, "commit", "-qm", "all"], cwd=root, check=True)


def test_a_rule_that_is_resumed_fires_again_as_often_as_it_may(repository):
    rule = '[[on]]\nname = "r"\nevent = "file.closed"\npaths = ["*.txt"]\ndispatch = "w"\ntask = "{path}"\nper_hour = 2\n'
    repository.write("aipass.toml", agent("w", "w.py") + rule)
    repository.write("w.py", "print('ok')")
    repository.aipass("up", "--detach")

    def save(name):
        repository.write(f"{name}.txt", name)

    def number():
        return len(json.loads(repository.aipass("dispatches", "--json").stdout))

    for count, name in enumerate("ab", 1):
        save(name)
        repository.wait_for(lambda count=count: number() == count)
    save("c")
    repository.wait_for(lambda: "rule r" in repository.aipass("status").stdout, "the pause")
    assert "rule r is paused: it fired 2 times within an hour" in repository.aipass("why", "r").stdout
    repository.aipass("resume", "r")
    assert "paused" not in repository.aipass("why", "r").stdout
    save("d")
    repository.wait_for(lambda: number() == 3, "the rule after its resume")
    repository.aipass("down")
    repository.aipass("up", "--detach")
    save("e")
    repository.wait_for(
        lambda: number() == 4, "the rule after a restart: what was before the resume does not count"
    )


def test_a_config_that_came_along_is_not_started_where_nobody_can_be_asked(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    commit(repository.root)
    for words in (("up", "--detach"), ("up", "--until-idle")):
        said = repository.aipass(*words, check=3, yes=False)
        assert "review it, then start with `--yes`" in said.stderr
    repository.aipass("up", "--detach", "--yes")
    repository.aipass("down")
    repository.aipass("up", "--detach", yes=False)  # once was enough


def test_two_owners_of_one_path_are_named_wherever_one_looks(repository):
    text = agent("w", "w.py", 'owns = ["src/core/"]') + agent("v", "v.py", 'owns = ["src/**"]')
    repository.write("aipass.toml", text)
    assert (
        "both name src/core"
        in repository.aipass("up", "--detach").stderr + repository.aipass("doctor", check=None).stdout
    )
    assert "both name src/core" in repository.aipass("status").stdout
    repository.write("aipass.toml", text.replace("src/**", "lib/"))
    assert "both name" not in repository.aipass("reload").stdout
    assert "both name" not in repository.aipass("status").stdout
    repository.write("aipass.toml", text)
    assert "both name src/core" in repository.aipass("reload").stdout


def test_files_that_are_not_taken_are_counted_in_status(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.aipass("up", "--detach")
    repository.write("inbox/w/empty.md", "")
    repository.wait_for(lambda: "inbox/ has 1 rejected file" in repository.aipass("status").stdout)


def test_a_plan_that_is_done_runs_again_only_where_that_is_asked(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write(
        "w.py",
        "import os, pathlib; pathlib.Path('out').mkdir(exist_ok=True); pathlib.Path('out/x').write_text('x')",
    )
    phase = {"id": "a", "agent": "w", "task": "go", "owns": ["out/"]}
    repository.write("plans/0001-x.json", json.dumps({"id": "0001", "title": "x", "phases": [phase]}))
    repository.aipass("up", "--detach")
    repository.aipass("plan", "start", "1")
    repository.wait_for(lambda: "done" in repository.aipass("plan", "status", "1").stdout, "the plan")
    assert "--again" in repository.aipass("plan", "start", "1", check=3).stderr
    repository.aipass("plan", "start", "1", "--again")


def test_show_has_the_answer(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("w.py", "print('\\n'.join(f'line {n}' for n in range(40)))")
    repository.aipass("up", "--detach")
    repository.aipass("send", "w", "go", "--wait")
    said = repository.aipass("show", "1").stdout
    assert "line 19" in said
    assert "line 20" not in said
    assert "the whole answer is in outbox/w/" in said


def test_every_action_can_be_had_from_aipass():
    made = {
        name for name, one in vars(action).items() if inspect.isclass(one) and issubclass(one, action.Action)
    }
    assert made <= set(aipass.__all__)
    assert {name for name in aipass.__all__ if not hasattr(aipass, name)} == set()


def test_every_verb_stands_in_one_group_and_synonyms_lead_to_verbs():
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(VERBS)
    assert all(words[0] in VERBS or words[0].startswith("--") for words in SYNONYMS.values())
    assert not SYNONYMS.keys() & VERBS.keys()


@pytest.mark.parametrize(
    ("word", "meant"), [("start", "up"), ("stop", "down"), ("ps", "status"), ("run", "send")]
)
def test_what_other_tools_call_it_is_known(repository, word, meant):
    assert f"did you mean `{meant}`?" in repository.aipass(word, check=2).stderr


COMMAND = 'driver = "command"\ncommand = ["true"]\n'
RULE = COMMAND + '[[on]]\nname = "x"\nevent = "file.saved"\ndispatch = "w"\ntask = "x"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    few([
        ('driver = "comand"\ncommand = ["true"]', "aipass.toml:1: agents.w: there is no driver \"comand\"; did you mean `command`?"),
        ('driver = "cluade"', "aipass.toml:2: agents.w.driver: there is no driver \"cluade\"; did you mean `claude`?"),
        ('driver = "command"\ncommand = "python3 a.py"', 'it is a list, found \'python3 a.py\'; write `command = ["python3", "a.py"]`'),
        (COMMAND + 'owns = "src/"', 'aipass.toml:4: agents.w.owns: it is a list, found \'src/\'; write `owns = ["src/"]`'),
        (RULE, "aipass.toml:6: on.0.event: there is no event `file.saved`; did you mean"),
        (RULE.replace("[[on]]", "[on]"), "aipass.toml:4: on: it is a list of tables; write `[[on]]`"),
        (COMMAND + "[memory]\nin_promt = 3", "did you mean `in_prompt`?"),
        (COMMAND + "[state]\ntodo = 3", "did you mean `todos`?"),
        (COMMAND + '[pr]\nforge = "gitub"', "aipass.toml:5: pr.forge: there is no driver for the forge"),
    ], 5),
)  # fmt: skip
def test_a_mistake_in_the_configuration_is_told_with_its_line_and_what_to_write(repository, text, said):
    repository.write("aipass.toml", f"[agents.w]\n{text}\n")
    found = repository.aipass("up", "--until-idle", check=2).stderr
    assert said in found
    assert [
        one.state for one in doctor._repository(Layout(repository.root)) if one.what == "aipass.toml"
    ] == ["wrong"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('command = ["pyhton3", "a.py"]', "`pyhton3`, but this program is not installed here"),
        ('command = ["true"]\nmodel = "x"', "does not use"),
        ('command = ["true"]\nowns = ["{root}/src"]', "so write /src"),
    ],
)
def test_what_is_valid_and_does_nothing_is_said(repository, more, said):
    text = f'[agents.w]\ndriver = "command"\n{more}\n'.replace("{root}", str(repository.root))
    repository.write("aipass.toml", text)
    assert said in repository.aipass("up", "--until-idle").stderr
    assert any(said in one.found for one in doctor._repository(Layout(repository.root)))


def open_notices(repository):
    return [notice["text"] for notice in json.loads(repository.aipass("status", "--json").stdout)["notices"]]


def test_a_notice_is_withdrawn_when_what_it_is_about_is_over(repository):
    good = agent("w", "w.py")
    repository.write("aipass.toml", good)
    repository.write(
        "w.py",
        "import os, subprocess, sys\n"
        "if not os.path.exists('asked'):\n"
        "    open('asked', 'w').close()\n"
        "    subprocess.run([sys.executable, '-m', 'aipass', 'ask', 'human', 'which?'])\n",
    )
    repository.aipass("up", "--detach")
    repository.write("aipass.toml", "[")
    repository.wait_for(lambda: any("not valid" in text for text in open_notices(repository)), "the notice")
    repository.write("aipass.toml", good)
    repository.wait_for(lambda: not open_notices(repository), "its end")
    repository.aipass("send", "w", "go", check=None)
    repository.wait_for(lambda: any("which?" in text for text in open_notices(repository)), "the question")
    number = json.loads(repository.aipass("questions", "--json").stdout)[0]["id"]
    repository.aipass("answer", str(number), "this one")
    assert not open_notices(repository)


def test_a_slow_notifier_keeps_nothing_else_waiting_and_one_that_hangs_loses_only_notices():
    import threading

    from aipass.core.notices import MOST_WAITING, Notice, Notices

    go, told = threading.Event(), []

    def deliver(notice):
        go.wait(PATIENCE)
        told.append(notice.text)

    notices = Notices(deliver)
    notices.start()
    for number in range(MOST_WAITING + 50):  # returns at once, though nothing is delivered
        notices.tell(Notice(str(number)))
    assert not told
    go.set()
    notices.stop()
    assert told[:3] == ["0", "1", "2"]
    assert MOST_WAITING <= len(told) <= MOST_WAITING + 1


def test_what_is_asked_for_and_does_not_exist_is_said(repository):
    repository.write("aipass.toml", agent("writer", "w.py"))
    repository.aipass("up", "--until-idle")
    assert "did you mean `writer`?" in repository.aipass("dispatches", "--agent", "writr", check=2).stderr
    assert "no dispatches match" in repository.aipass("dispatches", "--agent", "writer").stdout
    assert "did you mean `file.closed`?" in repository.aipass("events", "--kind", "file.close").stderr
    assert not repository.aipass("events", "--kind", "file.deleted").stderr


# -- why, and what is shown --------------------------------------------------------------------------------------------


def why(repository, subject):
    return json.loads(repository.aipass("why", subject, "--json").stdout)


def test_why_goes_down_through_a_timer_and_knows_rules_and_agents(repository):
    rules = "".join(
        f'[[on]]\nname = "{name}"\nevent = "file.closed"\npaths = ["{paths}"]\ndispatch = "w"\ntask = "{{path}}"\ndebounce = "{debounce}"\n'
        for name, paths, debounce in (
            ("review", "*.txt", "100ms"),
            ("later", "*.md", "1h"),
            ("never", "*.no", "1s"),
        )
    )
    repository.write("aipass.toml", agent("w", "w.py") + agent("idle", "w.py") + rules)
    repository.write("w.py", "print('ok')")
    repository.aipass("up", "--detach")
    repository.write("a.txt", "a")
    repository.write("b.md", "b")
    repository.answer("w/review.1.md")
    through = [link["type"] for link in why(repository, "a.txt")["chain"]]
    assert through == ["event", "event", "dispatch"]
    assert why(repository, "a.txt")["chain"][1]["text"].startswith("clock.tick rule review")
    assert why(repository, "b.md")["chain"][-1] == {
        "type": "timer",
        "id": "rule later",
        "text": "not yet due",
    }
    assert why(repository, "review")["chain"][-1]["type"] == "dispatch"
    assert why(repository, "w")["chain"][-2]["type"] == "dispatch"
    assert "waits for file.closed at *.no" in repository.aipass("why", "never", check=1).stderr
    assert "has no dispatches yet" in repository.aipass("why", "idle", check=1).stderr
    assert "no rule or agent" in repository.aipass("why", "nothing", check=1).stderr


def test_events_leave_out_what_aipass_writes_itself_unless_asked(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("w.py", "print('ok')")
    repository.write("inbox/w/bad.md", "")
    repository.aipass("up", "--detach")
    repository.aipass("send", "w", "go", "--wait")
    own = ("outbox/", ".rejected.json")

    def about(*words):
        return [
            line
            for line in repository.aipass("events", *words).stdout.splitlines()
            if any(one in line for one in own)
        ]

    repository.wait_for(lambda: len(about("--all")) >= 3, "events of the answer and of the note")
    assert not about()
    assert not about("--limit", "3")
    assert len(repository.aipass("events", "--limit", "3").stdout.splitlines()) == 4
    assert about("--json")
    assert about("--kind", "file.*")


def test_every_setting_is_explained_where_the_docs_are_not(repository):
    said = repository.aipass("help", "settings").stdout
    assert all(
        f"`{name}" in said
        for name in ("agents.<name>.owns", "pr.wake_author", "memory.in_prompt", "on[].debounce")
    )
    assert "Give work to an agent" in repository.aipass("help").stdout
    assert "--reply-to" in repository.aipass("help", "send").stdout
    assert "no help about `nothing`" in repository.aipass("help", "nothing", check=2).stderr
    repository.aipass("init")
    assert "docs/" not in (repository.root / "aipass.toml").read_text()


def test_lists_say_what_was_handed_in_and_what_is_waited_for(repository):
    repository.write("aipass.toml", "[limits]\nconcurrency = 1\n" + agent("w", "w.py") + agent("v", "w.py"))
    repository.write("w.py", "import sys, time\nif 'stay' in sys.stdin.read(): time.sleep(60)\n")
    (repository.root / "inbox/w").mkdir(parents=True)
    (repository.root / "inbox/w/pic.png").write_bytes(b"\x89PNG\r\n")
    repository.write("inbox/w/a.md", "two\nlines\n")
    assert repository.aipass("up", "--until-idle").returncode == 0
    said = repository.aipass("dispatches").stdout
    assert "pic.png" in said
    assert "two lines" in said
    assert max(map(len, repository.aipass("show", "1").stdout.splitlines())) < 100
    repository.aipass("up", "--detach")
    repository.aipass("send", "w", "stay")
    repository.wait_for(lambda: "running" in repository.aipass("dispatches").stdout, "a run")
    repository.aipass("send", "v", "stay too")
    repository.aipass("send", "w", "then")
    said = repository.aipass("dispatches", "--state", "queued").stdout
    assert "then: w works on dispatch" in said
    assert "stay too: a limit: 1 runs live now" in said


def test_a_dispatch_that_waits_for_an_answer_says_so(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write(
        "w.py",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'aipass', 'ask', 'human', 'which?', '--wait'])\n",
    )
    repository.aipass("up", "--detach")
    repository.aipass("send", "w", "go")
    repository.wait_for(
        lambda: "waits for your answer to question 1" in repository.aipass("dispatches").stdout,
        "the question",
    )
    assert "waits for your answer to question 1" in repository.aipass("show", "1").stdout
    repository.aipass("answer", "1", "that one")


# -- sign-in -----------------------------------------------------------------------------------------------------------


class Signed:
    """A driver of a CLI that wants a key, and cannot do anything."""

    name = program = "signed"
    accounts = ("SIGNED_KEY", "~/.signed/key.json")

    def command(self, job):
        return aipass.Command(argv=("signed",))

    def outcome(self, job, end):
        return Outcome("failed", reason="Not logged in", fault="Not logged in")


class SignedPlugin:
    """Offers it."""

    @aipass.hookimpl
    def register_drivers(self):
        return [Signed()]


@pytest.mark.parametrize(("environ", "told"), [({}, True), ({"SIGNED_KEY": "wrong"}, False)])
def test_a_run_that_nothing_signs_in_says_where_the_key_is_missing(tmp_path, environ, told):
    bench = Bench(
        tmp_path,
        '[agents.w]\ndriver = "signed"\nretries = 0\n',
        SignedPlugin(),
        environ={"PATH": "/bin", **environ},
    )
    bench.drop("inbox/w/a.md")
    bench.finish(1, "")
    reason = bench.dispatch(1)["reason"]
    assert reason.startswith("Not logged in")
    assert ("set SIGNED_KEY" in reason and "`aipass up --detach`" in reason) is told
    bench.close()


def test_doctor_says_what_the_running_engine_was_started_without(repository, monkeypatch):
    repository.write("aipass.toml", agent("w", "w.py"))
    monkeypatch.chdir(repository.root)
    monkeypatch.setenv("SIGNED_KEY", "x")
    assert doctor._account(Signed()) == ("signed in by $SIGNED_KEY", "")
    repository.aipass("up", "--detach")
    said, remedy = doctor._account(Signed())
    assert "the running engine was started without" in said
    assert "aipass down" in remedy
    monkeypatch.delenv("SIGNED_KEY")
    assert doctor._account(Signed())[0] == "no sign-in was found"


def test_init_says_who_is_not_signed_in_and_which_root_lies_above(repository):
    program = repository.write("bin/claude", "#!/bin/sh\n")
    program.chmod(0o755)
    outside = repository.root.parent / "bin"
    program.parent.rename(outside)
    path = {"PATH": f"{outside}:/usr/bin:/bin"}
    assert "no sign-in of claude was found: run `claude` once" in repository.aipass("init", env=path).stdout
    assert "claude" not in repository.aipass("init", env={**path, "ANTHROPIC_API_KEY": "x"}).stdout.partition(
        "next:"
    )[0].replace("agent for each", "")
    (repository.root / "below").mkdir()
    assert "is already a root" in repository.aipass("init", "below", env=path).stdout


@pytest.mark.parametrize(
    ("owns", "said"),
    [
        ('["src/", "Makefile"]', ["Makefile (w; "]),
        ("[]", []),
        ('["**"]', ["Makefile (w; ", "sub/package.json (w; "]),
        (None, ["Makefile (w; ", "sub/package.json (w; "]),
    ],
)
def test_doctor_names_the_files_that_run_code_and_that_agents_may_write(repository, owns, said):
    repository.write("aipass.toml", agent("w", "w.py", "" if owns is None else f"owns = {owns}"))
    for path in ("Makefile", "sub/package.json", ".envrc", "src/a.py", "README"):
        repository.write(path, "x")
    commit(repository.root)
    found = [
        one.found for one in doctor._repository(Layout(repository.root)) if one.what == "files that run code"
    ]
    assert len(found) == bool(said)
    assert all(one in found[0] for one in said)
    assert not any(".envrc" in one or "README" in one for one in found)


# -- small words -------------------------------------------------------------------------------------------------------


def test_what_is_to_be_forgotten_is_shown_first(repository, monkeypatch):
    from aipass.features.memory.cli import forget

    repository.write("aipass.toml", agent("w", "w.py"))
    repository.aipass("up", "--detach")
    repository.aipass("note", "--agent", "w", "--learning", "ports are even")
    asked = []
    monkeypatch.setattr(forget.click, "confirm", lambda text, **_: asked.append(text))
    forget._confirm(Layout(repository.root), 1)
    assert asked == ["Delete this learning of w: “ports are even”? This cannot be undone."]
    repository.aipass("forget", "1")  # nobody is there to be asked: a script


def test_the_line_of_wrong_front_matter_is_the_files():
    from aipass_handlers import frontmatter

    with pytest.raises(ValueError, match="line 3, column"):
        frontmatter.read("---\nkey: a\nsubject: b: c\n---\nhi")


def test_a_plan_file_that_is_not_valid_does_not_stretch_the_list(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("plans/0001-x.json", '{"id": "0001", "title": "x", "phases": []}')
    said = repository.aipass("plan", "status").stdout.splitlines()
    assert max(map(len, said[:2])) < 40
    assert said[2].startswith("plan 0001 cannot be used: ")


@pytest.mark.parametrize("lives", [False, True])
def test_down_says_that_runs_go_on_only_where_some_do(repository, lives):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.write("w.py", "import time; time.sleep(60)")
    repository.aipass("up", "--detach")
    if lives:
        repository.aipass("send", "w", "go")
        repository.wait_for(lambda: "1 running" in repository.aipass("status").stdout, "the run")
    assert ("runs continue" in repository.aipass("down").stdout) is lives


def test_down_needs_no_ledger(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    repository.aipass("up", "--detach")
    ledger = repository.root / ".aipass/ledger.db"
    ledger.rename(ledger.with_name("away"))
    ledger.write_text("no database")
    assert repository.aipass("down").returncode == 0


def test_a_second_plan_of_the_same_title_is_noted(repository):
    repository.write("aipass.toml", agent("w", "w.py"))
    assert not repository.aipass("plan", "new", "Add greeting").stderr
    assert (
        "0001-add-greeting.json has the same title" in repository.aipass("plan", "new", "Add greeting").stderr
    )


def test_a_text_is_looked_through_once_for_secrets_on_its_way():
    from aipass.text.secret import MOST_KNOWN, Mask, Secret

    looked = []

    def find(text):
        looked.append(text)
        return [Secret(1, "key", "s3cret")] if "s3cret" in text else []

    mask = Mask(find)
    assert [mask("which port?") for _ in range(6)] == [("which port?", [])] * 6
    assert looked == ["which port?"]
    assert mask("it is s3cret") == ("it is [key masked]", ["key"])
    assert mask("it is s3cret")[1] == ["key"]
    for number in range(MOST_KNOWN + 1):
        mask(str(number))
    mask("which port?")
    assert looked.count("which port?") == 2


def test_what_the_docs_say_takes_all_of_it_out_of_a_repository_again(repository):
    page = (ROOT / "docs/operating.md").read_text()
    script = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1]
    hook = repository.write(".git/hooks/pre-commit", "#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)
    before = {path.relative_to(repository.root) for path in (repository.root / ".git").rglob("*")}
    repository.write("aipass.toml", agent("w", "w.py", 'owns = ["src/"]'))
    repository.write(
        "w.py",
        "import os, subprocess, sys\nos.makedirs('src', exist_ok=True)\nopen('src/a', 'w').write('x')\nsubprocess.run([sys.executable, '-m', 'aipass', 'pr', 'open', '-m', 'Mine'])",
    )
    repository.aipass("init")
    commit(repository.root)
    repository.aipass("git", "install", "--guard", "--trailers")
    repository.aipass("up", "--detach")
    repository.aipass("send", "w", "go", "--wait")
    assert json.loads(repository.aipass("pr", "list", "--json").stdout)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", script], cwd=repository.root, env=env, check=True)
    left = {path.relative_to(repository.root) for path in (repository.root / ".git").rglob("*")} - before
    assert [str(path) for path in left if "aipass" in str(path) and (repository.root / path).is_file()] == []
    assert "aipass" not in (repository.root / ".git/info/exclude").read_text()
    assert not (repository.root / ".aipass").exists()
    refs = subprocess.run(
        ["git", "for-each-ref"], cwd=repository.root, capture_output=True, text=True, check=True
    ).stdout
    assert "aipass" not in refs
    assert not list(Path.home().iterdir())


# -- the name on PyPI --------------------------------------------------------------------------------------------------


@pytest.fixture
def other_distribution(tmp_path, monkeypatch):
    """A distribution named `aipass` beside ours, with an entry point that ours has too."""
    info = tmp_path / "site/aipass-2.8.28.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: aipass\nVersion: 2.8.28\n")
    (info / "entry_points.txt").write_text("[aipass]\nrules = aipass_handlers.rules\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])


def test_our_distribution_is_not_the_other_projects():
    found = importlib.metadata.distribution(DISTRIBUTION)
    assert found.version == __version__
    assert {"aipass"} == {point.name for point in found.entry_points if point.group == "console_scripts"}


def test_doctor_says_that_the_other_distribution_is_there(other_distribution):
    (said,) = [one for one in doctor._namesake() if one.state == "wrong"]
    assert "2.8.28" in said.found
    assert DISTRIBUTION in said.remedy


def test_doctor_says_nothing_where_only_ours_is():
    assert not list(doctor._namesake())


def test_a_handler_that_two_distributions_name_is_loaded_once(other_distribution):
    plugins = Plugins()
    plugins.load_installed(None)
    assert not plugins.failed
    assert "rules" in plugins.names()
