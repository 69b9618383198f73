"""Plans in `aipass status`: those that are not over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """`plans`: number, title and state of each."""
    del layout
    rows = ledger.all("open_plans") if ledger else ()
    return {"plans": [{"id": row["id"], "title": row["title"], "status": row["state"]} for row in rows]}


def show(found: dict[str, Any]) -> list[str]:
    """A line for each."""
    return [
        f"plan     {plan['id']} {plan['title']}: {plan['status']}; `aipass plan status {plan['id']}`"
        for plan in found["plans"]
    ]
