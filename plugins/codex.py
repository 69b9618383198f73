"""The `codex` driver: Codex CLI, non-interactive, with its own sign-in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aipass_plugins.records import no_result, records

from aipass import Command, Job, Outcome, Share, Usage, hookimpl
from aipass.dispatch.driver import Driver, Exit, tail

if TYPE_CHECKING:
    from pathlib import Path

#: It tells no status; these are its words for a model server that is overloaded, or fails.
OVERLOAD = re.compile(r"high demand|status (429|5[0-9][0-9])|stream disconnected|usage limit", re.IGNORECASE)
LOST = "no rollout found"


class CodexDriver:
    """Runs `codex exec --json` and believes a completed turn only."""

    name = "codex"
    program = "codex"

    def command(self, job: Job) -> Command:
        """Prompt on stdin, JSON lines on stdout; it is never asked. Its own sandbox does not work inside the fence."""
        model = ("-m", job.settings.model) if job.settings.model else ()
        quiet = ("-c", "check_for_update_on_startup=false", "-c", "analytics.enabled=false")
        resume = ("resume", job.session) if job.session else ()
        return Command(
            argv=(
                *("codex", "exec", "--json", "--skip-git-repo-check"),
                *("-s", "danger-full-access" if job.fenced else "workspace-write"),
                *quiet,
                *model,
                *job.settings.args,
                *resume,
                "-",
            ),
            env={"CODEX_HOME": str(job.state)},
            shares=(
                Share("auth.json", "~/.codex/auth.json", writable=True),
                Share("config.toml", "~/.codex/config.toml"),
                Share("AGENTS.md", "~/.codex/AGENTS.md"),
            ),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """The last message of a completed turn is the answer; the verdict is the last turn's, not the exit status."""
        text, reason, usage, completed = "", None, None, False
        for record in records(end.stdout):
            match record.get("type"):
                case "item.completed" if record.get("item", {}).get("type") == "agent_message":
                    text = str(record["item"].get("text") or "")
                case "turn.completed":
                    told = record.get("usage") or {}
                    completed, usage = True, Usage(told.get("input_tokens"), told.get("output_tokens"))
                case "turn.failed":
                    completed, reason = False, str((record.get("error") or {}).get("message"))
        session = self.session(end.stdout)
        if completed and end.code == 0:
            return Outcome("succeeded", text, usage=usage, session=session)
        last = tail(end.stderr)
        if job.session and LOST in last:
            return Outcome("overload", reason="its conversation is lost, and it starts afresh", session="")
        state = "overload" if reason and OVERLOAD.search(reason) else "failed"
        reason = reason or no_result(end.code, end.signal, last)
        return Outcome(state, text, reason=reason, usage=usage, session=session)

    def session(self, stdout: Path) -> str | None:
        """Its first record names the conversation."""
        return next((str(r["thread_id"]) for r in records(stdout) if r.get("thread_id")), None)


@hookimpl
def register_drivers() -> list[Driver]:
    """The driver for Codex."""
    return [CodexDriver()]
