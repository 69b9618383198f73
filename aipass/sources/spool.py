"""The spool source: requests as files. Who asks follows from the folder that a file lies in, never from its words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass import request
from aipass.event import Fact
from aipass.git import hooks
from aipass.layout import HUMAN_SPOOL, RUN_FOLDER
from aipass.sources.emitter import Ground
from aipass.sources.filesystem import Watched
from aipass.sources.observation import Listing, Moved, Seen
from aipass.supervisor import held

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aipass.sources.observation import Observation


class Spool:
    """Watches the spool; a restart lists it again, and the ledger knows which requests it has seen."""

    name = "spool"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tell: Callable[[list[Fact]], None] | None = None
        self._watched: Watched | None = None

    def start(self, tell: Callable[[list[Fact]], None]) -> None:
        """Begin to observe."""
        self._tell = tell
        # A run makes what it likes below its own folder; nothing there is a request.
        self._watched = Watched(Ground(root=str(self._folder), tell=self._take, depth=1))
        self._watched.start()

    def stop(self) -> None:
        """End all that `start` began."""
        if self._watched is not None:
            self._watched.stop()

    def is_settled(self) -> bool:
        """Whether what was there at the start has been told."""
        return self._watched is not None and self._watched.emitter.settled.is_set()

    def _take(self, seen: list[Observation]) -> None:
        facts: list[Fact] = []
        for one in seen:
            if isinstance(one, Listing):
                # What was asked while nobody looked is done in the order of asking.
                paths = sorted(entry.path for entry in one.entries if entry.complete)
                facts += [fact for path in paths if (fact := self._read(path))]
            elif isinstance(one, Moved) and not one.folder:
                facts += [fact for fact in [self._read(one.new)] if fact]
            elif isinstance(one, Seen) and one.complete:
                facts += [fact for fact in [self._read(one.path)] if fact]
        if facts:
            assert self._tell is not None
            facts.sort(key=lambda fact: fact.by is not None)  # people do not wait behind what agents ask
            self._tell(facts)

    def _read(self, path: str) -> Fact | None:
        """The request in a file; None for what is not one yet (a name with a dot), or is gone."""
        folder, _, name = path.rpartition("/")
        if name.startswith(".") or name.endswith(".tmp") or folder == hooks.SPOOL:
            return None
        run = RUN_FOLDER.fullmatch(folder)
        by = int(run[1]) if run else None
        stem = name.removesuffix(".json")
        try:
            if run is None and folder != HUMAN_SPOOL:
                raise ValueError("requests lie in `human/` itself, or in the folder of a run")
            if not name.endswith(".json") or not request.REQUEST_ID.fullmatch(stem):
                raise ValueError("a request's file is named `r-<letters and digits>.json`")
            try:
                data = held.read(self._folder / path, request.MAX_REQUEST_BYTES)
            except held.TooLargeError as exc:
                raise ValueError(
                    f"larger than {request.MAX_REQUEST_BYTES // 1_000_000} MB; hand large things over as files in the inbox"
                ) from exc
            return Fact(
                "request.received", self.name, ref=stem, by=by, detail={**request.parse(data), "spool": path}
            )
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as exc:
            reason = str(exc) if isinstance(exc, ValueError) else f"cannot be read: {exc.strerror}"
            return Fact(
                "request.rejected", self.name, ref=stem, by=by, detail={"spool": path, "reason": reason}
            )
