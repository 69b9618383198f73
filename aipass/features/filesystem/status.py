"""The tree in `aipass status`: a shared filesystem, and folders that are polled."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aipass.files import filesystems

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """`shared`: the type of the filesystem where other machines may write unseen, else None."""
    attention: list[str] = []
    if limited := ledger.meta("watch.limited") if ledger else None:
        about = json.loads(limited)
        attention.append(
            f"{about['polled']} folders are polled, not watched ({about['limit']}): {about['remedy']}"
        )
    return {"shared": filesystems.shared_by(layout.root), "attention": attention}


def show(found: dict[str, Any]) -> list[str]:
    """A line where the filesystem is shared."""
    if not found["shared"]:
        return []
    return [
        f"tree     on {found['shared']}: changes from other machines are seen in inbox/ within seconds, elsewhere at the next `aipass up`"
    ]
