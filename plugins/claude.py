"""The `claude` driver: Claude Code, headless, with its own sign-in."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from aipass_plugins.records import (
    FAULT,
    LIMIT,
    LOST,
    OVERLOAD,
    count,
    denied,
    inner,
    no_result,
    question,
    record,
    records,
    shown,
    words,
)

from aipass import Command, Job, Outcome, Share, Usage, hookimpl
from aipass.dispatch.driver import Driver, Exit, prewrite_hook, tail
from aipass.dispatch.resets import reset_of

if TYPE_CHECKING:
    from pathlib import Path

#: What it says of a conversation that it does not have.
UNKNOWN_SESSION = "No conversation found"
NOT_SIGNED_IN = "Not logged in"
LIMITED = re.compile(r"usage limit|hit your .{0,20}limit|limit reached", re.IGNORECASE)
#: Its tools that write a file; a shell's writes are the fence's alone.
WRITERS = "Write|Edit|MultiEdit|NotebookEdit"
ASKS = "AskUserQuestion"


SETTINGS = {
    "disableAllHooks": False,
    "hooks": {
        "PreToolUse": [
            {"matcher": WRITERS, "hooks": [{"type": "command", "command": prewrite_hook(), "timeout": 10}]}
        ]
    },
}


class ClaudeDriver:
    """Runs `claude -p` and believes its result record only."""

    name = "claude"
    program = "claude"

    def command(self, job: Job) -> Command:
        """Prompt on stdin, JSON lines on stdout; nothing is ever asked."""
        # Behind the fence it may do what it likes; elsewhere edits are accepted and all else is refused.
        freely = ("--dangerously-skip-permissions",) if job.fenced else ("--permission-mode", "acceptEdits")
        model = ("--model", job.settings.model) if job.settings.model else ()
        resume = ("--resume", job.session) if job.session else ()
        return Command(
            argv=(
                *("claude", "-p", "--output-format", "stream-json", "--verbose"),
                *("--settings", json.dumps(SETTINGS)),
                *freely,
                *model,
                *resume,
                *job.settings.args,
            ),
            env={
                "CLAUDE_CONFIG_DIR": str(job.state),
                # Its own below /tmp would be shared with the user's.
                "CLAUDE_CODE_TMPDIR": str(job.state / "tmp"),
                "DISABLE_AUTOUPDATER": "1",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                # An authorization error is retried for minutes otherwise, as if it could heal.
                "CLAUDE_CODE_MAX_RETRIES": "3",
                # As root it refuses to work without questions, but in a sandbox, which the fence is.
                **({"IS_SANDBOX": "1"} if job.fenced else {}),
            },
            shares=(
                Share(".credentials.json", "~/.claude/.credentials.json", writable=True),
                Share(".claude.json", "~/.claude.json", copied=True),
                *(
                    Share(name, f"~/.claude/{name}")
                    for name in ("settings.json", "CLAUDE.md", "skills", "commands", "agents")
                ),
            ),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """`is_error` decides; `subtype` says success even for a model error."""
        result, resets = None, None
        for one in records(end.stdout):
            match one.get("type"):
                case "result":
                    result = one
                case "rate_limit_event":
                    told = inner(one.get("rate_limit_info"))
                    if told.get("status") == "rejected":
                        resets = count(told.get("resetsAt"))
        if result is None:
            return self._without_result(job, end)
        text, session = words(result.get("result")), words(result.get("session_id")) or None
        usage = _usage(result)
        if result.get("is_error") or end.code != 0:
            status = result.get("api_error_status")
            reason = text[:400] or words(result.get("subtype")) or "it reported an error"
            if status == LIMIT or LIMITED.search(text):
                until = resets or reset_of(text)
                return Outcome("limit", text, reason=reason, usage=usage, session=session, resets=until)
            known = status in FAULT or status in OVERLOAD or text.startswith(NOT_SIGNED_IN)
            fault = reason if known else None
            state = "overload" if status in OVERLOAD else "failed"
            return Outcome(state, text, reason=reason, usage=usage, session=session, fault=fault)
        refusals = [inner(entry) for entry in result.get("permission_denials") or ()]
        waits = _asked(refusals) or question(text) or denied(entry.get("tool_name") for entry in refusals)
        return Outcome("blocked" if waits else "succeeded", text, reason=waits, usage=usage, session=session)

    def _without_result(self, job: Job, end: Exit) -> Outcome:
        last = tail(end.stderr)
        if job.session and UNKNOWN_SESSION in last:
            return Outcome("overload", reason=LOST, session="")
        reason = no_result(end.code, end.signal, last)
        return Outcome("failed", end.stdout, reason=reason, session=self.session(end.stdout))

    def session(self, stdout: Path) -> str | None:
        """Its first record names the conversation."""
        return next((words(r["session_id"]) for r in records(stdout) if words(r.get("session_id"))), None)

    def readable(self, line: str) -> str | None:
        """What it says and does; results of tools only where they are errors."""
        found = record(line)
        if found is None:
            return line
        match found.get("type"):
            case "assistant" | "user":
                content = inner(found.get("message")).get("content")
                parts = [inner(part) for part in content] if isinstance(content, list) else []
                return "\n".join(filter(None, map(_shown, parts))) or None
            case "result":
                turns, cost = found.get("num_turns"), found.get("total_cost_usd")
                return f"= {found.get('subtype')}, {turns} turns, {cost} US dollars"
        return None


def _asked(refusals: list[dict[str, Any]]) -> str | None:
    """A question to its user, which it may not put when it has none."""
    for entry in refusals:
        if entry.get("tool_name") == ASKS:
            asked = inner(entry.get("tool_input")).get("questions")
            return " ".join(words(inner(one).get("question")) for one in asked or ()) or None
    return None


def _shown(part: dict[str, Any]) -> str | None:
    match part.get("type"):
        case "text":
            return words(part.get("text"))
        case "tool_use":
            return shown(part.get("name"), inner(part.get("input")))
        case "tool_result" if part.get("is_error"):
            return f"! {str(part.get('content'))[:300]}"
    return None


def _usage(result: dict[str, Any]) -> Usage:
    told, cost = inner(result.get("usage")), result.get("total_cost_usd")
    tokens = count(told.get("input_tokens")), count(told.get("output_tokens"))
    return Usage(*tokens, float(cost) if isinstance(cost, (int, float)) else None)


@hookimpl
def register_drivers() -> list[Driver]:
    """The driver for Claude Code."""
    return [ClaudeDriver()]
