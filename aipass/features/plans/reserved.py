"""The paths that running plans own and reserve, from the ledger: for the fence and for `aipass owns`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aipass.features.plans import model
from aipass.features.plans.progress import ACTIVE

if TYPE_CHECKING:
    from aipass.ledger import Ledger


def reserved(ledger: Ledger) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the phases of open plans for `Territory.of`, and the paths that live runs have handed over.

    A phase without an active run reserves its paths for the plan (`run` is None).
    """
    phases: list[dict[str, Any]] = []
    for row in ledger.all("open_plans"):
        plan = model.taken_over(row["body"], row["file"])
        for phase in ledger.all("phases_of", {"plan": row["id"]}):
            owns = list(plan.phase(phase["id"]).owns)
            run = phase["run"] if phase["state"] in ACTIVE else None
            about = {"plan": row["id"], "id": phase["id"], "agent": phase["agent"], "owns": owns, "run": run}
            phases.append(about)
    handed = []
    for phase in ledger.all("handed_over"):
        if (body := ledger.one("plan", {"id": phase["plan"]})) is not None:
            owns = list(model.taken_over(body["body"], body["file"]).phase(phase["id"]).owns)
            handed.append({"run": phase["run"], "owns": owns})
    return phases, handed


def check_name(plan: str, phase: str) -> str:
    """The name of a phase's checks among agents: the owner of their locks, caches and temporary folders."""
    return f"check.{plan}.{phase}"
