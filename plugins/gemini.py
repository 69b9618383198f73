"""The `gemini` driver: Gemini CLI, headless, with its own sign-in."""

from __future__ import annotations

from aipass_plugins.records import no_result, records

from aipass import Command, Job, Outcome, Usage, hookimpl
from aipass.dispatch.driver import Driver, Exit, tail


class GeminiDriver:
    """Runs `gemini -o stream-json` and believes its result record only."""

    name = "gemini"
    program = "gemini"

    def command(self, job: Job) -> Command:
        """Prompt on stdin, JSON lines on stdout; edits are accepted, nothing is asked."""
        # Without a model its router makes a call of its own for each prompt.
        model = ("-m", job.settings.model) if job.settings.model else ()
        return Command(
            argv=(
                "gemini",
                "--skip-trust",
                "-o",
                "stream-json",
                "--approval-mode",
                "auto_edit",
                *model,
                *job.settings.args,
            ),
            # Otherwise it starts itself again as a child, and passes no signal on.
            env={"GEMINI_CLI_NO_RELAUNCH": "true", "GEMINI_TELEMETRY_ENABLED": "false"},
            state=("~/.gemini",),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """The assistant's words are the answer; the verdict is the result record's."""
        del job
        text, result, session = "", None, None
        for record in records(end.stdout):
            match record.get("type"):
                case "init":
                    session = record.get("session_id")
                case "message" if record.get("role") == "assistant":
                    text = (
                        text + str(record.get("content") or "")
                        if record.get("delta")
                        else str(record.get("content") or "")
                    )
                case "result":
                    result = record
        if result is None:
            return Outcome(
                "failed", text, reason=no_result(end.code, end.signal, tail(end.stderr)), session=session
            )
        told = result.get("stats") or {}
        usage = Usage(told.get("input_tokens"), told.get("output_tokens"))
        if result.get("status") == "success" and end.code == 0:
            return Outcome("succeeded", text, usage=usage, session=session)
        reason = str((result.get("error") or {}).get("message") or "it reported an error")
        return Outcome("failed", text, reason=reason[:400], usage=usage, session=session)


@hookimpl
def register_drivers() -> list[Driver]:
    """The driver for Gemini CLI."""
    return [GeminiDriver()]
