"""The `claude` driver: Claude Code, headless, with its own sign-in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aipass_plugins.records import denied, no_result, records

from aipass import Command, Job, Outcome, Share, Usage, hookimpl
from aipass.dispatch.driver import Driver, Exit, tail

if TYPE_CHECKING:
    from pathlib import Path

#: HTTP states of the model server after which another attempt makes sense.
OVERLOAD = frozenset((429, 500, 502, 503, 529))
#: What it says of a conversation that it does not have.
LOST = "No conversation found"


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
        result = next((record for record in records(end.stdout) if record.get("type") == "result"), None)
        if result is None:
            last = tail(end.stderr)
            if job.session and LOST in last:
                return Outcome(
                    "overload", reason="its conversation is lost, and it starts afresh", session=""
                )
            reason = no_result(end.code, end.signal, last)
            return Outcome("failed", end.stdout, reason=reason, session=self.session(end.stdout))
        text, session = str(result.get("result") or ""), result.get("session_id")
        refused = denied(entry.get("tool_name") for entry in result.get("permission_denials") or ())
        if result.get("is_error") or end.code != 0:
            state = "overload" if result.get("api_error_status") in OVERLOAD else "failed"
            reason = text[:400] or str(result.get("subtype"))
            return Outcome(state, text, reason=reason, usage=_usage(result), session=session)
        state = "blocked" if refused else "succeeded"
        return Outcome(state, text, reason=refused, usage=_usage(result), session=session)

    def session(self, stdout: Path) -> str | None:
        """Its first record names the conversation."""
        return next((str(r["session_id"]) for r in records(stdout) if r.get("session_id")), None)


def _usage(result: dict[str, Any]) -> Usage:
    told = result.get("usage") or {}
    return Usage(told.get("input_tokens"), told.get("output_tokens"), result.get("total_cost_usd"))


@hookimpl
def register_drivers() -> list[Driver]:
    """The driver for Claude Code."""
    return [ClaudeDriver()]
