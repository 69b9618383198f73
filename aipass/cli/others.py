"""Verbs of installed packages: the entry point group `aipass.commands`, looked at only for a verb that is none of ours, and for the list."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

import click

from aipass.errors import PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "aipass.commands"


def has(verb: str) -> bool:
    """Whether a package offers this verb."""
    return _point(verb) is not None


def command(verb: str) -> click.Command | None:
    """The verb of a package; None where none offers it.

    Raises PluginError where it cannot be used: its code lies where agents may write, cannot be imported, or is no command of click.
    """
    point = _point(verb)
    if point is None:
        return None
    from aipass.features.ownership import guarded
    from aipass.workspace.layout import root_or_here

    where = f"the verb `{verb}` ({point.value}{f', package {point.dist.name}' if point.dist else ''})"
    root = str(root_or_here())
    guarded.leave_out(root)
    if (place := guarded.code_of_agents(point.module, root)) is not None:
        raise PluginError(
            f"{where}: its code lies in {place}, where agents may write, and is not run; install it as a copy (without `-e`) outside the repository"
        )
    try:
        found = point.load()
    except Exception as exc:
        raise PluginError(f"{where} cannot be imported: {type(exc).__name__}: {exc}") from exc
    if not isinstance(found, click.Command):
        raise PluginError(f"{where} is no click command: {found!r}")
    return found


def shown() -> list[tuple[str, str]]:
    """The verbs of packages, each with its package; none is loaded."""
    points = importlib.metadata.entry_points(group=GROUP)
    return sorted((one.name, f"Of the package {one.dist.name if one.dist else '?'}.") for one in points)


def _point(verb: str) -> EntryPoint | None:
    return next(iter(importlib.metadata.entry_points(group=GROUP, name=verb)), None)
