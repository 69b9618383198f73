"""The files of the spool after the ledger has recorded them: removed, or moved to quarantine with the reason."""

from __future__ import annotations

import json
import os
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from aipass.core import requests
from aipass.event import printable
from aipass.files.names import fitting
from aipass.supervisor import held
from aipass.workspace.layout import REJECTED, RUN_FOLDER, rejection_beside

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout
    from aipass.workspace.removal import Remover

logger = structlog.get_logger("aipass")

#: Invalid requests of one run that are kept in quarantine.
MOST_SET_ASIDE = 100
#: Entries of an ended run's spool folder that are searched for unread requests. An agent can create millions.
MOST_LOOKED_AT = 2000


class SpoolFiles:
    """Removes or sets aside the files of recorded requests. All methods are idempotent, so that a crash can repeat them."""

    def __init__(self, layout: Layout, ledger: Ledger, remover: Remover) -> None:
        self._layout, self._ledger, self._remover = layout, ledger, remover
        #: By run: the number of invalid requests that were set aside.
        self._set_aside: dict[int, int] = {}

    def consume(self, path: str, run: int | None) -> None:
        """Remove the file of a recorded request, and the folder of its run if that has ended and this was the last one."""
        self._remover.remove(self._layout.spool / path)
        if run is not None and self._is_over(run):
            self.close(run)

    def set_aside(self, path: str, reason: str, event: int) -> None:
        """Move an invalid spool file to `.aipass/quarantine/spool`, with a note that has the reason."""
        source = self._layout.spool / path
        place = self._layout.quarantine / "spool"
        held.make_folders(place, self._layout.state)
        target = place / fitting(f"{event}-{source.name}", REJECTED).removesuffix(REJECTED)
        run = RUN_FOLDER.fullmatch(path.rpartition("/")[0])
        if run is not None:
            number = self._set_aside[int(run[1])] = self._set_aside.get(int(run[1]), 0) + 1
            if number > MOST_SET_ASIDE:
                # Its event has the reason. A run that floods its spool must not fill the disk.
                self._remover.remove(source)
                return
        # The note first: after a crash between the two, the next engine finds the file in the spool and repeats both, and
        # no file is in quarantine without its reason.
        note = json.dumps({"file": printable(path), "reason": reason}, indent=2) + "\n"
        held.write_atomic(rejection_beside(target), note)
        with held.above(source) as (folder, name), held.above(target) as (kept, new):
            held.try_move(folder, name, kept, new)

    def close(self, run: int) -> None:
        """Remove the spool folder of an ended run, unless unread requests are in it; the last one of these calls this again.

        Files whose names are not those of requests are removed with it: half-written ones, and files of the agent.
        """
        place = self._layout.run_spool(run)
        try:
            with held.folder(place) as folder, os.scandir(folder) as entries:
                # An agent that leaves more entries than this hides its own requests; they are lost.
                if any(
                    requests.FILE.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False)
                    for entry in islice(entries, MOST_LOOKED_AT)
                ):
                    return
        except FileNotFoundError:
            return
        except OSError:
            pass  # the agent made it unreadable, so the requests in it cannot be read either
        if not self._remover.remove(place):
            logger.error("a spool folder cannot be removed", path=str(place))

    def tidy(self) -> None:
        """Remove the spool folders of runs that ended while no engine ran."""
        for folder in self._layout.spool.glob("run-*"):
            match = RUN_FOLDER.fullmatch(folder.name)
            if match and self._is_over(int(match[1])):
                self.close(int(match[1]))

    def _is_over(self, run: int) -> bool:
        row = self._ledger.one("run", {"id": run})
        return row is not None and row["state"] == "ended"
