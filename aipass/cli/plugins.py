"""`aipass plugins`: what is installed, what it offers, and what could not be loaded."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from aipass.errors import EXIT_FAILED, PluginError
from aipass.terminal.output import json_option, print_json, table
from aipass.workspace.layout import CONFIG_NAME, root_or_here

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.config.model import Config


def _settings(root: Path) -> Config:
    """The configuration here, as far as it can be read: handlers are made for one."""
    from aipass.config import model, reading
    from aipass.errors import ConfigError

    try:
        return reading.load(root / CONFIG_NAME)
    except ConfigError:
        return model.Config()


@click.command("plugins")
@json_option
def command(as_json: bool) -> int:
    """List plugins with their hooks; exit status 1 where one could not be loaded."""
    from aipass.plugins import Plugins

    plugins = Plugins()
    root = root_or_here()
    plugins.load_installed(root)
    plugins.drivers()
    plugins.forges()
    with contextlib.suppress(PluginError):  # a rule of the configuration; `aipass up` and `reload` name it
        plugins.router(_settings(root))
    found: list[dict[str, Any]] = [
        {"name": name, "origin": plugins.origin[name], "hooks": plugins.uses(name), "error": None}
        for name in plugins.names()
    ]
    found += [
        {"name": name, "origin": None, "hooks": [], "error": reason}
        for name, reason in plugins.failed.items()
    ]
    if as_json:
        print_json(found)
    else:
        table(
            ("NAME", "FROM", "HOOKS"),
            (
                (one["name"], one["origin"], ", ".join(one["hooks"]) or f"left out: {one['error']}")
                for one in found
            ),
        )
    return EXIT_FAILED if plugins.failed else 0
