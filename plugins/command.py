"""The `command` driver: runs any program as an agent. Prompt on stdin, answer on stdout, exit status 0 is success."""

from __future__ import annotations

from aipass import Command, Job, Outcome, hookimpl
from aipass.features.dispatch.driver import Driver, Exit, tail


class CommandDriver:
    """Runs the agent's `command` with its `args` appended."""

    name = "command"
    #: A program has finished a file when it closes it. A model edits one file several times, so its files count at its end.
    handoff = "write"

    def command(self, job: Job) -> Command:
        """Return the configured command line; the prompt is on stdin and in `$AIPASS_PROMPT_FILE`."""
        return Command(argv=(*(job.settings.command or ()), *job.settings.args))

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """Return the outcome by the exit status. The output is the answer, also after a failure."""
        del job
        if end.code == 0:
            return Outcome("succeeded", end.stdout)
        how = f"signal {end.signal}" if end.signal else f"exit status {end.code}"
        last = tail(end.stderr)
        return Outcome("failed", end.stdout, reason=f"it ended with {how}" + (f": {last}" if last else ""))


@hookimpl
def register_drivers() -> list[Driver]:
    """Return the driver for any program."""
    return [CommandDriver()]
