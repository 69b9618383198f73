"""The `llm` driver: runs any model of the `llm` program, mainly local ones. It answers with text and writes no files."""

from __future__ import annotations

import os

from aipass import Command, Job, Outcome, Share, hookimpl
from aipass.features.dispatch.driver import Driver, Exit, tail


class LlmDriver:
    """Runs `llm prompt`; its output is the answer."""

    name = program = "llm"

    def command(self, job: Job) -> Command:
        """Return the command line: prompt on stdin, text on stdout, and no log of llm's own."""
        model = ("-m", job.settings.model) if job.settings.model else ()
        own = os.environ.get("LLM_USER_PATH") or "~/.config/io.datasette.llm"
        return Command(
            argv=("llm", "prompt", "--no-log", *model, *job.settings.args),
            env={"LLM_USER_PATH": str(job.state)},
            shares=tuple(
                Share(name, f"{own}/{name}")
                for name in (
                    "keys.json",
                    "default_model.txt",
                    "aliases.json",
                    "templates",
                    "extra-openai-models.yaml",
                )
            ),
        )

    def outcome(self, job: Job, end: Exit) -> Outcome:
        """Return success for exit status 0 with an answer. An empty answer is a failure."""
        del job
        if end.code == 0 and end.stdout.exists() and end.stdout.stat().st_size:
            return Outcome("succeeded", end.stdout)
        how = f"signal {end.signal}" if end.signal else f"exit status {end.code}"
        last = tail(end.stderr) or "it said nothing"
        return Outcome("failed", end.stdout, reason=f"it ended with {how}: {last}")


@hookimpl
def register_drivers() -> list[Driver]:
    """Return the driver for the `llm` program."""
    return [LlmDriver()]
