"""The real binaries of agent CLIs, behind the real fence, against a scripted model on loopback: `make test-clis`.

What came of each case is written down, and `python tests/clis/table.py` makes the page docs/clis-tested.md of it.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from aipass.config import reading
from aipass.features.dispatch import shares
from aipass.features.dispatch.driver import Job
from aipass.plugins import Plugins
from clis.model_server import ModelServer

BINARIES = Path(os.environ.get("AIPASS_CLIS", "/nonexistent"))
#: Where the cases are written down for the table.
ROWS = os.environ.get("AIPASS_CLIS_ROWS")
pytestmark = [pytest.mark.clis, pytest.mark.slow, pytest.mark.timeout(300)]
NAMES = ("claude", "codex", "gemini", "opencode")


@dataclass(frozen=True)
class Cli:
    """What one CLI needs to talk to our model: its environment, its arguments, the user's files."""

    name: str
    env: dict[str, str]
    agent: str = ""
    files: dict[str, str] | None = None


def cli(name: str, url: str) -> Cli:
    if name == "claude":
        return Cli(name, {"ANTHROPIC_API_KEY": "dummy", "ANTHROPIC_BASE_URL": url}, 'model = "m1"')
    if name == "codex":
        provider = (
            f'{{name="fake",base_url="{url}/v1",env_key="FAKE_KEY",wire_api="responses",'
            "request_max_retries=1,stream_max_retries=1}"
        )
        words = ["-c", 'model_provider="fake"', "-c", f"model_providers.fake={provider}"]
        return Cli(name, {"FAKE_KEY": "dummy"}, f'model = "gpt-5"\nargs = {json.dumps(words)}')
    if name == "gemini":
        settings = {
            "security": {"auth": {"selectedType": "gemini-api-key"}},
            "general": {"maxAttempts": 2, "enableAutoUpdate": False},
            "privacy": {"usageStatisticsEnabled": False},
        }
        env = {"GEMINI_API_KEY": "dummy", "GOOGLE_GEMINI_BASE_URL": url}
        return Cli(name, env, 'model = "m1"', {".gemini/settings.json": json.dumps(settings)})
    options = {"baseURL": f"{url}/v1", "apiKey": "dummy"}
    fake = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": {"m1": {}}}
    config = {"provider": {"fake": fake}, "model": "fake/m1", "small_model": "fake/m1"}
    env = {
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    }
    return Cli(name, env, 'model = "fake/m1"', {".config/opencode/opencode.json": json.dumps(config)})


class House:
    """A repository with one agent of this CLI, `it`, which owns `mine/`, and another agent's file."""

    def __init__(
        self, repository, model, name: str, more: str = "", agent: str = "", path: str | None = None
    ):
        self.repository, self.model, self.cli = repository, model, cli(name, model.url)
        self.root, self.home = repository.root, Path(os.environ["HOME"])
        for file, text in (self.cli.files or {}).items():
            target = self.home / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        repository.write(
            "aipass.toml",
            f'{more}\n[agents.it]\ndriver = "{name}"\nowns = ["/mine/"]\nretries = 1\n{self.cli.agent}\n{agent}\n'
            '[agents.other]\ndriver = "command"\ncommand = ["true"]\nowns = ["/theirs.txt"]\n',
        )
        repository.write("theirs.txt", "theirs\n")
        repository.write("mine/old.txt", "old\n")
        self.env = {**self.cli.env, "PATH": f"{path or BINARIES}:{os.environ['PATH']}"}
        repository.aipass("init")
        repository.aipass("up", "--detach", env=self.env)
        self.before = self.listing()

    def listing(self) -> dict[str, bytes]:
        """All that lies in the user's home."""
        return {str(path): path.read_bytes() for path in self.home.rglob("*") if path.is_file()}

    def send(self, *steps: str, reply_to: str | None = None) -> str:
        more = ("--reply-to", reply_to) if reply_to else ()
        return self.repository.aipass("send", "it", "\n".join(steps), *more).stdout.strip()

    def ask(self, *steps: str, timeout: float = 120, reply_to: str | None = None) -> dict:
        """Have the agent do these steps; what became of the dispatch."""
        return self.end(self.send(*steps, reply_to=reply_to), timeout)

    def end(self, number: str, timeout: float = 120) -> dict:
        is_over = lambda: self.show(number)["state"] not in {"queued", "running"}  # noqa: E731
        self.repository.wait_for(is_over, f"the end of dispatch {number}", timeout)
        return self.show(number)

    def show(self, number) -> dict:
        return json.loads(self.repository.aipass("show", str(number), "--json").stdout)

    def answer(self, found: dict) -> str:
        path = self.repository.wait_for(lambda: self.show(found["id"])["answer"], "the answer")
        return (self.root / path).read_text()

    def events(self, kind: str) -> list[dict]:
        lines = self.repository.aipass("events", "--json", "--kind", kind).stdout.splitlines()
        return [json.loads(line) for line in lines]

    def logs(self, found: dict) -> str:
        return self.repository.aipass("logs", str(found["id"])).stdout

    def asked(self) -> str:
        """All that the model was told, as one text."""
        return json.dumps([body for _, body in self.model.requests])

    def commands(self) -> list[str]:
        found = []
        for pid in self.repository.pids():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            found.append(words.decode(errors="replace"))
        return found

    def until_runs(self, words: str) -> None:
        self.repository.wait_for(lambda: any(words in line for line in self.commands()), words, 60)

    def until_gone(self, words: str) -> None:
        self.repository.wait_for(
            lambda: not any(words in line for line in self.commands()), f"no {words}", 60
        )


@pytest.fixture
def model():
    server = ModelServer()
    yield server
    server.close()


@pytest.fixture(params=NAMES)
def name(request):
    if not (BINARIES / request.param).exists():
        pytest.skip(f"there is no {request.param} in {BINARIES}")
    return request.param


@pytest.fixture
def build(repository, model, name):
    """Makes the house; at the end the user's home must be as it was."""
    made: list[House] = []

    def start(**more) -> House:
        made.append(House(repository, model, name, **more))
        return made[0]

    yield start
    for house in made:
        assert house.listing() == house.before, "the user's home is not the agent's"


@pytest.fixture
def house(build):
    return build()


@pytest.fixture
def note(request, name):
    """Write down for the table what came of a case."""

    def write(case: str, came: str) -> None:
        if ROWS:
            with open(ROWS, "a") as file:
                file.write(json.dumps({"case": case, "cli": name, "came": came}) + "\n")

    return write


def test_it_answers_writes_its_own_and_nothing_else(house, note):
    mine, theirs = house.root / "mine/new.txt", house.root / "theirs.txt"
    found = house.ask(
        f"WRITE {mine} made by its own tool",
        "SHELL echo by its shell > mine/shell.txt",
        *_read_first(house, theirs),
        f"EDIT {theirs} theirs foreign",
        "SHELL echo foreign > theirs.txt; echo x >> .git/config",
        "SAY all done",
    )
    assert found["state"] == "succeeded", (found, house.logs(found)[-3000:])
    assert house.answer(found).strip().endswith("all done")
    assert mine.read_text() == "made by its own tool\n"
    assert (house.root / "mine/shell.txt").read_text() == "by its shell\n"
    assert theirs.read_text() == "theirs\n"
    refused = {event["path"] for event in house.events("write.denied")}
    assert {"theirs.txt", ".git/config"} == refused, refused
    closed = {event["path"]: event["by"] for event in house.events("file.closed")}
    assert (closed["mine/new.txt"], closed["mine/shell.txt"]) == (1, 1)
    assert found["usage"]["input_tokens"] > 0
    assert found["session"]
    # What its own tool was refused it hears in words: from the hook, or from the tool's error.
    by_hook = "It is not yours to write" in house.asked()
    assert by_hook or "ermission denied" in house.asked()
    assert "> " in house.logs(found)
    note("several tool calls, a new file", "succeeded; tokens known, session kept")
    note(
        "a foreign file, by its own tool",
        "stopped; told by the hook, in words" if by_hook else "stopped; told by the error",
    )
    note("a foreign file, by its shell", "stopped, owner's file unharmed")


def test_it_edits_a_file(house, note):
    old = house.root / "mine/old.txt"
    found = house.ask(f"SHELL cat {old}", *_read_first(house, old), f"EDIT {old} old new", "SAY done")
    assert found["state"] == "succeeded", found
    assert old.read_text() == "new\n"
    note("an edit of its own file", "succeeded")


def _read_first(house, path) -> list[str]:
    """Some refuse to edit what they have not read."""
    return [f"READ {path}"] if house.cli.name in {"claude", "opencode"} else []


def test_a_wrong_key_fails_at_once_and_says_so(house, note):
    found = house.ask("STATUS 401", "SAY never", timeout=60)
    assert found["state"] == "failed", found
    assert "401" in found["reason"], found["reason"]
    assert len(found["runs"]) == 1
    note("401: a wrong key", "failed at once, with the reason")


def test_three_wrong_keys_pause_the_agent(house):
    for number in range(3):
        house.ask("STATUS 401", f"SAY never {number}", timeout=60)
    assert [event["ref"] for event in house.events("agent.paused")] == ["it"]


def test_a_limit_pauses_the_driver_until_it_ends(house, note):
    before = time.time()
    number = house.send("LIMIT 3600", "SAY never")
    (paused,) = house.repository.wait_for(lambda: house.events("driver.paused"), "the pause", 60)
    assert house.show(number)["state"] == "queued"
    assert paused["ref"] == house.cli.name
    until = _seconds(paused["detail"]["until"]) - before
    asked = len(house.model.requests)
    status = house.repository.aipass("status").stdout
    assert f"paused   driver {house.cli.name} until " in status
    # Codex says the minute only, Claude Code tells nothing where it has a key and no subscription.
    told = 3500 < until < 3700
    assert told or house.cli.name == "claude", until
    when = "until the moment that it told" if told else "for 5 minutes, because the CLI names no moment"
    note("429 with a reset time", f"driver paused {when}, after {asked} request(s)")


def _seconds(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()


def test_an_overloaded_server_is_tried_again(house, note):
    found = house.ask("STATUS 500 1", "SAY at last", timeout=200)
    assert found["state"] == "succeeded", found
    note("500, then success", f"succeeded in {len(found['runs'])} run(s)")


def test_a_server_that_goes_on_failing_is_given_up(build, note):
    house = build()
    found = house.ask("STATUS 500", "SAY never", timeout=280)
    assert found["state"] == "failed", found
    # A conversation that broke off in its first call may not have been kept.
    outcomes = [run["outcome"] for run in found["runs"] if run["outcome"] != "afresh"]
    assert outcomes == ["overload", "overload"], found
    note("500, always", "tried again by `retries`, then failed")


@pytest.mark.parametrize("how", ["HANG", "STALL"])
def test_a_model_that_says_no_more_is_ended_by_the_timeout(build, note, how):
    house = build(agent='timeout = "15s"\nstall = "6s"')
    found = house.ask(how, "SAY never")
    assert found["state"] == "failed", found
    assert [run["outcome"] for run in found["runs"]] == ["timeout"]
    house.until_gone(f"{BINARIES.parent}/")
    assert house.events("run.stalled")
    words = "says nothing" if how == "HANG" else "begins and stops"
    note(f"a model that {words}", "told after `stall`, ended by `timeout`, nothing left")


@pytest.mark.parametrize("where", ["a model call", "a shell command"])
def test_its_tree_is_gone_when_it_is_cancelled(house, note, where):
    number = house.send("HANG" if where == "a model call" else "SHELL sleep 300 & sleep 301", "SAY never")
    if where == "a model call":
        house.repository.wait_for(lambda: house.model.requests, "its request", 60)
    else:
        house.until_runs("sleep 301")
    before = time.monotonic()
    house.repository.aipass("cancel", number)
    assert house.end(number)["state"] == "cancelled"
    took = time.monotonic() - before
    house.until_gone("sleep 30")
    house.until_gone(f"{BINARIES.parent}/")
    assert took < 25, "INT, TERM and KILL have ten seconds each at most"
    note(f"cancelled in the middle of {where}", "whole tree gone within the three waits")


def test_a_cli_that_is_killed_is_tried_again_and_leaves_nothing(house, note):
    number = house.send("SHELL sleep 300 & sleep 301", "SAY never")
    house.until_runs("sleep 301")
    os.kill(house.show(number)["runs"][0]["pid"], 9)
    found = house.end(number)
    assert found["state"] == "failed", found
    assert "signal 9" in found["reason"]
    house.until_gone("sleep 30")
    note("kill -9 of the CLI", "failed, with the signal; its shell's processes gone")


def test_a_reply_goes_on_with_the_conversation(house, note):
    first = house.ask("SAY the first answer")
    again = house.ask("SAY the second answer", reply_to=str(first["id"]))
    assert again["state"] == "succeeded", again
    assert again["session"] == first["session"]
    assert house.answer(again).strip().endswith("the second answer")
    assert "SAY the first answer" in json.dumps(house.model.requests[-1][1])
    note("a reply", "same conversation, with what was said before")


def test_a_conversation_that_is_lost_starts_afresh(house, note):
    first = house.ask("SAY the first answer")
    subprocess.run(["rm", "-rf", house.root / ".aipass/cli/it"], check=True)
    again = house.ask("SAY the second answer", reply_to=str(first["id"]))
    assert again["state"] == "succeeded", again
    assert [run["outcome"] for run in again["runs"]] == ["afresh", "succeeded"]
    assert again["session"] != first["session"]
    note("a reply whose conversation is gone", "starts afresh, costs no attempt")


def test_a_question_blocks_until_it_is_answered(house, note):
    found = house.ask("SAY I looked.", "SAY", "SAY QUESTION: Which database?")
    assert found["state"] == "blocked", found
    assert found["reason"] == "Which database?"
    assert any(
        "Which database?" in event["detail"].get("reason", "") for event in house.events("run.finished")
    )
    note("it ends with a question", "blocked, with the question")


def test_a_question_by_its_own_tool(house, note):
    if house.cli.name != "claude":
        pytest.skip("only Claude Code has such a tool when it runs headless")
    found = house.ask("ASK Which database?", "SAY I could not ask")
    assert found["state"] in {"blocked", "succeeded"}, found
    note(
        "it asks by its own tool",
        f"{found['state']}: {found['reason'] or 'it has no such tool without a person'}",
    )


def test_without_fence_and_wall_its_own_permissions_hold(build, note):
    house = build(more='[sandbox]\nfence = "off"\nwall = "off"\n')
    outside = house.root.parent / "outside.txt"
    found = house.ask(f"WRITE {house.root / 'mine/a.txt'} mine", f"WRITE {outside} x", "SAY done")
    assert found["state"] in {"succeeded", "blocked", "failed"}, found
    assert not outside.exists()
    assert (house.root / "mine/a.txt").exists()
    note(
        "a permission denied (no fence, no wall)",
        f"{found['state']}: {(found['reason'] or 'it went on without')[:80]}",
    )


def test_without_a_fence_its_hook_keeps_it_from_foreign_files(build, note):
    house = build(more='[sandbox]\nfence = "off"\nwall = "off"\n')
    theirs = house.root / "theirs.txt"
    house.ask(*_read_first(house, theirs), f"EDIT {theirs} theirs foreign", "SAY done")
    held = theirs.read_text() == "theirs\n"
    # Codex runs hooks only with a flag that trusts a repository's own as well.
    assert held or house.cli.name == "codex"
    note(
        "a foreign file by its own tool (no fence, no wall)", "stopped by the hook" if held else "**written**"
    )


def test_behind_the_wall_alone_it_works(build, note):
    house = build(more='[sandbox]\nfence = "off"\n')
    found = house.ask(f"WRITE {house.root / 'mine/a.txt'} mine", "SHELL echo x > theirs.txt", "SAY done")
    assert found["state"] == "succeeded", (found, house.logs(found)[-2000:])
    assert (house.root / "mine/a.txt").read_text() == "mine\n"
    assert (house.root / "theirs.txt").read_text() == "theirs\n"
    note("the wall alone", "works; a foreign file stopped")


def test_fifty_megabytes(house, note):
    found = house.ask("SHELL head -c 50000000 /dev/zero | tr '\\0' x; echo", "SAY done", timeout=200)
    assert found["state"] == "succeeded", found
    assert house.answer(found).strip().endswith("done")
    note("a command that prints 50 MB", "succeeded")


def test_output_that_is_not_utf8(house, note):
    found = house.ask(r"SHELL printf '\377\376\000x\n'; printf '\355\240\200'", "SAY done")
    assert found["state"] == "succeeded", found
    note("a command that prints what is not UTF-8", "succeeded")


def test_a_cli_that_is_missing(build, note, tmp_path):
    house = build(path=str(tmp_path))
    found = house.ask("SAY never")
    assert found["state"] == "failed", found
    assert [run["outcome"] for run in found["runs"]] == ["start-failed", "start-failed"]
    assert house.cli.name in found["reason"], found["reason"]
    note("the CLI is missing", "failed start, by name")


NEWER = """#!{python}
import json, subprocess, sys
done = subprocess.run([{real!r}, *sys.argv[1:]], stdout=subprocess.PIPE)
print(json.dumps({{"type": "greeting.of.the.future", "part": 7, "item": None, "message": ["x"]}}))
for line in done.stdout.splitlines():
    try: record = json.loads(line)
    except ValueError: print(line.decode(errors="replace")); continue
    print(json.dumps({{"unknown": {{"deep": [None]}}, **record}}))
sys.exit(done.returncode)
"""


def test_a_newer_version_with_fields_that_nobody_knows(build, note, tmp_path, name):
    script = tmp_path / name
    script.write_text(NEWER.format(python=sys.executable, real=str(BINARIES / name)))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    house = build(path=str(tmp_path))
    found = house.ask("SAY done")
    assert found["state"] == "succeeded", found
    assert house.answer(found).strip().endswith("done")
    assert found["session"]
    note("another version, with unknown records and fields", "succeeded")


def test_a_home_that_cannot_be_written(build, note):
    house = build()
    for path in (house.home, *house.home.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    found = house.ask(f"WRITE {house.root / 'mine/new.txt'} x", "SHELL echo y > mine/y.txt", "SAY done")
    for path in (house.home, *house.home.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert found["state"] == "succeeded", found
    assert not [event for event in house.events("write.denied") if "/" in str(event["path"])[:1]]
    note("a home that cannot be written", "succeeded; nothing in it was tried")


def test_three_vendors_do_one_plan_while_the_engine_is_killed(repository, model):
    """Three phases, each another vendor's binary, each begun by what the one before delivered; one kill -9 of the engine."""
    agents = {"claude": "model", "codex": "api", "gemini": "docs"}
    if missing := [name for name in agents if not (BINARIES / name).exists()]:
        pytest.skip(f"there is no {missing[0]} in {BINARIES}")
    toml, env = "", {"PATH": f"{BINARIES}:{os.environ['PATH']}"}
    for name in agents:
        found = cli(name, model.url)
        env |= found.env
        for file, text in (found.files or {}).items():
            target = Path(os.environ["HOME"], file)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        toml += f'[agents.{name}]\ndriver = "{name}"\nowns = []\n{found.agent}\n'
    repository.write("aipass.toml", toml)
    phases = [
        {
            "id": phase,
            "agent": name,
            "owns": [f"{phase}/"],
            "delivers": [f"{phase}/out.txt"],
            "after": list(agents.values())[:number][-1:],
            "task": "\n".join(
                [
                    f"SLEEP {2 * (phase == 'api')}",
                    f"SHELL mkdir -p {phase}; cat */out.txt > seen-{phase}.txt; cat */out.txt; true",
                    f"WRITE {repository.root / phase / 'out.txt'} made by {name}",
                    f"SAY {phase} is done",
                ]
            ),
        }
        for number, (name, phase) in enumerate(agents.items())
    ]
    plan = {"id": "0001", "title": "Three vendors", "phases": phases}
    repository.write("plans/0001-three.json", json.dumps(plan))
    repository.aipass("init")
    repository.aipass("up", "--detach", env=env)
    repository.aipass("plan", "start", "0001")

    def status() -> dict:
        return json.loads(repository.aipass("plan", "status", "0001", "--json").stdout)

    def phase_of(name: str) -> dict:
        return next(phase for phase in status()["phases"] if phase["id"] == name)

    repository.wait_for(lambda: phase_of("api")["status"] == "running", "the second phase", 60)
    engine = json.loads(repository.aipass("status", "--json").stdout)["engine"]["pid"]
    os.kill(engine, 9)
    time.sleep(0.5)
    repository.aipass("up", "--detach", env=env)
    repository.wait_for(lambda: status()["status"] in {"done", "failed"}, "the end of the plan", 120)
    assert status()["status"] == "done", status()
    for name, phase in agents.items():
        assert (repository.root / phase / "out.txt").read_text() == f"made by {name}\n"
        assert not (repository.root / f"seen-{phase}.txt").exists(), "that is no phase's"
    lines = repository.aipass("events", "--json", "--kind", "file.closed").stdout.splitlines()
    writers = {event["path"]: event["by"] for event in map(json.loads, lines) if event["by"]}
    runs = {
        phase["id"]: json.loads(repository.aipass("show", str(phase["dispatch"]), "--json").stdout)["runs"]
        for phase in status()["phases"]
    }
    for phase in agents.values():
        assert writers[f"{phase}/out.txt"] in [run["id"] for run in runs[phase]]
    denied = repository.aipass("events", "--json", "--kind", "write.denied").stdout
    assert {json.loads(line)["path"] for line in denied.splitlines()} == {
        f"seen-{phase}.txt" for phase in agents.values()
    }
    # Each was told what had been delivered before, and by whom.
    told = json.dumps([body for _, body in model.requests])
    assert "Delivered before by claude (model)" in told
    assert "Delivered before by codex (api)" in told


ROUNDS = 5


def test_the_time_to_the_first_request_beside_the_same_command_by_hand(house, note, tmp_path):
    """The same words, environment and home; no time is asserted, machines being what they are."""
    plugins = Plugins()
    plugins.load_installed(None)
    driver = plugins.drivers()[house.cli.name]
    settings = reading.load(house.root / "aipass.toml").agents["it"]
    state = tmp_path / "state"
    state.mkdir()
    job = Job(1, 1, "it", settings, house.root, tmp_path, "SAY hi", 1, state, contained=True)
    command = driver.command(job)
    shares.furnish(state, command.shares)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIPASS_")}
    env = {**inherited, **house.env, **command.env, "PWD": str(house.root)}
    took: dict[str, list[float]] = {"by hand": [], "aipass": []}

    def by_hand() -> None:
        words = {"cwd": house.root, "env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command.argv, input=b"SAY hi", check=True, **words)

    def by_aipass() -> None:
        assert house.ask(f"SAY hi {len(house.model.moments)}")["state"] == "succeeded"

    for number in range(ROUNDS + 1):
        for how, start in sorted({"by hand": by_hand, "aipass": by_aipass}.items(), reverse=bool(number % 2)):
            before, seen = time.monotonic(), len(house.model.moments)
            start()
            if number:  # the first of each unpacks and compiles what the others find
                took[how].append(house.model.moments[seen] - before)
    hand, ours = (sorted(times)[ROUNDS // 2] * 1000 for times in took.values())
    note(
        "until its first request, `aipass send` and by hand",
        f"{ours:.0f} ms, {hand:.0f} ms: {ours - hand:+.0f} ms",
    )


def test_a_model_that_runs_on_this_machine(repository):
    """The `llm` program with a model whose weights come with its package: prompt in, text out, and no network."""
    program = BINARIES.parent.parent / "llm/bin/llm"
    if not program.exists():
        pytest.skip(f"there is no {program}; it takes a C++ compiler to install")
    repository.write("aipass.toml", '[agents.small]\ndriver = "llm"\nmodel = "SmolLM2"\nowns = []\n')
    repository.aipass("init")
    repository.aipass("up", "--detach", env={"PATH": f"{program.parent}:{os.environ['PATH']}"})
    done = repository.aipass("send", "small", "Say hello in one short sentence.", "--wait", "--timeout", "4m")
    assert done.stdout.strip()
    number = done.stderr.split()[0]
    found = json.loads(repository.aipass("show", number, "--json").stdout)
    assert found["state"] == "succeeded", found
    assert repository.aipass("logs", number, "--stdout").stdout.strip() == done.stdout.strip()
    if ROWS:
        with open(ROWS, "a") as file:
            row = {"case": "llm with SmolLM2 on the CPU", "cli": "llm", "came": done.stdout.strip()[:80]}
            file.write(json.dumps(row) + "\n")


@pytest.mark.parametrize("ends", ["true", "false"])
def test_a_message_reaches_it_in_the_middle_of_its_run(house, note, ends):
    wait = f"while [ ! -e mine/go ]; do sleep 0.1; done; {ends}"
    number = house.send(f"SHELL touch mine/began; {wait}", "SHELL true", "SAY done")
    house.repository.wait_for((house.root / "mine/began").exists, "its first tool call", 60)
    message = house.repository.aipass("message", "it", "the schema changed, see 0012.sql").stdout.strip()
    asked = len(house.model.requests)
    house.repository.write("mine/go", "")
    assert house.end(number)["state"] == "succeeded"
    told = [json.dumps(body) for _, body in house.model.requests]
    assert not any("see 0012.sql" in body for body in told[:asked])
    assert "see 0012.sql" in told[asked], "at the next tool call, not later"
    assert told[-1].count("see 0012.sql") == 1, "and once"
    (found,) = json.loads(house.repository.aipass("messages", "it", "--json").stdout)
    assert (str(found["id"]), bool(found["read"])) == (message, True)
    told_by = "after a tool call" if ends == "true" else "after a tool call that failed"
    note(
        f"a message in the middle of its run, {told_by}", "in the model's next call, after its tool's result"
    )


def test_a_question_of_its_run_blocks_and_its_answer_resumes_it(house, note):
    found = house.ask('SHELL aipass ask human "Which database?" --options Postgres,SQLite', "SAY I asked.")
    assert found["state"] == "blocked", (found, house.logs(found)[-2000:])
    (question,) = json.loads(house.repository.aipass("questions", "--json").stdout)
    said = house.repository.aipass("answer", str(question["id"]), "SAY Postgres it is")
    assert "goes on" in said.stdout
    again = house.end(str(found["id"]))
    assert again["state"] == "succeeded", again
    assert [run["outcome"] for run in again["runs"]] == ["blocked", "succeeded"]
    assert again["session"] == found["session"]
    assert "Which database?" in json.dumps(house.model.requests[-1][1]), "the same conversation"
    note("`aipass ask`, a person's answer", "blocked, then resumed in the same conversation with the answer")
