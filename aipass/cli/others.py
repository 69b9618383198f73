"""Verbs of installed packages, from the entry point group `aipass.commands`."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

import click

from aipass.errors import PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

# Read only for an unknown verb and for --help: importlib.metadata alone takes 28 of the 60 ms that `aipass send` needs.
GROUP = "aipass.commands"


def has(verb: str) -> bool:
    """Whether a package offers this verb."""
    return _point(verb) is not None


def command(verb: str) -> click.Command | None:
    """Return the click command that a package offers for this verb; None if no package offers it.

    Raises PluginError if the command cannot be used: agents may write its code, its import fails, or it is not a click command.
    """
    point = _point(verb)
    if point is None:
        return None
    # Imported only now, because nearly every call of `aipass` is for one of our own verbs.
    from aipass.features.ownership import guarded
    from aipass.workspace.layout import root_or_here

    where = f"the verb `{verb}` ({point.value}{f', package {point.dist.name}' if point.dist else ''})"
    root = str(root_or_here())
    # Before the import: a module that an agent wrote would otherwise run with the rights of the person.
    guarded.leave_out(root)
    if (place := guarded.code_of_agents(point.module, root)) is not None:
        raise PluginError(
            f"{where}: agents may write its code in {place}, so it is not run; install it as a copy (without `-e`) outside the repository"
        )
    try:
        found = point.load()
    except Exception as exc:  # a third party's module may raise anything while it is imported
        raise PluginError(f"{where} cannot be imported: {type(exc).__name__}: {exc}") from exc
    if not isinstance(found, click.Command):
        raise PluginError(f"{where} is not a click command: {found!r}")
    return found


def shown() -> list[tuple[str, str]]:
    """Return (verb, text with the name of its package), sorted. Loads no package: --help must not run foreign code."""
    points = importlib.metadata.entry_points(group=GROUP)
    return sorted((one.name, f"From the package {one.dist.name if one.dist else '?'}.") for one in points)


def _point(verb: str) -> EntryPoint | None:
    return next(iter(importlib.metadata.entry_points(group=GROUP, name=verb)), None)
