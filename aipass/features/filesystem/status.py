"""The part of the tree in `aipass status`: a shared filesystem, and folders that the engine polls."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aipass.files import filesystems

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """Return `shared`: the type of the filesystem if other machines can write to it, else None; and lines of `attention`."""
    # inotify reports only writes of this machine, so on a network filesystem other writes need a scan.
    attention: list[str] = []
    # Only the engine knows which folders it could not watch; it records the number and the remedy.
    if limited := ledger.meta("watch.limited") if ledger else None:
        about = json.loads(limited)
        attention.append(
            f"{about['polled']} folders are polled instead of watched ({about['limit']}): {about['remedy']}"
        )
    return {"shared": filesystems.shared_by(layout.root), "attention": attention}


def show(found: dict[str, Any]) -> list[str]:
    """Return one line if the filesystem is shared, else none."""
    if not found["shared"]:
        return []
    return [
        f"tree     on {found['shared']}: aipass sees changes from other machines in inbox/ within seconds, elsewhere at the next `aipass up`"
    ]
