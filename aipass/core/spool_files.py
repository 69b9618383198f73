"""The files of the spool once the ledger has them: removed, or kept aside with the reason."""

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

#: Of one run's unusable requests so many are kept.
MOST_SET_ASIDE = 100
#: Of an ended run's spool folder, while requests in it are still to be read.
MOST_LOOKED_AT = 2000


class SpoolFiles:
    """All of it may be done a second time after a crash."""

    def __init__(self, layout: Layout, ledger: Ledger, remover: Remover) -> None:
        self._layout, self._ledger, self._remover = layout, ledger, remover
        #: How many unusable requests of a run were set aside.
        self._set_aside: dict[int, int] = {}

    def consume(self, path: str, run: int | None) -> None:
        """Remove a request that is recorded."""
        self._remover.remove(self._layout.spool / path)
        if run is not None and self._is_over(run):
            self.close(run)

    def set_aside(self, path: str, reason: str, event: int) -> None:
        """Keep a spool file that cannot be used, with the reason beside it."""
        source = self._layout.spool / path
        place = self._layout.quarantine / "spool"
        held.make_folders(place, self._layout.state)
        target = place / fitting(f"{event}-{source.name}", REJECTED).removesuffix(REJECTED)
        run = RUN_FOLDER.fullmatch(path.rpartition("/")[0])
        if run is not None:
            number = self._set_aside[int(run[1])] = self._set_aside.get(int(run[1]), 0) + 1
            if number > MOST_SET_ASIDE:
                # Its event says what it was; a run that floods its spool fills no disk.
                self._remover.remove(source)
                return
        # The note first: killed in between, the file is still where the next engine finds it, and never without its reason.
        note = json.dumps({"file": printable(path), "reason": reason}, indent=2) + "\n"
        held.write_atomic(rejection_beside(target), note)
        with held.above(source) as (folder, name), held.above(target) as (kept, new):
            held.try_move(folder, name, kept, new)

    def close(self, run: int) -> None:
        """Remove an ended run's spool folder, once all requests in it are consumed: the last that is closes it.

        What is no request by its name never will be one: half a request, or whatever the agent kept there.
        """
        place = self._layout.run_spool(run)
        try:
            with held.folder(place) as folder, os.scandir(folder) as entries:
                # Who leaves more than that besides has hidden the rest himself.
                if any(
                    requests.FILE.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False)
                    for entry in islice(entries, MOST_LOOKED_AT)
                ):
                    return
        except FileNotFoundError:
            return
        except OSError:
            pass  # closed to its owner: what is in it is nobody's request
        if not self._remover.remove(place):
            logger.error("a spool folder cannot be removed", path=str(place))

    def tidy(self) -> None:
        """Remove the spool folders of runs that ended while nobody looked."""
        for folder in self._layout.spool.glob("run-*"):
            match = RUN_FOLDER.fullmatch(folder.name)
            if match and self._is_over(int(match[1])):
                self.close(int(match[1]))

    def _is_over(self, run: int) -> bool:
        row = self._ledger.one("run", {"id": run})
        return row is not None and row["state"] == "ended"
