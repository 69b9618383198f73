"""The part of plans in `aipass status`: plans that are running or paused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """Return `plans`: id, title and state of each open plan; empty without a ledger."""
    del layout
    # Plans that were never started have no row; `aipass plan status` reads their files.
    rows = ledger.all("open_plans") if ledger else ()
    return {"plans": [{"id": row["id"], "title": row["title"], "status": row["state"]} for row in rows]}


def show(found: dict[str, Any]) -> list[str]:
    """Return one line for each plan."""
    return [
        f"plan     {plan['id']} {plan['title']}: {plan['status']}; `aipass plan status {plan['id']}`"
        for plan in found["plans"]
    ]
