"""The spool source: requests as files. Who asks follows from the folder that a file lies in, never from its words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aipass.core import requests
from aipass.event import Fact
from aipass.sources.emitter import WatchContext
from aipass.sources.filesystem import Watched
from aipass.sources.observation import Listing, Moved, Seen
from aipass.supervisor import held
from aipass.workspace.layout import HUMAN_SPOOL, NEWS_SPOOL, RUN_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from aipass.core.requests import Fields
    from aipass.sources.observation import Observation


#: So many are read before they are told; of a large one the engine gets rid first.
AT_ONCE = 20
MOST_KNOWN = 2000


class Spool:
    """Watches the spool; a restart lists it again, and the ledger knows which requests it has seen."""

    name = "spool"

    def __init__(self, folder: Path, fields: Callable[[], Mapping[str, Fields]]) -> None:
        """`fields`: what may be asked for now, and the fields of each verb."""
        self._folder, self._fields = folder, fields
        self._tell: Callable[[list[Fact]], None] | None = None
        self._watched: Watched | None = None
        #: Which files were read last, by path: inode and ctime.
        self._known: dict[str, tuple[int, int]] = {}

    def start(self, tell: Callable[[list[Fact]], None]) -> None:
        """Begin to observe."""
        self._tell = tell
        # A run makes what it likes below its own folder; nothing there is a request.
        self._watched = Watched(WatchContext(root=str(self._folder), tell=self._take, depth=1))
        self._watched.start()

    def stop(self) -> None:
        """End all that `start` began."""
        if self._watched is not None:
            self._watched.stop()

    def is_settled(self) -> bool:
        """Whether what was there at the start has been told."""
        return self._watched is not None and self._watched.emitter.settled.is_set()

    def _take(self, seen: list[Observation]) -> None:
        paths: list[str] = []
        for one in seen:
            if isinstance(one, Listing):
                # What was asked while nobody looked is done in the order of asking.
                paths += sorted(entry.path for entry in one.entries if entry.complete)
            elif isinstance(one, Moved) and not one.folder:
                paths.append(one.new)
            elif isinstance(one, Seen) and one.complete:
                paths.append(one.path)
        # People do not wait behind what agents ask; nor does all that those ask lie in memory at once.
        paths = list(dict.fromkeys(sorted(paths, key=lambda path: not path.startswith(f"{HUMAN_SPOOL}/"))))
        for at in range(0, len(paths), AT_ONCE):
            facts = [fact for path in paths[at : at + AT_ONCE] if (fact := self._read(path))]
            if facts:
                assert self._tell is not None
                self._tell(facts)

    def _read(self, path: str) -> Fact | None:
        """The request in a file; None for what is not one yet (a name with a dot), or is gone."""
        folder, _, name = path.rpartition("/")
        if name.startswith(".") or name.endswith(".tmp") or folder == NEWS_SPOOL:
            return None
        run = RUN_FOLDER.fullmatch(folder)
        by = int(run[1]) if run else None
        stem = name.removesuffix(".json")
        try:
            if run is None and folder != HUMAN_SPOOL:
                raise ValueError("requests lie in `human/` itself, or in the folder of a run")
            if not name.endswith(".json") or not requests.REQUEST_ID.fullmatch(stem):
                raise ValueError("a request's file is named `r-<letters and digits>.json`")
            most = requests.MAX_REQUEST_BYTES if run is None else requests.MAX_RUN_BYTES
            with held.open_regular(self._folder / path) as file:
                found = os.fstat(file.fileno())
                if self._known.get(path) == (found.st_ino, found.st_ctime_ns):
                    return None  # it was made and closed within a moment, and is taken already
                self._known[path] = found.st_ino, found.st_ctime_ns
                if len(self._known) > MOST_KNOWN:
                    del self._known[next(iter(self._known))]
                if found.st_nlink > 1:
                    raise ValueError(
                        "it has several names (hard links); write each request as a file of its own"
                    )
                data = file.read(most + 1)
            if len(data) > most:
                raise ValueError(
                    f"larger than {most / 1_000_000:g} MB; hand large things over as files in the inbox"
                )
            asked = requests.parse(data, self._fields())
            return Fact("request.received", self.name, ref=stem, by=by, detail={**asked, "spool": path})
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as exc:
            reason = str(exc) if isinstance(exc, ValueError) else f"cannot be read: {exc.strerror}"
            return Fact(
                "request.rejected", self.name, ref=stem, by=by, detail={"spool": path, "reason": reason}
            )
