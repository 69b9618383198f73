"""The verb `aipass owns`: shows which agent may write a path now, and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aipass.errors import AipassError
from aipass.event import plain, printable
from aipass.features.ownership import guarded, layers
from aipass.features.ownership.attribution import holders
from aipass.supervisor.fence import gitfolder
from aipass.supervisor.fence.glob import Globs
from aipass.supervisor.fence.territory import Kind, Owner, Territory
from aipass.terminal.output import json_option, print_json, table
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aipass.config.model import Config
    from aipass.workspace.layout import Layout


@click.command("owns")
@click.argument("paths", metavar="[PATH...]", nargs=-1)
@json_option
def command(paths: tuple[str, ...], as_json: bool) -> None:
    """Show which agent may write PATH now, and why. Without PATH, list owned paths and holds (write locks) of runs.

    A PATH that ends in `/` means a folder.
    """
    from aipass.config import reading

    layout = find_root()
    settings = reading.load(layout.config)
    territory, held = _ground(layout, settings)
    if paths:
        found = [explain(str(layout.root), territory, held, *_relative(layout, path)) for path in paths]
    else:
        found = _all(str(layout.root), settings, territory, held)
    if as_json:
        print_json(found)
        return
    rows = ((plain(str(f["path"])), f["owner"] or "none", f["why"]) for f in found)
    table(("PATH", "OWNER", "WHY"), rows, flexible=2, wraps=True)


def explain(
    root: str, territory: Territory, held: Mapping[str, tuple[int, str]], path: str, folder: bool
) -> dict[str, Any]:
    """Return the object of `--json` for one path, relative to the root. `owner` is None if no single agent may write it."""
    owner = territory.owner(path, folder)
    name, why = _now(owner, held.get(path))
    # After the table: a git folder below the root is refused to every agent, whatever owns its path.
    if gitfolder.around(root, path) is not None:
        name, why = None, gitfolder.WHY
    return {"path": printable(path), "owner": name, "why": why, "plan": owner.plan, "phase": owner.phase}


def _now(owner: Owner, hold: tuple[int, str] | None) -> tuple[str | None, str]:
    # Only in these places can a run take a hold: elsewhere ownership decides, whichever run wrote first.
    holds = {Kind.FREE, Kind.SCRATCH, Kind.AGENTS, Kind.RESERVED}
    if owner.kind in holds and hold is not None and len(owner.agents) != 1:
        return hold[1], f"run {hold[0]} of {hold[1]} holds it: it wrote the file first"
    return (owner.agents[0] if len(owner.agents) == 1 else None), owner.why


def _all(
    root: str, settings: Config, territory: Territory, held: Mapping[str, tuple[int, str]]
) -> list[dict[str, Any]]:
    found = []
    for name, agent in settings.agents.items():
        for pattern in agent.owns or ():
            why = f"`owns` of {name} names it"
            found.append({"path": pattern, "owner": name, "why": why, "plan": None, "phase": None})
    for phase in territory.phases:
        holder = phase.agent if phase.run is not None else None
        why = (
            f"phase {phase.id} of plan {phase.plan} owns it"
            if holder
            else f"plan {phase.plan} reserves it for phase {phase.id}"
        )
        found += [
            {"path": pattern, "owner": holder, "why": why, "plan": phase.plan, "phase": phase.id}
            for pattern in phase.owns.lines
        ]
    return found + [explain(root, territory, held, path, folder=False) for path in sorted(held)]


def _ground(layout: Layout, settings: Config) -> tuple[Territory, dict[str, tuple[int, str]]]:
    from aipass.features.plans.reserved import reserved
    from aipass.ledger import Ledger

    # Before the first `aipass up` only the configuration decides.
    if not layout.ledger.exists():
        return Territory.of(layers.table(layout, settings)), {}
    ledger = Ledger.read(layout.ledger)
    try:
        nested = [os.fsdecode(row["dir"]) for row in ledger.all("nested_roots")]
        phases, handed = reserved(ledger)
        inner = guarded.inner(ledger)
        live = [(row["id"], row["agent"]) for row in ledger.all("live_runs")]
    finally:
        ledger.close()
    # A hand-over to the next phase ends the holds of the run on those paths, but the run's journal still lists them.
    lost = [(one["run"], Globs(one["owns"])) for one in handed]
    held = {
        path: hold
        for path, hold in holders(layout, live).items()
        if not any(run == hold[0] and owns.match(path) for run, owns in lost)
    }
    return Territory.of(layers.table(layout, settings, phases, nested, inner)), held


def _relative(layout: Layout, path: str) -> tuple[str, bool]:
    """(The path relative to the root, whether it is a folder). Raises AipassError if it is outside the root."""
    # Links are resolved, because a write through a link is decided by its target.
    absolute = Path(path) if os.path.isabs(path) else Path.cwd() / path
    real = os.path.realpath(absolute)
    if real != str(layout.root) and not real.startswith(f"{layout.root}/"):
        raise AipassError(
            f"`{path}` is outside the repository {layout.root}; the setting `[sandbox] write` lists what agents may write there"
        )
    relative = os.path.relpath(real, layout.root)
    return relative, path.endswith("/") or os.path.isdir(real)
