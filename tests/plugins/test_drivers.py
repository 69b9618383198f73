"""The built-in drivers keep to the contract, on outputs that the real programs wrote; and what they share."""

import json
import os
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest
from aipass_plugins import records
from aipass_plugins.claude import ClaudeDriver
from aipass_plugins.codex import CodexDriver
from aipass_plugins.command import CommandDriver
from aipass_plugins.gemini import GeminiDriver
from aipass_plugins.llm import LlmDriver
from aipass_plugins.opencode import OpencodeDriver
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

import aipass
from aipass.features.dispatch.driver import Share, prewrite_hook
from aipass.features.dispatch.resets import reset_of
from aipass.supervisor.fence import prewrite
from aipass.testing.contract import DriverContract, Output

OUTPUTS = Path(__file__).with_name("outputs")


def real(name, code, state, **more):
    return Output((OUTPUTS / f"{name}.jsonl").read_bytes(), code, state, **more)


def line(**record):
    return json.dumps(record).encode() + b"\n"


class TestClaude(DriverContract):
    driver = ClaudeDriver()
    session = "ddb35fed-e9b9-420c-8075-7871aa6e41f4"
    outputs = (
        real("claude-ok", 0, "succeeded", answer="all done", session=session),
        real("claude-limit", 1, "limit", resets=False),
        real("claude-wrong", 1, "failed"),
        Output(b"", 1, "afresh", stderr=b"No conversation found with session ID: s-1\n" + b"at x\n" * 20, resumed=True),
        Output(
            line(type="result", subtype="error_during_execution", is_error=True, errors=["No conversation found with session ID"]),
            1,
            "afresh",
            resumed=True,
        ),
        Output(
            line(type="rate_limit_event", rate_limit_info={"status": "rejected", "resetsAt": int(time.time()) + 3600})
            + line(type="result", is_error=True, result="You've hit your limit · resets 3pm"),
            1,
            "limit",
            resets=True,
        ),
        Output(line(type="result", is_error=True, result=f"Claude AI usage limit reached|{int(time.time()) + 3600}"), 1, "limit", resets=True),
        Output(line(type="result", is_error=True, api_error_status=529, result="Overloaded"), 1, "overload"),
        Output(line(type="result", is_error=True, result="Context limit reached"), 1, "failed"),
        Output(line(type="result", is_error=False, result="I raised the usage limit"), 1, "failed"),
        Output(line(type="result", is_error=False, result="I looked.\n\nQUESTION: Which one?"), 0, "blocked"),
        Output(
            line(type="result", is_error=False, result="I could not ask", permission_denials=[
                {"tool_name": "AskUserQuestion", "tool_input": {"questions": [{"question": "Which one?"}]}}
            ]),
            0,
            "blocked",
        ),
        Output(line(type="result", is_error=False, result="done", permission_denials=[{"tool_name": "Write"}]), 0, "succeeded"),
    )  # fmt: skip


class TestCodex(DriverContract):
    driver = CodexDriver()
    outputs = (
        real("codex-ok", 0, "succeeded", answer="all done"),
        real("codex-limit", 1, "limit", resets=True),
        real("codex-wrong", 1, "failed"),
        Output(
            b"",
            1,
            "afresh",
            stderr=b"Error: no rollout found for thread id\n" + b"frame\n" * 20,
            resumed=True,
        ),
        Output(
            line(type="turn.failed", error={"message": "We're currently experiencing high demand"}),
            1,
            "overload",
        ),
        Output(line(type="turn.failed", error=None), 1, "failed"),
        Output(
            line(
                type="turn.failed",
                error={"message": "exceeded retry limit, last status: 429 Too Many Requests"},
            ),
            1,
            "limit",
        ),
        Output(
            line(type="turn.failed", error={"message": "exceeded retry limit, last status: 503"}),
            1,
            "overload",
        ),
        Output(line(type="turn.failed", error={"message": "Disk quota exceeded"}), 1, "failed"),
    )


class TestGemini(DriverContract):
    driver = GeminiDriver()
    outputs = (
        real("gemini-ok", 0, "succeeded", answer="all done"),
        real("gemini-limit", 1, "limit", resets=False),
        real("gemini-limit", 1, "limit", stderr=b"    message: 'Please retry in 3600.5s.',\n", resets=True),
        real("gemini-wrong", 145, "failed"),
        Output(b"", 42, "afresh", resumed=True),
        Output(b"", 41, "failed", stderr=b"Invalid auth method selected."),
    )


class TestOpencode(DriverContract):
    driver = OpencodeDriver()
    outputs = (
        real("opencode-ok", 0, "succeeded", answer="all done"),
        real("opencode-limit", 1, "limit", resets=True),
        real("opencode-wrong", 1, "failed"),
        Output(b"", 1, "afresh", stderr=b"Error: Session not found\n", resumed=True),
        Output(
            b"",
            0,
            "blocked",
            stderr=b"permission requested: external_directory (/x/*); auto-rejecting\n" + b"x\n" * 9,
        ),
    )


class TestLlm(DriverContract):
    driver = LlmDriver()
    exit_is_enough = True
    outputs = (
        Output(b"Hello\n", 0, "succeeded", answer="Hello\n"),
        Output(b"", 0, "failed"),
        Output(b"", 1, "failed", stderr=b"Error: No key found"),
    )


class TestCommand(DriverContract):
    driver = CommandDriver()
    exit_is_enough = True
    settings = {"command": ("agent",), "model": None}
    outputs = (
        Output(b"Hello\n", 0, "succeeded", answer="Hello\n"),
        Output(b"", 0, "succeeded"),
        Output(b"", 3, "failed"),
    )


def outcome(driver, tmp_path, stdout, code=0, **job):
    from dataclasses import replace

    contract = DriverContract()
    contract.driver = driver
    made = DriverContract.job.__wrapped__(contract, tmp_path)
    return driver.outcome(replace(made, **job), contract.end(made, Output(stdout, code, "")))


def test_claude_counts_what_it_read_from_its_caches(tmp_path):
    usage = {
        "input_tokens": 3,
        "cache_creation_input_tokens": 1000,
        "cache_read_input_tokens": 90_000,
        "output_tokens": 7,
    }
    found = outcome(
        ClaudeDriver(),
        tmp_path,
        line(type="result", is_error=False, result="x", usage=usage, total_cost_usd=0.5),
    )
    assert found.usage == aipass.Usage(91_003, 7, 0.5)


def test_codex_takes_off_what_the_conversation_had_used_before(tmp_path):
    record = line(type="turn.completed", usage={"input_tokens": 200, "output_tokens": 40})
    found = outcome(CodexDriver(), tmp_path, record, used=aipass.Usage(150, 50, None))
    assert found.usage == aipass.Usage(50, 0, None)


def test_a_fault_is_what_no_task_is_to_blame_for(tmp_path):
    for number, (driver, output, is_fault) in enumerate(
        [
            (ClaudeDriver(), real("claude-wrong", 1, ""), True),
            (CodexDriver(), real("codex-wrong", 1, ""), True),
            (GeminiDriver(), real("gemini-wrong", 1, ""), True),
            (OpencodeDriver(), real("opencode-wrong", 1, ""), True),
            (
                ClaudeDriver(),
                Output(line(type="result", subtype="error_max_turns", is_error=True), 1, ""),
                False,
            ),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert (outcome(driver, folder, output.stdout, 1).fault is not None) is is_fault


def test_where_nothing_contains_it_a_refused_tool_blocks(tmp_path):
    record = line(
        type="result",
        is_error=False,
        result="done",
        permission_denials=[{"tool_name": "Write"}, {"tool_name": "Bash"}],
    )
    found = outcome(ClaudeDriver(), tmp_path, record, contained=False)
    assert (found.state, found.reason) == ("blocked", "it was refused permission for Bash, Write")


def test_geminis_settings_are_the_users_and_our_hooks(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "home/.gemini/settings.json"
    path.parent.mkdir(parents=True)
    theirs = {"matcher": "x", "hooks": []}
    path.write_text(json.dumps({"theme": "dark", "hooks": {"BeforeTool": [theirs], "AfterTool": []}}))
    shares = GeminiDriver().command(DriverContract.job.__wrapped__(TestGemini(), tmp_path)).shares
    (found,) = [json.loads(share.text) for share in shares if share.text]
    assert found["theme"] == "dark"
    assert "hook.py" in found["hooks"]["AfterTool"][0]["hooks"][0]["command"]
    assert found["hooks"]["BeforeTool"][0] == theirs
    assert "prewrite.py gemini" in found["hooks"]["BeforeTool"][1]["hooks"][0]["command"]
    path.write_text("// a comment\n{}")
    (tmp_path / "two").mkdir()
    shares = GeminiDriver().command(DriverContract.job.__wrapped__(TestGemini(), tmp_path / "two")).shares
    assert Share(".gemini/settings.json", "~/.gemini/settings.json") in shares


def test_a_huge_output_is_judged_in_no_time_by_its_begin_and_its_end(tmp_path):
    first, last = line(type="init", session_id="s-1"), line(type="result", is_error=False, result="done")
    for number, filling in enumerate(
        (b"\n" * 30_000_000, b'{"type":1}\n' * 3_000_000, b"x" * 40_000_000 + b"\n")
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        before = time.process_time()
        found = outcome(ClaudeDriver(), folder, first + filling + last)
        assert (found.state, found.answer, found.session) == ("succeeded", "done", "s-1")
        assert time.process_time() - before < 10, "it used to take minutes"


# -- when a limit ends -------------------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 24, 14, 30).astimezone().timestamp()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Claude AI usage limit reached|1795600000", 1_795_600_000),
        ("Claude AI usage limit reached|1999999999", None),
        ("try again in 99999999999999 days", None),
        ("try again at Nov 25th, 9998 2:30 PM", None),
        ("You've hit your limit · resets 2:29pm", NOW - 60),
        ("Please try again in 3 hours 22 minutes.", NOW + 3 * 3600 + 22 * 60),
        ("try again in 5 days 2 hours 1 minute", NOW + 5 * 86400 + 7200 + 60),
        ("Please retry in 34.5s.", NOW + 34.5),
        ("Your quota will reset after 7h32m5s.", NOW + 7 * 3600 + 32 * 60 + 5),
        ("Rate limit reached for m1. Please try again in 3600s.", NOW + 3600),
        ("You've hit your limit · resets 3pm (Europe/Berlin)", NOW + 1800),
        ("You've hit your limit · resets 2pm", NOW + 23.5 * 3600),
        ("or try again at 10:30 PM.", NOW + 8 * 3600),
        ("try again at 12:00 AM.", NOW + 9.5 * 3600),
        ("try again at Nov 25th, 2026 2:30 PM.", NOW + 86400),
        ("weekly limit reached ∙ resets Nov 26 at 2:30pm", NOW + 2 * 86400),
        ("resets Jan 1 at 12am", datetime(2027, 1, 1).astimezone().timestamp()),
        ("The usage limit has been reached", None),
        ("try again later", None),
        ("resets 7", None),
        ("try again at 25:99 PM", None),
        ("", None),
    ],
)
def test_when_a_limit_ends_is_read_from_the_words(text, expected):
    assert reset_of(text, NOW) == expected


@given(st.text(alphabet=st.sampled_from("resetagin atw0123456789:.,|hmsdpPMNov\n"), max_size=80))
def test_no_words_are_an_error(text):
    found = reset_of(text, NOW)
    assert found is None or found >= 0


# -- what drivers share ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("All done.", None),
        ("Shall I go on?", None),
        ("I looked.\n\nQUESTION: Which one?", "Which one?"),
        ("I looked.\n\n**QUESTION:** Which one?\n", "Which one?"),
        ("QUESTION: Which?\n- a\n- b", "Which?\n- a\n- b"),
        ("QUESTION: Which one?\n\nI took the first.", None),
        ("QUESTION:", None),
    ],
)
def test_a_question_is_the_last_paragraph_that_says_it_is_one(text, expected):
    assert records.question(text) == expected


# -- the pre-write hook ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"file_path": "/a", "content": "x"}, ["/a"]),
        ({"notebook_path": "n.ipynb"}, ["n.ipynb"]),
        ({"filePath": "/a"}, ["/a"]),
        ({"command": "echo x > b"}, []),
        ({"command": "*** Begin Patch\n*** Add File: a\n+x\n*** Update File: b\n*** Move to: c\n*** Delete File: d\n"}, ["a", "b", "c", "d"]),
        ({"command": "apply_patch <<'EOF'\n*** Begin Patch\n*** Add File: dir/a b\n+*** Add File: no\n*** End Patch\nEOF"}, ["dir/a b"]),
        ({"file_path": 7, "path": None}, []),
    ],
)  # fmt: skip
def test_the_hook_finds_the_files_that_a_tool_names(given, expected):
    assert prewrite.paths(given) == expected


def hook(asked, dialect="", **env):
    words = ["sh", "-c", prewrite_hook(dialect)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIPASS_")}
    data = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    return subprocess.run(
        words, input=data, capture_output=True, env={**kept, **env}, check=True, timeout=PATIENCE
    )


@pytest.mark.parametrize(
    "asked", [b"", b"\xff", b"[]", b"7", b'{"tool_input": 7}', b'{"tool_input": {"file_path": "\\u0000"}}']
)
def test_a_hook_that_does_not_understand_lets_it_go_on(asked, tmp_path):
    done = hook(asked, AIPASS_ROOT=str(tmp_path), AIPASS_RUN="1", AIPASS_AGENT="a")
    assert done.stdout == b""


def test_without_a_fence_the_hook_knows_the_rules(tmp_path):
    (tmp_path / ".aipass").mkdir()
    (tmp_path / "mine").mkdir()
    table = {
        "agents": {"a": {"home": "h/a", "owns": ["/mine/"]}, "b": {"home": "h/b", "owns": ["/b.txt"]}},
        "phases": [{"plan": "1", "id": "p", "agent": "a", "owns": ["/phase.txt"], "run": 7}],
        "scratch": [],
        "temp": [],
        "nested": [],
    }
    (tmp_path / ".aipass/territory.json").write_text(json.dumps(table))
    env = {"AIPASS_ROOT": str(tmp_path.resolve()), "AIPASS_AGENT": "a"}

    def reason(path, dialect="", run="7"):
        done = hook({"tool_input": {"file_path": path}, "cwd": str(tmp_path)}, dialect, AIPASS_RUN=run, **env)
        if not done.stdout:
            return None
        told = json.loads(done.stdout)
        return told["reason"] if dialect else told["hookSpecificOutput"]["permissionDecisionReason"]

    assert reason("mine/new.txt") is None
    assert reason("phase.txt") is None
    assert "phase p of plan 1 owns it. It belongs to a." in reason("phase.txt", run="8")
    assert reason(str(tmp_path / "b.txt")).startswith(
        "aipass: `b.txt`: `owns` of b names it. It belongs to b."
    )
    assert reason("b.txt", "gemini").endswith("ask its owner for the change.")
    assert reason("/elsewhere/x") is None


def test_the_agents_of_one_cli_have_folders_of_their_own(aipass_bench):
    bench = aipass_bench('[agents.a]\ndriver = "codex"\n[agents.b]\ndriver = "codex"\n')
    for name in "ab":
        bench.ask("send", agent=name, text="x")
    homes = {start["env"]["CODEX_HOME"] for start in bench.runner.started.values()}
    assert homes == {str(bench.layout.cli_state(name)) for name in "ab"}
    assert all(start["env"]["PWD"] == str(bench.layout.root) for start in bench.runner.started.values())
