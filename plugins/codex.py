"""The `codex` driver: Codex CLI, non-interactive, with its own sign-in."""

from __future__ import annotations

from aipass_plugins.records import no_result, records

from aipass import Command, Job, Outcome, Usage, hookimpl
from aipass.dispatch.driver import Driver, Exit, tail


class CodexDriver:
    """Runs `codex exec --json` and believes a completed turn only."""

    name = "codex"
    program = "codex"

    def command(self, job: Job) -> Command:
        """Prompt on stdin, JSON lines on stdout; it may write in the working tree and is never asked."""
        model = ("-m", job.settings.model) if job.settings.model else ()
        quiet = ("-c", "check_for_update_on_startup=false", "-c", "analytics.enabled=false")
        return Command(
            argv=(
                "codex",
                "exec",
                "--json",
                "--skip-git-repo-check",
                "-s",
                "workspace-write",
                *quiet,
                *model,
                *job.settings.args,
                "-",
            ),
            state=("~/.codex",),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """The last message of a completed turn is the answer; the verdict is the last turn's, not the exit status."""
        del job
        text, reason, session, usage, completed = "", None, None, None, False
        for record in records(end.stdout):
            match record.get("type"):
                case "thread.started":
                    session = record.get("thread_id")
                case "item.completed" if record.get("item", {}).get("type") == "agent_message":
                    text = str(record["item"].get("text") or "")
                case "turn.completed":
                    told = record.get("usage") or {}
                    completed, usage = True, Usage(told.get("input_tokens"), told.get("output_tokens"))
                case "turn.failed":
                    completed, reason = False, str((record.get("error") or {}).get("message"))
        if completed and end.code == 0:
            return Outcome("succeeded", text, usage=usage, session=session)
        return Outcome(
            "failed",
            text,
            reason=reason or no_result(end.code, end.signal, tail(end.stderr)),
            usage=usage,
            session=session,
        )


@hookimpl
def register_drivers() -> list[Driver]:
    """The driver for Codex."""
    return [CodexDriver()]
