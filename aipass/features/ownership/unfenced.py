"""Detection of unauthorized writes without a fence: changes of files that no live run may write, while a run was live.

The kernel reports that a file changed, but not which process did it. A person's `git pull` looks the same as a forbidden write
of an agent, so nothing is restored: the change is reported, and a copy of the new version is kept.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from aipass.event import Fact, printable
from aipass.features.ownership import layers
from aipass.supervisor import held
from aipass.supervisor.fence.territory import Kind, Owner, Territory

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.event import Event

KINDS = frozenset(("file.closed", "file.moved", "file.deleted"))
#: The shortest time between two notices: one checkout changes thousands of files.
QUIET_S = 60.0
#: The size of the largest version that is kept, and the number of versions kept within QUIET_S: copies must not fill
#: the disk.
MAX_KEPT_BYTES, MAX_KEPT = 10_000_000, 100


class Unfenced:
    """Checks changes without a known author against the ownership `table`. Used inside the transaction."""

    def __init__(self, core: Core, table: Callable[[], dict[str, Any]]) -> None:
        self._core, self._layout, self._ledger, self._table = core, core.layout, core.ledger, table
        self._territory: Territory | None = None
        self._told = self._began = float("-inf")
        self._count = 0

    def forget(self) -> None:
        """Drop the cached ownership table, because it has changed."""
        self._territory = None

    def look(self, step: Step, event: Event) -> None:
        """Emit `write.foreign` if no live run was allowed to make this change; with a notice, at most one in QUIET_S."""
        # With a fence the kernel has already refused such a write of an agent.
        if event.by is not None or layers.active(self._core.config()).fence:
            return
        # A move changes two paths. This event stands for the old one; the new one has an event `file.closed` of its own.
        path = event.detail.get("from") if event.kind == "file.moved" else event.path
        if path is None:
            return
        live = self._ledger.all("live_runs")
        if not live:
            return
        if self._territory is None:
            self._territory = Territory.of(self._table())
        owner = self._territory.owner(path)
        if owner.kind in _ANYBODYS or any(_may(owner, run["id"], run["agent"]) for run in live):
            return
        runs = [{"run": run["id"], "agent": run["agent"]} for run in live]
        detail: dict[str, Any] = {
            "owner": " and ".join(owner.agents) or None,
            "reason": owner.why,
            "runs": runs,
        }
        if self._is_keepable(path, step.now.mono):
            detail["kept"] = f".aipass/quarantine/foreign/{event.id}/{path.rpartition('/')[2]}"
            step.effects.append(partial(self._keep, path, detail["kept"]))
        step.facts.append(Fact("write.foreign", "engine", path=path, cause=event.id, detail=detail))
        if step.now.mono - self._told >= QUIET_S:
            self._told = step.now.mono
            names = " or ".join(f"run {run['run']} of {run['agent']}" for run in runs[:5])
            step.notify(
                self._ledger,
                f"{printable(path)} was changed, by you or by {names}, which must not write it: {owner.why}. "
                "Without a fence the author is unknown; `aipass events --kind write.foreign` lists all such changes",
                event.id,
            )

    def _is_keepable(self, path: str, now: float) -> bool:
        if now - self._began >= QUIET_S:
            self._began, self._count = now, 0
        self._count += 1
        try:
            return self._count <= MAX_KEPT and os.lstat(self._layout.root / path).st_size <= MAX_KEPT_BYTES
        except OSError:
            return False  # the file is gone

    def _keep(self, path: str, kept: str) -> None:
        target = self._layout.root / kept
        try:
            data = held.read(self._layout.root / path, MAX_KEPT_BYTES)
            held.make_folders(target.parent, self._layout.state)
            with held.replacing(target) as copy:
                copy.write(data)
        except OSError:
            # The file is gone already, or the disk is full: the copy is only a help, so the engine continues without it.
            held.try_remove_at(target.parent)


#: Kinds of paths whose changes are not suspicious: free for every run, or written by people and the engine.
_ANYBODYS = frozenset((Kind.FREE, Kind.SCRATCH, Kind.NEVER))


def _may(owner: Owner, run: int, agent: str) -> bool:
    return owner.run == run if owner.kind is Kind.PHASE else agent in owner.agents
