"""The request verbs `plan` and `deliver`: they validate a request and turn it into actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.action import Reply, Steer
from aipass.core.verbs import Authority, Request, Verb
from aipass.features.plans import progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.action import Action

CONTROLS = ("start", "pause", "resume", "stop")


def control(request: Request) -> Iterable[Action]:
    """Start, pause, resume or stop a plan."""
    do = request.fields["do"]
    if do not in CONTROLS:
        return request.refuse(f"`{do}` is none of {', '.join(CONTROLS)}", 2)
    again = request.fields.get("again") is True
    return [Steer(do, request.fields["id"], request.id, again=again)]


def deliver(request: Request) -> Iterable[Action]:
    """Hand over the phase of the asking run now; refused where deliverables are missing or the run works on no phase."""
    run = request.event.by
    for plan in request.view.plans():
        for phase in plan.phases:
            if run is not None and phase.run == run and phase.state in {"running", "delivered"}:
                if missing := phase.missing():
                    return request.refuse(f"phase {phase.id} has not delivered {', '.join(missing)} yet")
                return [
                    *progress.deliver(plan, phase),
                    Reply(request.id, f"phase {phase.id} of plan {plan.id} is delivered"),
                ]
    return request.refuse("your run does not work on a phase of a plan")


VERBS = (
    Verb(
        "plan",
        control,
        {"do": (str, True), "id": (str, True), "again": (bool, False)},
        Authority.ORCHESTRATOR,
    ),
    Verb("deliver", deliver, {}, Authority.ANYONE),
)
