"""The verb `aipass init`: sets up a folder as a root. Overwrites no existing file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aipass import programs
from aipass.errors import ConfigError
from aipass.features.dispatch.driver import how_to_sign_in, signed_in_by
from aipass.git.query import has_repository, no_repository
from aipass.workspace.layout import CONFIG_NAME, Layout, root_or_here

if TYPE_CHECKING:
    from aipass.features.dispatch.driver import Driver

HEAD = """\
# Configuration of aipass. `aipass help settings` explains every key.
# Drop a file in inbox/<agent>/ and the agent works on it; its answer is written to outbox/<agent>/.

orchestrator = "human"
"""
AGENT = """
[agents.{name}]
driver = "{driver}"
"""
EXAMPLE = """
# No agent program was found on PATH. Any program can be an agent: it reads the prompt from stdin and prints the answer.
# agent.py is an example that only repeats the prompt.
[agents.writer]
driver  = "command"
command = ["python3", "agent.py"]
"""
EXAMPLE_AGENT = """\
import sys

print("I was asked:", sys.stdin.read().strip())
"""
RULE = """
# A rule: an event starts an agent.
# [[on]]
# name     = "review"
# event    = "file.closed"
# paths    = ["src/**/*.py"]
# dispatch = "{name}"
# task     = "Review {{path}}"
# debounce = "2s"
"""


@click.command("init")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
def command(folder: Path) -> None:
    """Set up FOLDER (default: the current folder) as a root.

    Writes aipass.toml with one agent for each installed agent program, creates the folders, and excludes them from
    commits in .git/info/exclude. Existing files are left unchanged.
    """
    from aipass.config import reading
    from aipass.core import state_folder
    from aipass.features.inbox.feature import make_inboxes
    from aipass.git.exclude import exclude

    try:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: this folder does not exist; create it first")
        layout = Layout(folder.resolve(strict=True))
    except FileNotFoundError:
        raise ConfigError("the current folder no longer exists; go to the repository and try again") from None
    drivers = installed()
    found = sorted(drivers)
    # Allowed, but often a mistake: the user may believe to be in the outer root.
    if (above := _above(layout)) is not None:
        click.echo(
            f"note: {above} is already a root; this folder becomes a separate root inside it, which agents of the outer root must not write"
        )
    if layout.config.exists():
        click.echo(f"{CONFIG_NAME} already exists; left unchanged")
    else:
        text = (
            HEAD
            + ("".join(AGENT.format(name=name, driver=name) for name in found) or EXAMPLE)
            + RULE.format(name=found[0] if found else "writer")
        )
        try:
            # "x": fails instead of overwriting if another process has created the file since the check.
            with layout.config.open("x") as file:
                file.write(text)
            if not found and not (layout.root / "agent.py").exists():
                (layout.root / "agent.py").write_text(EXAMPLE_AGENT)
        except OSError as exc:
            raise ConfigError(
                f"{layout.config}: cannot be written ({exc.strerror}); check the folder's permissions"
            ) from exc
        click.echo(
            f"{CONFIG_NAME} is written with "
            + (
                f"one agent for each of: {', '.join(found)}"
                if found
                else "an example agent, `writer` (agent.py)"
            )
        )
    # Also for a file that already existed: a second `aipass init` repairs missing folders and excludes.
    settings = reading.load(layout.config)
    state_folder.make(layout)
    make_inboxes(layout, settings)
    excluded = exclude(layout)
    click.echo(
        "git ignores inbox/, outbox/, .aipass/ and .trinity/ here"
        if excluded
        else f"{no_repository(layout.root)}; everything else works"
        if has_repository(layout.root)
        else "no git repository here; everything works except the git verbs"
    )
    # Said now, because otherwise the first dispatch would fail minutes later with an error of the agent's program.
    for name, driver in drivers.items():
        accounts = getattr(driver, "accounts", ())
        if (
            name in {agent.driver for agent in settings.agents.values()}
            and accounts
            and not signed_in_by(accounts, os.environ)
        ):
            click.echo(f"no sign-in of {name} was found: {how_to_sign_in(driver)} before `aipass up`")
    click.echo(
        "next: `aipass up --detach`, then drop a file in "
        + ", ".join(f"inbox/{name}/" for name in settings.agents)
    )


def _above(layout: Layout) -> Path | None:
    """The nearest outer root; None if no folder above has an aipass.toml."""
    return next((folder for folder in layout.root.parents if (folder / CONFIG_NAME).is_file()), None)


def installed() -> dict[str, Driver]:
    """Return the drivers whose program is installed here, by name and sorted. Loads all plugins."""
    from aipass.plugins import Plugins

    plugins = Plugins()
    plugins.load_installed(root_or_here())
    # `programs` instead of PATH: a program that agents may write is passed over, here as in a run.
    here = programs.of(root_or_here())
    found = {}
    for name, driver in sorted(plugins.drivers().items()):
        program = getattr(driver, "program", None)
        if program and here.find(program):
            found[name] = driver
    return found
