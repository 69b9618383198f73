"""The `claude` driver: Claude Code, headless, with its own sign-in."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from aipass_plugins.records import (
    FAULT,
    LIMIT,
    OVERLOAD,
    Records,
    afresh,
    amount,
    count,
    denied,
    inner,
    no_result,
    question,
    record,
    session_in,
    shown,
    words,
)

from aipass import Command, Job, Outcome, Share, Usage, hookimpl
from aipass.features.dispatch.driver import Driver, Exit, mail_hook, prewrite_hook, says, tail
from aipass.features.dispatch.resets import reset_of, said_at

if TYPE_CHECKING:
    from pathlib import Path

#: What it says of a conversation that it does not have.
UNKNOWN_SESSION = "No conversation found"
NOT_SIGNED_IN = "Not logged in"
LIMITED = re.compile(
    r"usage limit|rate limit|hit your .{0,20}limit|(weekly|hour|opus|sonnet) limit reached", re.IGNORECASE
)
#: Its tools that write a file; a shell's writes are the fence's alone.
WRITERS = "Write|Edit|MultiEdit|NotebookEdit"
#: What it reads, from its caches or not.
READ = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
ASKS = "AskUserQuestion"


def _hook(matcher: str, command: str) -> list[dict[str, Any]]:
    return [{"matcher": matcher, "hooks": [{"type": "command", "command": command, "timeout": 10}]}]


SETTINGS = {
    "disableAllHooks": False,
    "hooks": {
        "PreToolUse": _hook(WRITERS, prewrite_hook()),
        "PostToolUse": _hook("*", mail_hook()),
        "PostToolUseFailure": _hook("*", mail_hook()),
    },
}


class ClaudeDriver:
    """Runs `claude -p` and believes its result record only."""

    name = program = "claude"
    briefed = True
    accounts = (
        "ANTHROPIC_API_KEY",
        "~/.claude/.credentials.json",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "ANTHROPIC_AUTH_TOKEN",
    )

    def command(self, job: Job) -> Command:
        """Prompt on stdin, JSON lines on stdout; nothing is ever asked."""
        # Inside fence or wall it may do what it likes; elsewhere edits are accepted and all else is refused.
        freely = (
            ("--dangerously-skip-permissions",) if job.contained else ("--permission-mode", "acceptEdits")
        )
        moved = os.environ.get("CLAUDE_CONFIG_DIR")
        own = moved or "~/.claude"
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
                "CLAUDE_CODE_TMPDIR": str(job.tmp or job.state / "tmp"),
                "DISABLE_AUTOUPDATER": "1",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                # An authorization error is retried for minutes otherwise, as if it could heal.
                "CLAUDE_CODE_MAX_RETRIES": "3",
                # As root it refuses to work without questions, but in a sandbox, which the fence is.
                **({"IS_SANDBOX": "1"} if job.contained else {}),
            },
            shares=(
                Share(".credentials.json", f"{own}/.credentials.json", writable=True),
                Share(".claude.json", f"{own if moved else '~'}/.claude.json", copied=True),
                *(
                    Share(name, f"{own}/{name}")
                    for name in ("settings.json", "CLAUDE.md", "skills", "commands", "agents")
                ),
            ),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """`is_error` decides; `subtype` says success even for a model error."""
        result, resets, said = None, None, ""
        told_of = Records(end.stdout, "session_id")
        for one in told_of:
            match one.get("type"):
                case "assistant":
                    said = _text(one) or said
                case "result":
                    result = one
                case "rate_limit_event":
                    told = inner(one.get("rate_limit_info"))
                    if told.get("status") == "rejected":
                        resets = count(told.get("resetsAt"))
        session = told_of.session
        errors = str((result or {}).get("errors"))
        if job.session and (UNKNOWN_SESSION in errors or says(end.stderr, UNKNOWN_SESSION)):
            return afresh()
        if result is None:
            reason = no_result(end.code, end.signal, tail(end.stderr))
            return Outcome("failed", said, reason=reason, session=session)
        text = words(result.get("result"))
        usage = _usage(result)
        if result.get("is_error") is not False or end.code != 0:
            status = result.get("api_error_status")
            reason = text[:400] or words(result.get("subtype")) or "it reported an error"
            if status == LIMIT or (result.get("is_error") is True and LIMITED.search(text)):
                until = resets or reset_of(text, said_at(end.stdout))
                return Outcome("limit", text, reason=reason, usage=usage, session=session, resets=until)
            known = status in FAULT or status in OVERLOAD or text.startswith(NOT_SIGNED_IN)
            fault = reason if known else None
            state = "overload" if status in OVERLOAD else "failed"
            return Outcome(state, text, reason=reason, usage=usage, session=session, fault=fault)
        refusals = [inner(entry) for entry in result.get("permission_denials") or ()]
        waits = _asked(refusals) or question(text)
        if not job.contained:
            # Inside, it was refused what is not its own, and has been told so.
            waits = waits or denied(entry.get("tool_name") for entry in refusals)
        return Outcome("blocked" if waits else "succeeded", text, reason=waits, usage=usage, session=session)

    def session(self, stdout: Path) -> str | None:
        """Its first record names the conversation."""
        return session_in(stdout, "session_id")

    def readable(self, line: str) -> str | None:
        """What it says and does; results of tools only where they are errors."""
        found = record(line)
        if found is None:
            return line
        match found.get("type"):
            case "assistant" | "user":
                return "\n".join(filter(None, map(_shown, _parts(found)))) or None
            case "result":
                turns, cost = found.get("num_turns"), found.get("total_cost_usd")
                how = "succeeded" if found.get("is_error") is False else "failed"
                return f"= {how}, {turns} turn{'' if turns == 1 else 's'}, {cost} US dollars"
        return None


def _asked(refusals: list[dict[str, Any]]) -> str | None:
    """A question to its user, which it may not put when it has none."""
    for entry in refusals:
        if entry.get("tool_name") == ASKS:
            asked = inner(entry.get("tool_input")).get("questions")
            return " ".join(words(inner(one).get("question")) for one in asked or ()) or None
    return None


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = inner(message.get("message")).get("content")
    return [inner(part) for part in content] if isinstance(content, list) else []


def _text(message: dict[str, Any]) -> str:
    return "\n".join(words(part.get("text")) for part in _parts(message) if part.get("type") == "text")


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
    told = inner(result.get("usage"))
    read = [count(told.get(name)) for name in READ]
    tokens = sum(one for one in read if one) if any(one is not None for one in read) else None
    return Usage(tokens, count(told.get("output_tokens")), amount(result.get("total_cost_usd")))


@hookimpl
def register_drivers() -> list[Driver]:
    """The driver for Claude Code."""
    return [ClaudeDriver()]
