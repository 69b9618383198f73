"""The `gemini` driver: Gemini CLI, headless, with its own sign-in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aipass_plugins.records import no_result, records

from aipass import Command, Job, Outcome, Share, Usage, hookimpl
from aipass.dispatch.driver import Driver, Exit, tail

if TYPE_CHECKING:
    from pathlib import Path

OVERLOAD = re.compile(r'"code": ?(429|5[0-9][0-9])|RESOURCE_EXHAUSTED|UNAVAILABLE|overloaded', re.IGNORECASE)
#: Its exit status for a conversation that it does not have.
LOST = 42


class GeminiDriver:
    """Runs `gemini -o stream-json` and believes its result record only."""

    name = "gemini"
    program = "gemini"

    def command(self, job: Job) -> Command:
        """Prompt on stdin, JSON lines on stdout; nothing is asked."""
        # Without a model its router makes a call of its own for each prompt.
        model = ("-m", job.settings.model) if job.settings.model else ()
        resume = ("--resume", job.session) if job.session else ()
        return Command(
            argv=(
                *("gemini", "--skip-trust", "-o", "stream-json"),
                *("--approval-mode", "yolo" if job.fenced else "auto_edit"),
                *model,
                *resume,
                *job.settings.args,
            ),
            # Otherwise it starts itself again as a child, and passes no signal on.
            env={
                "GEMINI_CLI_NO_RELAUNCH": "true",
                "GEMINI_TELEMETRY_ENABLED": "false",
                "GEMINI_CLI_HOME": str(job.state),
            },
            shares=(
                Share(".gemini/oauth_creds.json", "~/.gemini/oauth_creds.json", writable=True),
                Share(".gemini/google_accounts.json", "~/.gemini/google_accounts.json"),
                Share(".gemini/settings.json", "~/.gemini/settings.json"),
                Share(".gemini/GEMINI.md", "~/.gemini/GEMINI.md"),
                Share(".gemini/.env", "~/.gemini/.env"),
            ),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """The assistant's words are the answer; the verdict is the result record's."""
        text, result = "", None
        for record in records(end.stdout):
            match record.get("type"):
                case "message" if record.get("role") == "assistant":
                    said = str(record.get("content") or "")
                    text = text + said if record.get("delta") else said
                case "result":
                    result = record
        session = self.session(end.stdout)
        if result is None:
            if job.session and end.code == LOST:
                return Outcome(
                    "overload", reason="its conversation is lost, and it starts afresh", session=""
                )
            reason = no_result(end.code, end.signal, tail(end.stderr))
            return Outcome("failed", text, reason=reason, session=session)
        told = result.get("stats") or {}
        usage = Usage(told.get("input_tokens"), told.get("output_tokens"))
        if result.get("status") == "success" and end.code == 0:
            return Outcome("succeeded", text, usage=usage, session=session)
        reason = str((result.get("error") or {}).get("message") or "it reported an error")
        state = "overload" if OVERLOAD.search(reason) else "failed"
        return Outcome(state, text, reason=reason[:400], usage=usage, session=session)

    def session(self, stdout: Path) -> str | None:
        """Its first record names the conversation."""
        return next((str(r["session_id"]) for r in records(stdout) if r.get("session_id")), None)


@hookimpl
def register_drivers() -> list[Driver]:
    """The driver for Gemini CLI."""
    return [GeminiDriver()]
