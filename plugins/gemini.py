"""The `gemini` driver: runs Gemini CLI headless, with the user's sign-in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from aipass_plugins.records import (
    Records,
    afresh,
    count,
    inner,
    no_result,
    question,
    record,
    session_in,
    shown,
    words,
)

from aipass import Command, Job, Outcome, Share, Usage, hookimpl
from aipass.features.dispatch.driver import Driver, Exit, mail_hook, prewrite_hook, tail
from aipass.features.dispatch.resets import reset_of, said_at

#: Its texts for an overloaded server, a limit, and a refused sign-in or model: it passes on the server's error as text.
OVERLOAD = re.compile(r'"code": ?5[0-9][0-9]|UNAVAILABLE|"status": ?"INTERNAL"|[Oo]verloaded')
LIMITED = re.compile(r'"code": ?429|RESOURCE_EXHAUSTED|(daily|current|your) quota|[Rr]ate limit')
FAULT = re.compile(r'"code": ?40[134]|API key|UNAUTHENTICATED|auth method', re.IGNORECASE)
#: Its exit statuses for a conversation that it no longer has, and for a missing sign-in.
UNKNOWN_SESSION, NO_AUTH = 42, 41


def _hook(matcher: str, name: str, command: str) -> dict[str, Any]:
    return {
        "matcher": matcher,
        "hooks": [{"type": "command", "command": command, "name": name, "timeout": 10_000}],
    }


HOOKS = {
    "BeforeTool": _hook("write_file|replace|edit", "aipass", prewrite_hook("gemini")),
    "AfterTool": _hook(".*", "aipass-mail", mail_hook()),
}


class GeminiDriver:
    """Runs `gemini -o stream-json`. Only its result record decides the outcome."""

    name = program = "gemini"
    briefed = True
    accounts = ("GEMINI_API_KEY", "~/.gemini/oauth_creds.json", "GOOGLE_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI")

    def command(self, job: Job) -> Command:
        """Return the command line: prompt on stdin, JSON Lines on stdout, no interactive questions."""
        own = f"{os.environ.get('GEMINI_CLI_HOME') or '~'}/.gemini"
        # Without a model its router makes an extra model call for each prompt.
        model = ("-m", job.settings.model) if job.settings.model else ()
        resume = ("--resume", job.session) if job.session else ()
        return Command(
            argv=(
                *("gemini", "--skip-trust", "-o", "stream-json"),
                *("--approval-mode", "yolo" if job.contained else "auto_edit"),
                *model,
                *resume,
                *job.settings.args,
            ),
            env={
                # Otherwise it starts itself again as a child process, and does not forward signals to it.
                "GEMINI_CLI_NO_RELAUNCH": "true",
                "GEMINI_TELEMETRY_ENABLED": "false",
                "GEMINI_CLI_HOME": str(job.state),
            },
            shares=(
                Share(".gemini/oauth_creds.json", f"{own}/oauth_creds.json", writable=True),
                Share(".gemini/google_accounts.json", f"{own}/google_accounts.json"),
                _settings(f"{own}/settings.json"),
                Share(".gemini/GEMINI.md", f"{own}/GEMINI.md"),
                Share(".gemini/.env", f"{own}/.env"),
            ),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """Read the outcome from the result record; the answer is the text of the assistant."""
        text, result = "", None
        told_of = Records(end.stdout, "session_id")
        for one in told_of:
            match one.get("type"):
                case "message" if one.get("role") == "assistant":
                    said = words(one.get("content"))
                    text = text + said if one.get("delta") else said
                case "result":
                    result = one
        session, last = told_of.session, tail(end.stderr)
        if result is None:
            if job.session and end.code == UNKNOWN_SESSION:
                return afresh()
            reason = no_result(end.code, end.signal, last)
            fault = reason[:200] if end.code == NO_AUTH else None
            return Outcome("failed", text, reason=reason, session=session, fault=fault)
        told = inner(result.get("stats"))
        usage = Usage(count(told.get("input_tokens")), count(told.get("output_tokens")))
        if result.get("status") == "success" and end.code == 0:
            asked = question(text)
            return Outcome(
                "blocked" if asked else "succeeded", text, reason=asked, usage=usage, session=session
            )
        reason = words(inner(result.get("error")).get("message")) or "it reported an error"
        if LIMITED.search(reason):
            # Only its error report on stderr has the time when the limit ends.
            at = said_at(end.stdout)
            until = reset_of(reason, at) or reset_of(tail(end.stderr, lines=40, chars=8_000), at)
            return Outcome("limit", text, reason=reason[:400], usage=usage, session=session, resets=until)
        state = "overload" if OVERLOAD.search(reason) else "failed"
        fault = reason[:200] if state == "overload" or FAULT.search(reason) else None
        return Outcome(state, text, reason=reason[:400], usage=usage, session=session, fault=fault)

    def session(self, stdout: Path) -> str | None:
        """Return the conversation id, which its first record has."""
        return session_in(stdout, "session_id")

    def readable(self, line: str) -> str | None:
        """Return a line of output for people: text, tool uses and errors."""
        found = record(line)
        if found is None:
            return line
        match found.get("type"):
            case "message" if found.get("role") == "assistant":
                return words(found.get("content"))
            case "tool_use":
                return shown(found.get("tool_name"), inner(found.get("parameters")))
            case "tool_result" if found.get("status") == "error":
                return f"! {inner(found.get('error')).get('message') or found.get('output')}"
            case "result":
                told = inner(found.get("stats"))
                why = words(inner(found.get("error")).get("message"))
                return f"= {found.get('status')}, {told.get('total_tokens')} tokens" + (
                    f": {why}" if why else ""
                )
        return None


def _settings(source: str) -> Share:
    """Return the user's settings with our hooks added after theirs. Settings that are not plain JSON stay as they are."""
    try:
        found = json.loads(Path(source).expanduser().read_bytes())
    except FileNotFoundError:
        found = {}
    except (OSError, ValueError):
        # Gemini accepts comments in its settings and `json` does not: the run then goes without our hooks.
        return Share(".gemini/settings.json", source)
    if not isinstance(found, dict):
        return Share(".gemini/settings.json", source)
    theirs = inner(found.get("hooks"))
    ours = {event: [*(_listed(theirs.get(event))), hook] for event, hook in HOOKS.items()}
    return Share(".gemini/settings.json", text=json.dumps({**found, "hooks": {**theirs, **ours}}))


def _listed(found: object) -> list[Any]:
    return found if isinstance(found, list) else []


@hookimpl
def register_drivers() -> list[Driver]:
    """Return the driver for Gemini CLI."""
    return [GeminiDriver()]
