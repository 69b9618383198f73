"""The graph of a plan's phases as text and as a Mermaid flowchart. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aipass.features.plans.model import Plan


def levels(plan: Plan) -> list[list[str]]:
    """The phases by level (longest chain of phases before them), in the plan's order; without the phases of a cycle."""
    depth: dict[str, int] = {}
    waiting = list(plan.phases)
    known = {phase.id for phase in plan.phases}
    while waiting:
        ready = [
            phase for phase in waiting if all(name in depth or name not in known for name in phase.after)
        ]
        # Only phases of a cycle, or behind one, are left. An invalid plan must be drawable, to show what is wrong.
        if not ready:
            break
        for phase in ready:
            depth[phase.id] = max((depth[name] + 1 for name in phase.after if name in depth), default=0)
        waiting = [phase for phase in waiting if phase.id not in depth]
    found: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for phase in plan.phases:
        if phase.id in depth:
            found[depth[phase.id]].append(phase.id)
    return found


def as_text(plan: Plan, states: Mapping[str, str] | None = None) -> str:
    """One line per phase, in the order of the work. Phases under one number may run in parallel."""
    lines = [f"{plan.id} {plan.title}"]
    for number, names in enumerate(levels(plan), 1):
        for place, name in enumerate(names):
            phase = plan.phase(name)
            state = f" [{states[name]}]" if states and name in states else ""
            after = f"  after {', '.join(phase.after)}" if phase.after else ""
            owns = f"  owns {' '.join(phase.owns)}" if phase.owns else ""
            lines.append(f"{f'{number}.' if not place else '  '} {name} ({phase.agent}){state}{after}{owns}")
    placed = {name for names in levels(plan) for name in names}
    lines += [
        f"?  {phase.id} ({phase.agent})  never runs: part of a cycle, or after one; after {', '.join(phase.after)}"
        for phase in plan.phases
        if phase.id not in placed
    ]
    return "\n".join(lines)


def as_mermaid(plan: Plan, states: Mapping[str, str] | None = None) -> str:
    """The plan as a Mermaid flowchart, with the states of its phases if given."""
    # Own node names `p0`, `p1` and so on, because Mermaid allows few characters in one and has words such as `end`.
    number = {phase.id: f"p{place}" for place, phase in enumerate(plan.phases)}
    lines = ["flowchart LR"]
    for phase in plan.phases:
        state = f"<br/>{states[phase.id]}" if states and phase.id in states else ""
        lines.append(f'  {number[phase.id]}["{phase.id}<br/>{phase.agent}{state}"]')
    for phase in plan.phases:
        lines += [f"  {number[before]} --> {number[phase.id]}" for before in phase.after if before in number]
    return "\n".join(lines)
