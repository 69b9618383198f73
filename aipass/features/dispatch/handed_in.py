"""Files that were handed in: kept in the folder of their dispatch, if they are still what was seen."""

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

_CHANGED = "it changed meanwhile; its new version is a request of its own"


def take(layout: Layout, ledger: Ledger, event: int, dispatch: int, path: str, identity: str | None) -> str:
    """Move a handed-in file into its dispatch's folder, where it is kept; returns what became of it.

    A file that changed since it was seen stays: its new version is a request of its own.
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
        return "it was handed in twice"
    told = json.loads(about)
    target, digest = layout.root / told["path"], told.get("sha256")
    held.make_folders(target.parent, layout.state)
    try:
        with held.above(source) as (folder, name), held.above(target) as (kept, new):
            if not held.exists(kept, new):
                if not _is_same(folder, name, identity, digest):
                    return _CHANGED
                held.move(folder, name, kept, new)
                if not _is_same(kept, new, identity, digest):
                    # Saved anew between the look and the move: back it goes, unless a still newer one is there.
                    held.try_move(kept, new, folder, name)
                    return _CHANGED
            held.remove(folder, rejection_beside(source).name)
    except FileNotFoundError:
        return "kept" if target.exists() else "the file was taken away before it could be kept"
    return "kept"


def _is_same(folder: int, name: str, identity: str | None, digest: str | None) -> bool:
    """Whether a file is the version that was seen. Its time may have been set since: then its content says it."""
    found = identity_of(os.stat(name, dir_fd=folder, follow_symlinks=False))
    if identity is None or identity == str(found):
        return True
    if digest is None or identity.split(":")[1] != str(found.size):
        return False
    hashed = hashlib.sha256()
    with held.open_regular_in(folder, name) as file:
        while piece := file.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest() == digest
