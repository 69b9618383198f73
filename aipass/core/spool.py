"""The spool source: reads requests from files. The folder of a file identifies its sender, never its content."""

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


#: Requests that are read before they go to the engine. Each can have megabytes, and `tell` blocks while the engine is
#: behind, so that not all of them are in memory together.
AT_ONCE = 20
MOST_KNOWN = 2000


class Spool:
    """Watches the spool and emits each request as a fact. After a restart it lists all files again; the ledger removes duplicates."""

    name = "spool"

    def __init__(self, folder: Path, fields: Callable[[], Mapping[str, Fields]]) -> None:
        """`fields` returns the request verbs and the fields of each."""
        self._folder, self._fields = folder, fields
        self._tell: Callable[[list[Fact]], None] | None = None
        self._watched: Watched | None = None
        #: The files that were read last, by path: inode and ctime. They identify a file better than its name, which an
        #: agent can use again.
        self._known: dict[str, tuple[int, int]] = {}

    def start(self, tell: Callable[[list[Fact]], None]) -> None:
        """Begin to watch the spool, and pass requests to `tell` from the thread of the watcher."""
        self._tell = tell
        # A run can create any folders below its own. No request is in them, and to watch them could use up the kernel's limit.
        self._watched = Watched(WatchContext(root=str(self._folder), tell=self._take, depth=1))
        self._watched.start()

    def stop(self) -> None:
        """Stop watching. Does nothing before `start`."""
        if self._watched is not None:
            self._watched.stop()

    def is_settled(self) -> bool:
        """Whether the requests that existed at the start have been emitted."""
        return self._watched is not None and self._watched.emitter.settled.is_set()

    def _take(self, seen: list[Observation]) -> None:
        paths: list[str] = []
        for one in seen:
            if isinstance(one, Listing):
                # Requests that were made while no engine ran, in the order of their ids, which is that of time.
                paths += sorted(entry.path for entry in one.entries if entry.complete)
            elif isinstance(one, Moved) and not one.folder:
                paths.append(one.new)
            elif isinstance(one, Seen) and one.complete:
                paths.append(one.path)
        # People first: agents can leave many requests, and a person must not wait behind them.
        paths = list(dict.fromkeys(sorted(paths, key=lambda path: not path.startswith(f"{HUMAN_SPOOL}/"))))
        for at in range(0, len(paths), AT_ONCE):
            facts = [fact for path in paths[at : at + AT_ONCE] if (fact := self._read(path))]
            if facts:
                assert self._tell is not None
                self._tell(facts)

    def _read(self, path: str) -> Fact | None:
        """The fact for a file: a request, or its rejection. None for a file that is still being written, or is gone."""
        folder, _, name = path.rpartition("/")
        if name.startswith(".") or name.endswith(".tmp") or folder == NEWS_SPOOL:
            return None
        run = RUN_FOLDER.fullmatch(folder)
        by = int(run[1]) if run else None
        stem = name.removesuffix(".json")
        try:
            if run is None and folder != HUMAN_SPOOL:
                raise ValueError("a request must be directly in `human/` or in the folder of a run")
            if not name.endswith(".json") or not requests.REQUEST_ID.fullmatch(stem):
                raise ValueError("a request's file is named `r-<letters and digits>.json`")
            most = requests.MAX_REQUEST_BYTES if run is None else requests.MAX_RUN_BYTES
            with held.open_regular(self._folder / path) as file:
                found = os.fstat(file.fileno())
                if self._known.get(path) == (found.st_ino, found.st_ctime_ns):
                    return None  # a second observation of the same file: created, then closed
                self._known[path] = found.st_ino, found.st_ctime_ns
                if len(self._known) > MOST_KNOWN:
                    del self._known[next(iter(self._known))]
                if found.st_nlink > 1:
                    raise ValueError(
                        "it has several names (hard links); write each request as a file of its own"
                    )
                # One byte more than allowed shows that the file is too large, without reading the rest of it.
                data = file.read(most + 1)
            if len(data) > most:
                raise ValueError(
                    f"larger than {most / 1_000_000:g} MB; put large input into the inbox as a file"
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
