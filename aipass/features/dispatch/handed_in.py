"""Moves dropped files from the inbox to the folder of their dispatch, unless they have changed since the event."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from aipass.sources.observation import identity_of
from aipass.supervisor import held
from aipass.workspace.layout import rejection_beside

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout

_CHANGED = "the file has changed since; the new version is a request of its own"


def take(layout: Layout, ledger: Ledger, event: int, dispatch: int, path: str, identity: str | None) -> str:
    """Move a dropped file into its dispatch's folder; returns `kept`, or in words why it was not moved. Idempotent.

    A file that has changed since the event stays: its new version is a request of its own. Raises OSError, for example if the
    disk is full.
    """
    source = layout.root / path
    about = next(
        (
            row["file"]
            for row in ledger.all("senders", {"dispatch": dispatch})
            if row["event"] == event and row["file"]
        ),
        None,
    )
    if about is None:
        return "the file was dropped twice"
    told = json.loads(about)
    target, digest = layout.root / told["path"], told.get("sha256")
    held.make_folders(target.parent, layout.state)
    try:
        with held.above(source) as (folder, name), held.above(target) as (kept, new):
            # After a crash the move may be done already.
            if not held.exists(kept, new):
                if not _is_same(folder, name, identity, digest):
                    return _CHANGED
                held.move(folder, name, kept, new)
                if not _is_same(kept, new, identity, digest):
                    # The file was saved again between the check and the move (race): move it back, unless a newer one
                    # is there.
                    held.try_move(kept, new, folder, name)
                    return _CHANGED
            # An earlier version may have been rejected; the note about it is outdated now.
            held.remove(folder, rejection_beside(source).name)
    except FileNotFoundError:
        return "kept" if target.exists() else "the file was taken away before it could be kept"
    return "kept"


def _is_same(folder: int, name: str, identity: str | None, digest: str | None) -> bool:
    """Whether a file is still the version of the event: by inode, size and time, else by its content."""
    found = identity_of(os.stat(name, dir_fd=folder, follow_symlinks=False))
    if identity is None or identity == str(found):
        return True
    # A program may have set the file's time without changing it. A different size needs no look at the content.
    if digest is None or identity.split(":")[1] != str(found.size):
        return False
    hashed = hashlib.sha256()
    with held.open_regular_in(folder, name) as file:
        while piece := file.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest() == digest
