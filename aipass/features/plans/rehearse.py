"""Rehearsal (dry run) of a plan: a real engine in a scratch repository, with stand-ins that only write the deliverables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass import programs
from aipass.errors import AipassError
from aipass.features.plans import check
from aipass.text.overlap import path_outside

if TYPE_CHECKING:
    from aipass.features.plans.model import Plan

#: The program of a stand-in. The first line of its prompt is the id of its phase.
STAND_IN = """\
import json, os, sys, time
phase = sys.stdin.readline().strip()
for path in json.load(open("rehearsal.json"))[phase]:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    open(path, "w").write(phase)
time.sleep(0.3)
"""
#: Timeout for each phase; a phase of a rehearsal takes about a second.
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The result of a rehearsal. Times are in seconds since the plan's start."""

    status: str
    #: Per phase: id, state, start time, time when it was done.
    phases: tuple[tuple[str, str, float | None, float | None], ...]
    #: The highest number of phases that ran at the same time.
    width: int
    #: The longest chain of phases that wait for each other, first to last.
    critical: tuple[str, ...]
    #: Hand-overs from a phase whose run was still alive: that phase, and the one that started.
    handed: tuple[tuple[str, str], ...]


def deliverables(plan: Plan) -> dict[str, list[str]]:
    """For each phase, example paths that satisfy its `delivers`."""
    found: dict[str, list[str]] = {}
    for phase in plan.phases:
        paths: list[str] = []
        for one in phase.delivers:
            for _ in range(one.least):
                # A path that is not in the list yet, so that there are `least` different files.
                path = path_outside((one.path,), [f"/{_escaped(path)}" for path in paths])
                if path is not None:
                    paths.append(path)
        found[phase.id] = paths
    return found


def _escaped(path: str) -> str:
    return "".join(f"\\{c}" if c in "*?[\\! #" else c for c in path)


def rehearse(plan: Plan) -> Rehearsal:
    """Run the plan in a temporary repository, without its checks, and return what happened. Does not touch the user's tree.

    Raises AipassError where the rehearsal itself fails or takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="aipass-rehearsal-") as folder:
        root = Path(folder).resolve()
        _furnish(root, plan)
        try:
            _aipass(root, "init")
            _aipass(root, "up", "--detach")
            _aipass(root, "plan", "start", plan.id)
            deadline = time.monotonic() + PATIENCE_S * len(plan.phases)
            while (status := json.loads(_aipass(root, "plan", "status", plan.id, "--json")))[
                "status"
            ] == "running":
                if time.monotonic() > deadline:
                    raise AipassError(
                        f"the rehearsal did not end in time; its phases: {json.dumps(status['phases'])}"
                    )
                time.sleep(0.1)
            events = [json.loads(line) for line in _aipass(root, "events", "--json").splitlines()]
        finally:
            _aipass(root, "down", "--kill", check=False)
    return _told(plan, status, events)


def _furnish(root: Path, plan: Plan) -> None:
    programs.run(root, ["git", "init", "-q", str(root)], capture_output=True)
    (root / "stand_in.py").write_text(STAND_IN)
    (root / "rehearsal.json").write_text(json.dumps(deliverables(plan)))
    agents = dict.fromkeys(phase.agent for phase in plan.phases)
    command = json.dumps([sys.executable, "stand_in.py"])
    (root / "aipass.toml").write_text(
        "".join(f'[agents.{name}]\ndriver = "command"\ncommand = {command}\n' for name in agents)
    )
    phases = [
        {
            "id": phase.id,
            "agent": phase.agent,
            "after": list(phase.after),
            "task": phase.id,
            "owns": list(phase.owns),
            "delivers": [{"path": one.path, "least": one.least} for one in phase.delivers],
            "handoff": phase.handoff,
            "settle": "100ms",
        }
        for phase in plan.phases
    ]
    (root / "plans").mkdir()
    whole = {
        "id": plan.id,
        "title": plan.title,
        "phases": [{k: v for k, v in p.items() if v is not None} for p in phases],
    }
    (root / "plans" / f"{plan.id}-rehearsal.json").write_text(json.dumps(whole))


def _aipass(root: Path, *words: str, check: bool = True) -> str:
    # Without these variables, which would send the commands to the user's own repository or engine.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIPASS_", "GIT_"))}
    done = subprocess.run(
        programs.aipass(*words),
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise AipassError(f"the rehearsal failed at `aipass {' '.join(words)}`: {done.stderr or done.stdout}")
    return done.stdout


def _told(plan: Plan, status: dict[str, Any], events: list[dict[str, Any]]) -> Rehearsal:
    moments: dict[tuple[str, str], float] = {}
    start = 0.0
    ended: dict[int, float] = {}
    for event in events:
        when = _seconds(event["time"])
        if event["kind"] == "plan.started":
            start = when
        elif event["kind"].startswith("phase.") and "phase" in event["detail"]:
            moments.setdefault((event["detail"]["phase"], event["kind"].removeprefix("phase.")), when - start)
        elif event["kind"] == "dispatch.finished":
            ended[event["detail"]["dispatch"]] = when - start
    states = {phase["id"]: phase["status"] for phase in status["phases"]}
    phases = tuple(
        (p.id, states[p.id], moments.get((p.id, "started")), moments.get((p.id, "done"))) for p in plan.phases
    )
    changes = sorted(
        [(began, 1) for _, _, began, _ in phases if began is not None]
        + [(over, -1) for _, _, _, over in phases if over is not None]
    )
    width = most = 0
    for _, change in changes:
        width += change
        most = max(most, width)
    dispatch = {phase["id"]: phase["dispatch"] for phase in status["phases"]}
    handed = tuple(
        (before, phase.id)
        for phase in plan.phases
        for before in phase.after
        if moments.get((phase.id, "started"), 0.0) < ended.get(dispatch.get(before) or 0, 0.0)
    )
    return Rehearsal(status["status"], phases, most, critical(plan), handed)


def critical(plan: Plan) -> tuple[str, ...]:
    """The longest chain of phases that wait for each other; of equal ones the first in the plan's order."""
    # Sorted by the number of ancestors, every phase comes after the phases that it waits for.
    before = check.ancestors(plan)
    length: dict[str, tuple[str, ...]] = {}
    for phase in sorted(plan.phases, key=lambda phase: len(before[phase.id])):
        chains = [length[name] for name in phase.after if name in length]
        length[phase.id] = (*max(chains, key=len, default=()), phase.id)
    return max(length.values(), key=len, default=())


def _seconds(time_: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(time_).timestamp()
