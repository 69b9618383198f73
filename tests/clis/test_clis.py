"""The real binaries of agent CLIs, behind the real fence, against a scripted model on loopback: `make test-clis`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from clis.model_server import ModelServer

BINARIES = Path(os.environ.get("AIPASS_CLIS", "/nonexistent"))
pytestmark = [pytest.mark.clis, pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Cli:
    """What one CLI needs to talk to our model: its environment, its arguments, the user's files."""

    name: str
    env: dict[str, str]
    agent: str = ""
    files: dict[str, str] | None = None
    #: The tool by which it writes a file, as the model calls it; a shell does for those that have none.
    writes: str = "WRITE"


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


@pytest.fixture
def model():
    server = ModelServer()
    yield server
    server.close()


@pytest.fixture(params=["claude", "codex", "gemini", "opencode"])
def house(request, repository, model):
    """A repository with one agent of this CLI that owns `mine/`, and another agent's file."""
    if not (BINARIES / request.param).exists():
        pytest.skip(f"there is no {request.param} in {BINARIES}")
    found = cli(request.param, model.url)
    for name, text in (found.files or {}).items():
        path = Path(os.environ["HOME"], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    repository.write(
        "aipass.toml",
        f'[agents.it]\ndriver = "{found.name}"\nowns = ["/mine/"]\nretries = 1\n{found.agent}\n'
        '[agents.other]\ndriver = "command"\ncommand = ["true"]\nowns = ["/theirs.txt"]\n',
    )
    repository.write("theirs.txt", "theirs\n")
    repository.write("mine/old.txt", "old\n")
    repository.cli, repository.model = found, model
    env = {**found.env, "PATH": f"{BINARIES}:{os.environ['PATH']}"}
    repository.aipass("init")
    repository.aipass("up", "--detach", env=env)
    return repository


def ask(house, *steps: str, timeout: float = 120) -> dict:
    """Have the agent do these steps; what became of the dispatch."""
    number = house.aipass("send", "it", "\n".join(steps)).stdout.strip()
    house.wait_for(
        lambda: show(house, number)["state"] not in {"queued", "running"},
        f"the end of dispatch {number}",
        timeout,
    )
    return show(house, number)


def show(house, number) -> dict:
    return json.loads(house.aipass("show", str(number), "--json").stdout)


def answer(house, found: dict) -> str:
    path = house.wait_for(lambda: show(house, found["id"])["answer"], "the answer")
    return (house.root / path).read_text()


def test_it_answers_writes_its_own_and_nothing_else(house):
    mine, theirs = house.root / "mine/new.txt", house.root / "theirs.txt"
    found = ask(
        house,
        f"WRITE {mine} made by its own tool",
        "SHELL echo by its shell > mine/shell.txt",
        f"WRITE {theirs} foreign",
        "SHELL echo foreign > theirs.txt; echo x >> .git/config",
        "SAY all done",
    )
    assert found["state"] == "succeeded", (found, house.aipass("logs", str(found["id"])).stdout[-3000:])
    assert answer(house, found).strip().endswith("all done")
    assert mine.read_text() == "made by its own tool\n"
    assert (house.root / "mine/shell.txt").read_text() == "by its shell\n"
    assert theirs.read_text() == "theirs\n"
    events = [json.loads(line) for line in house.aipass("events", "--json").stdout.splitlines()]
    refused = {event["path"] for event in events if event["kind"] == "write.denied"}
    assert {"theirs.txt", ".git/config"} <= refused
    assert refused <= {"theirs.txt", ".git/config"}, refused
    closed = {event["path"]: event["by"] for event in events if event["kind"] == "file.closed"}
    assert (closed["mine/new.txt"], closed["mine/shell.txt"]) == (1, 1)


def test_a_wrong_key_fails_at_once_and_says_so(house):
    found = ask(house, "STATUS 401", "SAY never", timeout=60)
    assert found["state"] == "failed", found
    assert "401" in found["reason"], found["reason"]
    assert len(found["runs"]) == 1


def test_an_overloaded_server_is_tried_again(house):
    if house.cli.name == "opencode":
        pytest.skip("it tries for ever by itself")
    found = ask(house, "STATUS 500 9", "SAY at last", timeout=200)
    assert found["runs"][0]["outcome"] == "overload", found
    assert found["state"] in {"succeeded", "failed"}


def test_its_tree_is_gone_when_it_is_cancelled(house):
    number = house.aipass("send", "it", "SHELL sleep 300 & sleep 301\nSAY never").stdout.strip()
    house.wait_for(lambda: any("sleep 301" in line for line in _lines(house)), "its shell", 60)
    house.aipass("cancel", number)
    house.wait_for(lambda: show(house, number)["state"] == "cancelled", "the end", 60)
    house.wait_for(lambda: not any("sleep 30" in line for line in _lines(house)), "the end of its shell")


def _lines(house) -> list[str]:
    found = []
    for pid in house.pids():
        try:
            found.append(
                Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            continue
    return found
