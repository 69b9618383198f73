"""The `codex` driver: runs Codex CLI non-interactively, with the user's sign-in."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

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
from aipass.features.dispatch.driver import Driver, Exit, mail_hook, prewrite_hook, says, tail
from aipass.features.dispatch.resets import reset_of, said_at

if TYPE_CHECKING:
    from pathlib import Path

#: Its records have no HTTP status. These are its texts for an overloaded server, a limit, and a refused sign-in or model.
OVERLOAD = re.compile(r"high demand|status:? 5[0-9][0-9]|stream disconnected", re.IGNORECASE)
LIMITED = re.compile(r"usage limit|rate limit|status:? 429|too many requests", re.IGNORECASE)
FAULT = re.compile(r"status:? 40[134]|environment variable|not logged in|log in again", re.IGNORECASE)
UNKNOWN_SESSION = "no rollout found"


#: Its own sandbox: the workspace and the folder in TMPDIR, not all of /tmp, which agents share.
SANDBOX = ("-s", "workspace-write", "-c", "sandbox_workspace_write.exclude_slash_tmp=true")


def _hook(event: str, matcher: str, command: str) -> tuple[str, str]:
    does = f'{{type="command",timeout=10,command={json.dumps(command)}}}'
    return "-c", f'hooks.{event}=[{{matcher="{matcher}",hooks=[{does}]}}]'


HOOKS = (
    *_hook("PreToolUse", "apply_patch|Bash", prewrite_hook()),
    *_hook("PostToolUse", ".*", mail_hook()),
)


class CodexDriver:
    """Runs `codex exec --json`. Only a completed turn is a success."""

    name = program = "codex"
    briefed = True
    accounts = ("CODEX_API_KEY", "~/.codex/auth.json", "OPENAI_API_KEY")

    def command(self, job: Job) -> Command:
        """Return the command line: prompt on stdin, JSON Lines on stdout, no interactive questions."""
        own = os.environ.get("CODEX_HOME") or "~/.codex"
        model = ("-m", job.settings.model) if job.settings.model else ()
        # Its hooks run only with this flag, which also trusts hooks of the repository: safe only if a sandbox limits those.
        hooks = ("--dangerously-bypass-hook-trust", *HOOKS) if job.contained else ()
        quiet = ("-c", "check_for_update_on_startup=false", "-c", "analytics.enabled=false")
        # A login shell resets PATH on many systems, so agents would not find `aipass`.
        shell = ("-c", "allow_login_shell=false")
        resume = ("resume", job.session) if job.session else ()
        return Command(
            argv=(
                *("codex", "exec", "--json", "--skip-git-repo-check"),
                # Its own sandbox does not work inside the fence.
                *(("-s", "danger-full-access") if job.contained else SANDBOX),
                *hooks,
                *quiet,
                *shell,
                *model,
                *job.settings.args,
                # A subcommand: options come before it. `-` reads the prompt from stdin.
                *resume,
                "-",
            ),
            env={"CODEX_HOME": str(job.state)},
            shares=(
                Share("auth.json", f"{own}/auth.json", writable=True),
                Share("config.toml", f"{own}/config.toml"),
                Share("AGENTS.md", f"{own}/AGENTS.md"),
            ),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """Read the outcome from the last turn, not from the exit status alone; the answer is its last message."""
        text, reason, usage, completed = "", None, None, False
        told_of = Records(end.stdout, "thread_id")
        for one in told_of:
            match one.get("type"):
                case "item.completed" if inner(one.get("item")).get("type") == "agent_message":
                    text = words(inner(one.get("item")).get("text"))
                case "turn.completed":
                    told = inner(one.get("usage"))
                    usage = _usage(told, job)
                    completed = True
                case "turn.failed":
                    completed = False
                    reason = words(inner(one.get("error")).get("message")) or "it reported an error"
        session = told_of.session
        if completed and end.code == 0:
            asked = question(text)
            return Outcome(
                "blocked" if asked else "succeeded", text, reason=asked, usage=usage, session=session
            )
        last = tail(end.stderr)
        if job.session and says(end.stderr, UNKNOWN_SESSION):
            return afresh()
        if reason is None:
            reason = no_result(end.code, end.signal, last)
            return Outcome("failed", text, reason=reason, usage=usage, session=session)
        if LIMITED.search(reason):
            resets = reset_of(reason, said_at(end.stdout))
            return Outcome("limit", text, reason=reason[:400], usage=usage, session=session, resets=resets)
        state = "overload" if OVERLOAD.search(reason) else "failed"
        fault = reason[:200] if state == "overload" or FAULT.search(reason) else None
        return Outcome(state, text, reason=reason[:400], usage=usage, session=session, fault=fault)

    def session(self, stdout: Path) -> str | None:
        """Return the conversation id, which its first record has."""
        return session_in(stdout, "thread_id")

    def readable(self, line: str) -> str | None:
        """Return a line of output for people: text, commands, changed files and errors."""
        found = record(line)
        if found is None:
            return line
        item = inner(found.get("item"))
        match found.get("type"), item.get("type"):
            case "item.completed", "agent_message":
                return words(item.get("text"))
            case "item.completed", "error":
                return f"! {item.get('message')}"
            case "item.started", "command_execution":
                return shown("shell", item)
            case "item.completed", "command_execution" if item.get("exit_code"):
                return f"! exit status {item['exit_code']}: {words(item.get('aggregated_output'))[-300:]}"
            case "item.completed", "file_change":
                changes = [inner(change) for change in item.get("changes") or ()]
                return "\n".join(f"> {change.get('kind')} {change.get('path')}" for change in changes)
            case ("error", _) | ("turn.failed", _):
                return f"! {found.get('message') or inner(found.get('error')).get('message')}"
            case "turn.completed", _:
                told = inner(found.get("usage"))
                return f"= completed, {told.get('input_tokens')} tokens in, {told.get('output_tokens')} out"
        return None


def _usage(told: dict[str, Any], job: Job) -> Usage:
    """Return the usage of this run. Codex counts the whole conversation, so earlier usage is subtracted."""
    before = job.used or Usage()
    pairs = (("input_tokens", before.input_tokens), ("output_tokens", before.output_tokens))
    return Usage(
        *(None if (now := count(told.get(name))) is None else max(0, now - (old or 0)) for name, old in pairs)
    )


@hookimpl
def register_drivers() -> list[Driver]:
    """Return the driver for Codex."""
    return [CodexDriver()]
