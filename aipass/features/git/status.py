"""Git's part of `aipass status`: the git lease, the merge that is being tested, and open PRs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aipass.errors import ConfigError
from aipass.event import iso, plain
from aipass.workspace import engine_lock

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """Returns `leases`, `testing` and `prs` as JSON data, read from git's folder without an engine; empty without a repository."""
    from aipass.features.git import merge_checks
    from aipass.features.git.lease import Lease
    from aipass.features.git.pr_summaries import summaries
    from aipass.git import hooks

    del ledger
    try:
        shared = hooks.common(layout.root)
    except ConfigError:
        return {"leases": [], "prs": [], "testing": None}
    return {
        "leases": [
            {"name": "git", "holder": t.holder, "reason": t.reason, "since": iso(t.since), "pid": t.pid}
            for t in Lease(shared).tickets()
        ],
        "prs": summaries(shared),
        # After a crash the note of the last check is still there; without an engine no check is running.
        "testing": merge_checks.in_words(layout) if engine_lock.holder(layout) is not None else None,
    }


def show(found: dict[str, Any]) -> list[str]:
    """The lines of `aipass status`: the number of open PRs, the merge in test, the holder of the lease and the queue behind it."""
    lines = [f"prs      {len(found['prs'])} open; `aipass pr list`"] if found["prs"] else []
    if found["testing"]:
        lines.append(f"merge    {found['testing']}")
    for place, lease in enumerate(found["leases"]):
        state = "waiting" if place else "held"
        lines.append(f"lease    {state}: {plain(lease['holder'])}, {plain(lease['reason'])}")
    return lines
