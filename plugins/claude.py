"""The `claude` driver: runs Claude Code headless, with the user's sign-in."""

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

#: Its error for a conversation that it no longer has.
UNKNOWN_SESSION = "No conversation found"
NOT_SIGNED_IN = "Not logged in"
LIMITED = re.compile(
    r"usage limit|rate limit|hit your .{0,20}limit|(weekly|hour|opus|sonnet) limit reached", re.IGNORECASE
)
#: Its tools that write a file. Only the fence sees writes of a shell.
WRITERS = "Write|Edit|MultiEdit|NotebookEdit"
#: Fields with input tokens: those from a cache are not in `input_tokens`.
READ = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
#: The tool for a question to its user; without a terminal it is refused and listed as a permission denial.
ASKS = "AskUserQuestion"


def _hook(matcher: str, command: str) -> list[dict[str, Any]]:
    # The timeout is in seconds here, and in milliseconds in Gemini CLI.
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
    """Runs `claude -p`. Only its result record decides the outcome."""

    name = program = "claude"
    briefed = True
    accounts = (
        "ANTHROPIC_API_KEY",
        "~/.claude/.credentials.json",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "ANTHROPIC_AUTH_TOKEN",
    )

    def command(self, job: Job) -> Command:
        """Return the command line: prompt on stdin, JSON Lines on stdout, no interactive questions."""
        # In a sandbox (fence or wall) the kernel limits it. Without one it accepts edits and refuses everything else.
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
                # Its default below /tmp would be shared with the user's own sessions.
                "CLAUDE_CODE_TMPDIR": str(job.tmp or job.state / "tmp"),
                "DISABLE_AUTOUPDATER": "1",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                # By default it retries an authorization error for minutes.
                "CLAUDE_CODE_MAX_RETRIES": "3",
                # As root it refuses to skip permissions outside a sandbox; the fence is one.
                **({"IS_SANDBOX": "1"} if job.contained else {}),
            },
            shares=(
                # Writable: it refreshes its token there.
                Share(".credentials.json", f"{own}/.credentials.json", writable=True),
                Share(".claude.json", f"{own if moved else '~'}/.claude.json", copied=True),
                *(
                    Share(name, f"{own}/{name}")
                    for name in ("settings.json", "CLAUDE.md", "skills", "commands", "agents")
                ),
            ),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """Read the outcome from the result record. `is_error` decides: `subtype` is `success` even for a model error."""
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
            # Only without a sandbox: in one, the pre-write hook refuses files of others and explains it to the model.
            waits = waits or denied(entry.get("tool_name") for entry in refusals)
        return Outcome("blocked" if waits else "succeeded", text, reason=waits, usage=usage, session=session)

    def session(self, stdout: Path) -> str | None:
        """Return the conversation id, which its first record has."""
        return session_in(stdout, "session_id")

    def readable(self, line: str) -> str | None:
        """Return a line of output for people: text and tool uses; results of tools only if they are errors."""
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
    """Return the question that it tried to ask its user; None if it asked none."""
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
    """Return the driver for Claude Code."""
    return [ClaudeDriver()]
