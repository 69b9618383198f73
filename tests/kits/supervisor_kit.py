"""A supervisor with real processes, without an engine."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager

from patience import PATIENCE, until

from aipass.features.dispatch.supervisors import Supervisors
from aipass.supervisor import process, wire
from aipass.workspace.layout import Layout

WAITS = [0.3, 0.3, 0.1]


class SupervisorHouse:
    """A supervisor of its own, and what it has said."""

    def __init__(self, root):
        self.layout = Layout(root.resolve())
        self.layout.runs.mkdir(parents=True)
        self.said = []
        self.supervisors = Supervisors(self.layout, "test")
        self.supervisors.start(lambda reports: self.said.extend(report.message for report in reports))

    def start(self, run, *argv, agent=None, **more):
        folder = self.layout.run(run)
        folder.mkdir(exist_ok=True)
        (folder / wire.PROMPT).write_text("the prompt")
        env = {"PATH": os.environ["PATH"], "AIPASS_RUN": str(run), "AIPASS_ROOT": str(self.layout.root)}
        message = {
            "run": run,
            "agent": agent or f"a{run}",
            "folder": str(folder),
            "root": str(self.layout.root),
            "argv": list(argv),
            "env": env,
        }
        message |= {
            "cwd": str(self.layout.root),
            "stdin": True,
            "timeout_s": 0,
            "stall_s": 0,
            "linger": False,
            "waits": WAITS,
        }
        self.supervisors.start_run({**message, **more})

    def python(self, run, code, **more):
        self.start(run, sys.executable, "-c", code, **more)

    def wait(self, tell, run):
        return until(
            lambda: next((m for m in self.said if m["tell"] == tell and m.get("run") == run), None),
            lambda: f"`{tell}` of run {run}: {self.said}",
        )

    def output(self, run):
        return (self.layout.run(run) / wire.STDOUT).read_text()

    def pid(self):
        return json.loads((self.layout.state / "supervisor-test.lock").read_text())["pid"]

    def marked(self, run):
        return [
            pid
            for pid in process.table()
            if process.environment(pid).get("AIPASS_RUN") == str(run)
            and process.environment(pid).get("AIPASS_ROOT") == str(self.layout.root)
        ]


@contextmanager
def supervised(root):
    """A supervisor for this root; it ends with the block, and all its runs with it."""
    made = SupervisorHouse(root)
    yield made
    made.supervisors.end()
    made.supervisors.wait_ended(10)
    made.supervisors.stop()
    if made.supervisors._process is not None:
        made.supervisors._process.wait(PATIENCE)
