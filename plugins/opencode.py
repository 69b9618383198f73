"""The `opencode` driver: opencode, headless, with its own sign-in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aipass_plugins.records import no_result, records

from aipass import Command, Job, Outcome, Share, Usage, hookimpl
from aipass.dispatch.driver import Driver, Exit, tail

if TYPE_CHECKING:
    from pathlib import Path

#: Neither updates nor shared conversations; the rest is the user's own configuration.
QUIET = {"autoupdate": False, "share": "disabled"}
OVERLOAD = frozenset((429, 500, 502, 503, 529))
LOST = "Session not found"
#: What it says, and goes on without, where it may not do something.
REFUSED = "permission requested:"


class OpencodeDriver:
    """Runs `opencode run --format json` and believes a last step that stopped by itself only."""

    name = "opencode"
    program = "opencode"

    def command(self, job: Job) -> Command:
        """Prompt on stdin, JSON lines on stdout; nothing is asked. A title spares it a call of the model for one."""
        model = ("-m", job.settings.model) if job.settings.model else ()
        resume = ("-s", job.session) if job.session else ("--title", f"aipass {job.agent} {job.dispatch}")
        return Command(
            argv=(
                *("opencode", "run", "--format", "json"),
                *(("--auto",) if job.fenced else ()),
                *model,
                *resume,
                *job.settings.args,
            ),
            env={
                "XDG_DATA_HOME": str(job.state / "data"),
                "XDG_CONFIG_HOME": str(job.state / "config"),
                "XDG_STATE_HOME": str(job.state / "state"),
                "OPENCODE_DISABLE_AUTOUPDATE": "1",
                "OPENCODE_CONFIG_CONTENT": json.dumps(QUIET),
            },
            shares=(
                Share("data/opencode/auth.json", "~/.local/share/opencode/auth.json", writable=True),
                *(
                    Share(
                        f"config/opencode/{name}",
                        f"~/.config/opencode/{name}",
                        copied=name.endswith(("json", "jsonc")),
                    )
                    for name in ("opencode.json", "opencode.jsonc", "AGENTS.md", "agent", "command")
                ),
            ),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """There is no one result record: steps are summed, and the last one says how it ended."""
        text, steps, error = "", [], None
        for record in records(end.stdout):
            part = record.get("part") or {}
            match record.get("type"):
                case "text":
                    text = str(part.get("text") or "")
                case "step_finish":
                    steps.append(part)
                case "error":
                    error = record.get("error") or {}
        session, usage = self.session(end.stdout), _usage(steps)
        last = tail(end.stderr)
        if error is not None:
            data = error.get("data") or {}
            state = "overload" if data.get("statusCode") in OVERLOAD else "failed"
            reason = str(data.get("message") or error.get("name") or "it reported an error")
            return Outcome(state, text, reason=reason[:400], usage=usage, session=session)
        if job.session and LOST in last:
            return Outcome("overload", reason="its conversation is lost, and it starts afresh", session="")
        if REFUSED in last:
            return Outcome("blocked", text, reason=last, usage=usage, session=session)
        if end.code == 0 and steps and steps[-1].get("reason") == "stop":
            return Outcome("succeeded", text, usage=usage, session=session)
        reason = no_result(end.code, end.signal, last)
        return Outcome("failed", text, reason=reason, usage=usage, session=session)

    def session(self, stdout: Path) -> str | None:
        """Every record names the conversation."""
        return next((str(r["sessionID"]) for r in records(stdout) if r.get("sessionID")), None)


def _usage(steps: list[dict[str, Any]]) -> Usage | None:
    if not steps:
        return None
    tokens = [step.get("tokens") or {} for step in steps]
    return Usage(
        sum(int(t.get("input") or 0) for t in tokens),
        sum(int(t.get("output") or 0) for t in tokens),
        sum(float(step.get("cost") or 0) for step in steps),
    )


@hookimpl
def register_drivers() -> list[Driver]:
    """The driver for opencode."""
    return [OpencodeDriver()]
