"""The `opencode` driver: runs opencode headless, with the user's sign-in."""

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

#: No updates during a run, and no conversations on a public server; the rest is the user's configuration.
QUIET = {"autoupdate": False, "share": "disabled"}
NEEDS = {"dependencies": {"@opencode-ai/plugin": "*"}}
LIMITED = re.compile(r"rate limit|usage limit|too many requests|quota exceeded", re.IGNORECASE)
UNKNOWN_SESSION = "Session not found"
#: Its text for a refused permission; it then continues without that.
REFUSED = "permission requested:"
#: After this many retries of a model server, or a longer wait, our plugin ends the run: opencode itself retries without end,
#: and reports nothing.
TRIES, PATIENCE_MS = 3, 60_000
#: Our opencode plugin: asks before a file is written, passes on new messages, and ends a run that only waits for a server.
PLUGIN = """import { spawnSync } from "node:child_process"
const run = (hook, told) =>
  spawnSync("/bin/sh", ["-c", hook], { input: JSON.stringify(told), encoding: "utf8", timeout: 10000 }).stdout
export const Aipass = async () => ({
  "tool.execute.before": async (input, output) => {
    if (!["write", "edit", "patch", "multiedit", "apply_patch"].includes(input.tool)) return
    const said = run(PREWRITE, { args: output.args })
    if (said) throw new Error(JSON.parse(said).hookSpecificOutput.permissionDecisionReason)
  },
  "tool.execute.after": async (input, output) => {
    const said = run(MAIL, {})
    if (said) output.output += "\\n\\n" + JSON.parse(said).hookSpecificOutput.additionalContext
  },
  event: async ({ event }) => {
    const status = event.type === "session.status" ? event.properties.status : {}
    if (status.type !== "retry") return
    const wait = status.next - Date.now()
    if (status.attempt < TRIES && wait < PATIENCE) return
    const data = { message: status.message, wait_s: wait / 1000 }
    const record = { type: "error", sessionID: event.properties.sessionID, error: { name: "retry", data } }
    process.stdout.write(JSON.stringify(record) + "\\n", () => process.exit(1))
  },
})
"""


class OpencodeDriver:
    """Runs `opencode run --format json`. Only a last step with the reason `stop` is a success."""

    name = program = "opencode"
    briefed = True
    accounts = ("OPENCODE_API_KEY", "~/.local/share/opencode/auth.json")
    #: It stores a project id there, and computes another one if it cannot.
    habits = (".git/opencode",)

    def command(self, job: Job) -> Command:
        """Return the command line: prompt on stdin, JSON Lines on stdout, no interactive questions."""
        data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
        model = ("-m", job.settings.model) if job.settings.model else ()
        # With a title it needs no extra model call to invent one.
        resume = ("-s", job.session) if job.session else ("--title", f"aipass {job.agent} {job.dispatch}")
        return Command(
            argv=(
                *("opencode", "run", "--format", "json"),
                *(("--auto",) if job.contained else ()),
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
                Share(
                    "config/git", f"{config}/git"
                ),  # git in its shells finds the user's configuration there
                Share("config/opencode/plugin/aipass.js", text=_plugin()),
                # It would download this package before it loads any plugin; ours does not need it.
                Share("config/opencode/node_modules/.aipass", text=""),
                Share("config/opencode/package-lock.json", text=json.dumps({"packages": {"": NEEDS}})),
                Share("config/opencode/package.json", text=json.dumps(NEEDS)),
                Share("data/opencode/auth.json", f"{data}/opencode/auth.json", writable=True),
                *(
                    Share(
                        f"config/opencode/{name}",
                        f"{config}/opencode/{name}",
                        copied=name.endswith(("json", "jsonc")),
                    )
                    for name in ("opencode.json", "opencode.jsonc", "AGENTS.md", "agent", "command")
                ),
            ),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """Read the outcome from the last step, because there is no result record; the usage is the sum of all steps."""
        text, steps, error = "", [], None
        told_of = Records(end.stdout, "sessionID")
        for one in told_of:
            part = inner(one.get("part"))
            match one.get("type"):
                case "text":
                    text = words(part.get("text"))
                case "step_finish":
                    steps.append(part)
                    # An error that a later attempt overcame is none.
                    error = None if part.get("reason") == "stop" else error
                case "error":
                    error = inner(one.get("error"))
        session, usage, last = told_of.session, _usage(steps), tail(end.stderr)
        if error is not None:
            return _failed(error, text, usage, session, said_at(end.stdout))
        if job.session and says(end.stderr, UNKNOWN_SESSION):
            return afresh()
        if says(end.stderr, REFUSED):
            return Outcome("blocked", text, reason=last, usage=usage, session=session)
        if end.code == 0 and steps and steps[-1].get("reason") == "stop":
            asked = question(text)
            return Outcome(
                "blocked" if asked else "succeeded", text, reason=asked, usage=usage, session=session
            )
        reason = no_result(end.code, end.signal, last)
        return Outcome("failed", text, reason=reason, usage=usage, session=session)

    def session(self, stdout: Path) -> str | None:
        """Return the conversation id, which every record has."""
        return session_in(stdout, "sessionID")

    def readable(self, line: str) -> str | None:
        """Return a line of output for people: text, tool uses and errors."""
        found = record(line)
        if found is None:
            return line
        part = inner(found.get("part"))
        match found.get("type"):
            case "text":
                return words(part.get("text"))
            case "tool_use":
                state = inner(part.get("state"))
                error = f"\n! {state.get('error')}" if state.get("status") == "error" else ""
                return shown(part.get("tool"), inner(state.get("input"))) + error
            case "error":
                return f"! {inner(inner(found.get('error')).get('data')).get('message')}"
            case "step_finish" if part.get("reason") == "stop":
                return f"= {inner(part.get('tokens')).get('total')} tokens"
        return None


def _plugin() -> str:
    hooks = {"PREWRITE": json.dumps(prewrite_hook()), "MAIL": json.dumps(mail_hook())}
    named = {**hooks, "TRIES": str(TRIES), "PATIENCE": str(PATIENCE_MS)}
    return "".join(f"const {name} = {value}\n" for name, value in named.items()) + PLUGIN


def _failed(error: dict[str, Any], text: str, usage: Usage | None, session: str | None, at: float) -> Outcome:
    data = inner(error.get("data"))
    status, wait = data.get("statusCode"), amount(data.get("wait_s"))
    reason = (words(data.get("message")) or words(error.get("name")) or "it reported an error")[:400]
    is_long = wait is not None and wait * 1000 >= PATIENCE_MS
    if status == LIMIT or is_long or LIMITED.search(reason):
        resets = reset_of(reason, at) or (at + wait if wait else None)
        return Outcome("limit", text, reason=reason, usage=usage, session=session, resets=resets)
    state = "overload" if status in OVERLOAD or wait is not None else "failed"
    fault = reason if state == "overload" or status in FAULT else None
    return Outcome(state, text, reason=reason, usage=usage, session=session, fault=fault)


def _usage(steps: list[dict[str, Any]]) -> Usage | None:
    if not steps:
        return None
    tokens = [inner(step.get("tokens")) for step in steps]
    costs = [step.get("cost") for step in steps]
    return Usage(
        sum(count(t.get("input")) or 0 for t in tokens),
        sum(count(t.get("output")) or 0 for t in tokens),
        sum(amount(cost) or 0.0 for cost in costs),
    )


@hookimpl
def register_drivers() -> list[Driver]:
    """Return the driver for opencode."""
    return [OpencodeDriver()]
