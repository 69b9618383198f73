"""The verb `aipass plugins`: the list of installed plugins with their hooks and their errors."""

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
    """The configuration of the root; the defaults if it is not valid, because plugins are listed in any case."""
    from aipass.config import model, reading
    from aipass.errors import ConfigError

    try:
        return reading.load(root / CONFIG_NAME)
    except ConfigError:
        return model.Config()


@click.command("plugins")
@json_option
def command(as_json: bool) -> int:
    """List installed plugins with their hooks. Exit status 1 if one could not be loaded."""
    from aipass.plugins import Plugins

    plugins = Plugins()
    root = root_or_here()
    plugins.load_installed(root)
    # Each call validates what the plugins return and moves an unfit plugin to `failed`, as `aipass up` would.
    plugins.drivers()
    plugins.forges()
    with contextlib.suppress(
        PluginError
    ):  # a fault of a rule in aipass.toml; `aipass up` and `reload` report it
        plugins.router(_settings(root))
    found: list[dict[str, Any]] = [
        {"name": name, "origin": plugins.origin[name], "hooks": plugins.uses(name), "error": None}
        for name in plugins.names()
    ]
    # Failed plugins are listed too: otherwise the user would search for a plugin that is installed but missing.
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
    # `aipass up` starts without an unfit plugin; the exit status lets a script notice it.
    return EXIT_FAILED if plugins.failed else 0
