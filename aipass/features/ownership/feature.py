"""The ownership feature: sends the ownership table to the supervisors, which enforce it, and finds the author of each write."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from aipass.core.run_hook import RunHook
from aipass.features.ownership import guarded, layers, status
from aipass.features.ownership.attribution import SWEEP_S, Attribution
from aipass.features.ownership.unfenced import KINDS, Unfenced
from aipass.sources.observation import Configured
from aipass.text.patterns import Patterns

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.clock import Instant
    from aipass.config.model import Config
    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.ledger import Row

    #: Phases in the form that `Territory.of` reads, and the files that live runs have handed over.
    Reservations = tuple[list[dict[str, Any]], list[dict[str, Any]]]

SWEEP = "sweep"


class OwnershipFeature(RunHook):
    """The feature object that other features get by `core.need(OwnershipFeature)`."""

    name = "ownership"

    def setup(self, core: Core) -> None:
        """Register the run hook, the sweep timer, the view `owner` and the checks of the configuration.

        Needs no other feature.
        """
        self._core, self._ledger, self._layout = core, core.ledger, core.layout
        self.authors = Attribution(core.layout)
        self._unfenced = Unfenced(core, self.table)
        self._reservations: list[Callable[[], Reservations]] = []
        self._tells: list[Callable[[dict[str, Any], list[dict[str, Any]]], None]] = []
        self._authors: list[Callable[[str], int | None]] = []
        self._awaits: list[Callable[[], bool]] = []
        self._written: list[Callable[[Step, int, str], None]] = []
        self._read_in: Step | None = None
        self._owns: tuple[Config, dict[str, Patterns]] | None = None
        core.provide(self)
        core.add_run_hook(self)
        core.add_report(Configured, self._configured)
        core.add_timer(SWEEP, self._sweep)
        core.add_listener(KINDS, self._unfenced.look)
        core.add_view("owner", self.owner)
        core.add_start(start=self._start, ready=self.tell)
        core.add_reconfigure(after=self._reconfigured)
        core.add_config_check(self._check)
        core.add_status("ownership", partial(status.gather, core.layout), status.show)
        core.add_prune(partial(core.remover.prune, core.layout.quarantine / "foreign"))

    # -- for other features --------------------------------------------------------------------------------------------

    def add_reservations(self, reserved: Callable[[], Reservations]) -> None:
        """Add a function that returns further reservations of files, besides `owns`: those of a plan's phases."""
        self._reservations.append(reserved)

    def add_listener(self, tell: Callable[[dict[str, Any], list[dict[str, Any]]], None]) -> None:
        """Add a function that is called after the commit when the ownership table has changed.

        It gets the table, and the files that live runs have handed over.
        """
        self._tells.append(tell)

    def add_authors(self, author: Callable[[str], int | None]) -> None:
        """Add a function that knows the runs behind certain paths, such as answers, which the engine writes for a run."""
        self._authors.append(author)

    def add_written(self, written: Callable[[Step, int, str], None], awaits: Callable[[], bool]) -> None:
        """Add a function that is called with a run and a path when the run has closed the file, perhaps before a filesystem event.

        `awaits` returns whether such calls are needed now; while it does, the journals are read every SWEEP_S seconds.
        """
        self._written.append(written)
        self._awaits.append(awaits)

    def changed(self, step: Step) -> None:
        """Send the new ownership table after this step's commit, once, and before any run starts."""
        step.before_once(self.tell)

    def look_soon(self, step: Step) -> None:
        """Read the journals again in SWEEP_S seconds."""
        self._core.timers.set(SWEEP, step.now.mono + SWEEP_S)

    def author(self, path: str) -> int | None:
        """The run that wrote the present version of a path; None if no known run did."""
        found = self.authors.by(path)
        others = (author(path) for author in self._authors)
        return found if found is not None else next((one for one in others if one is not None), None)

    def read_journals(self, step: Step) -> None:
        """Read the journals, at most once in a step."""
        # A checkout reports thousands of files in one step; all of their lines were in the journals at its start.
        if self._read_in is not step:
            self._read_in = step
            self.authors.refresh()
            if self.authors.has_open():
                self.look_soon(step)

    def owner(self, path: str) -> str | None:
        """The agent whose `owns` matches a path; None if that of no agent, or of several agents, does."""
        config = self._core.config()
        # The compiled patterns are cached until a reload replaces the configuration object.
        if self._owns is None or self._owns[0] is not config:
            own = {name: Patterns(agent.owns) for name, agent in config.agents.items() if agent.owns}
            self._owns = config, own
        owners = [name for name, patterns in self._owns[1].items() if patterns.match(path)]
        return owners[0] if len(owners) == 1 else None

    def reserved(self) -> Reservations:
        """The present reservations of all features."""
        phases: list[dict[str, Any]] = []
        handed: list[dict[str, Any]] = []
        for found in (reserved() for reserved in self._reservations):
            phases += found[0]
            handed += found[1]
        return phases, handed

    def table(self) -> dict[str, Any]:
        """The ownership table, in the form that `Territory.of` reads."""
        nested = [os.fsdecode(row["dir"]) for row in self._ledger.all("nested_roots")]
        inner = guarded.inner(self._ledger)
        return layers.table(self._layout, self._core.config(), self.reserved()[0], nested, inner)

    def tell(self) -> None:
        """Pass the present ownership table to all listeners; called after the commit."""
        self._unfenced.forget()
        table, handed = self.table(), self.reserved()[1]
        for tell in self._tells:
            tell(table, handed)

    # -- runs ------------------------------------------------------------------------------------------------------

    def begins(self, run: int) -> None:
        """Follow the run's journal of writes, before its first process can write."""
        self.authors.follow(run)

    def over(self, step: Step, run: Row, finished: float) -> None:
        """Read the rest of the run's journal, and report the files that it had open until its end."""
        for path in self.authors.ended(run["id"], finished):
            for written in self._written:
                written(step, run["id"], path)

    # -- the engine's life -----------------------------------------------------------------------------------------

    def _start(self, step: Step) -> None:
        """Read the journals that an earlier engine did not read to the end."""
        # The oldest run first, as journals are read in the order of writes: the last one read is the author.
        for row in self._ledger.all("unfollowed"):
            self.authors.follow(row["id"])
            if row["state"] == "ended":
                self.authors.ended(row["id"], row["finished"])
        self.authors.refresh()
        self.look_soon(step)

    def _sweep(self, step: Step, rest: str) -> None:
        del rest
        self.authors.refresh()
        for run, path in self.authors.sweep():
            for written in self._written:
                written(step, run, path)
        if self.authors.has_open() or any(awaits() for awaits in self._awaits):
            self.look_soon(step)

    def _configured(self, step: Step, report: Configured) -> None:
        """Record the repositories inside the tree.

        The programs that their git configuration starts must be guarded as well.
        """
        self._ledger.run("set_meta", {"key": guarded.INNER, "value": json.dumps(report.inner)})
        self.changed(step)

    def _reconfigured(self, now: Instant) -> None:
        del now
        self.tell()

    def _check(self, config: Config) -> None:
        layers.check_outside(self._layout, config)
        layers.check_layers(config)
