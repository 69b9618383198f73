"""What running plans own and reserve, as the ledger knows it: for the fence, and for whoever asks who owns a path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aipass.features.plans import model
from aipass.features.plans.progress import ACTIVE

if TYPE_CHECKING:
    from aipass.ledger import Ledger


def reserved(ledger: Ledger) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Phases as `Territory.of` reads them, and what was handed over by runs that live on."""
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
    """What the checks of a phase are called among agents: who holds a lock, a cache, a TMPDIR."""
    return f"check.{plan}.{phase}"
