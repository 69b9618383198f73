"""The `claude` driver: Claude Code, headless, with its own sign-in."""

from __future__ import annotations

from typing import Any

from aipass_plugins.records import no_result, records

from aipass import Command, Job, Outcome, Usage, hookimpl
from aipass.dispatch.driver import Driver, Exit, tail


class ClaudeDriver:
    """Runs `claude -p` and believes its result record only."""

    name = "claude"
    program = "claude"

    def command(self, job: Job) -> Command:
        """Prompt on stdin, one result record on stdout; edits are accepted, nothing is asked."""
        model = ("--model", job.settings.model) if job.settings.model else ()
        return Command(
            argv=(
                "claude",
                "-p",
                "--output-format",
                "json",
                "--permission-mode",
                "acceptEdits",
                *model,
                *job.settings.args,
            ),
            # An authorization error is retried for minutes otherwise, as if it could heal.
            env={
                "DISABLE_AUTOUPDATER": "1",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "CLAUDE_CODE_MAX_RETRIES": "3",
            },
            state=("~/.claude",),
            writes=("~/.claude.json*",),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """`is_error` decides; `subtype` says success even for a model error."""
        del job
        result = next((record for record in records(end.stdout) if record.get("type") == "result"), None)
        if result is None:
            return Outcome("failed", end.stdout, reason=no_result(end.code, end.signal, tail(end.stderr)))
        text, session = str(result.get("result") or ""), result.get("session_id")
        if result.get("is_error") or end.code != 0:
            status = result.get("api_error_status")
            state = "overload" if status in {429, 500, 502, 503, 529} else "failed"
            return Outcome(
                state,
                text,
                reason=text[:400] or str(result.get("subtype")),
                usage=_usage(result),
                session=session,
            )
        return Outcome("succeeded", text, usage=_usage(result), session=session)


def _usage(result: dict[str, Any]) -> Usage:
    told = result.get("usage") or {}
    return Usage(told.get("input_tokens"), told.get("output_tokens"), result.get("total_cost_usd"))


@hookimpl
def register_drivers() -> list[Driver]:
    """The driver for Claude Code."""
    return [ClaudeDriver()]
