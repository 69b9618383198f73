"""`aipass init`: make a folder a root. Never overwrites."""

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
# aipass: who works here. `aipass help settings` explains every key.
# Drop a file in inbox/<agent>/ and the agent works on it; the answer comes to outbox/<agent>/.

orchestrator = "human"
"""
AGENT = """
[agents.{name}]
driver = "{driver}"
"""
EXAMPLE = """
# No agent program was found on PATH. Any program is an agent: it gets the prompt on stdin, and what it prints is the
# answer. agent.py is an example that only says what it was asked.
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
    """Make FOLDER (default: this one) a root.

    Writes aipass.toml with an agent for each agent program that is installed, makes the folders, and keeps them out
    of commits through .git/info/exclude. What is there already stays as it is.
    """
    from aipass.config import reading
    from aipass.core import state_folder
    from aipass.features.inbox.feature import make_inboxes
    from aipass.git.exclude import exclude

    try:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder; make it first")
        layout = Layout(folder.resolve(strict=True))
    except FileNotFoundError:
        raise ConfigError("the current folder no longer exists; go to the repository and try again") from None
    drivers = installed()
    found = sorted(drivers)
    if (above := _above(layout)) is not None:
        click.echo(
            f"{above} is a root already; this makes one of its own within it, which agents of the other may not write"
        )
    if layout.config.exists():
        click.echo(f"{CONFIG_NAME} is there already and stays as it is")
    else:
        text = (
            HEAD
            + ("".join(AGENT.format(name=name, driver=name) for name in found) or EXAMPLE)
            + RULE.format(name=found[0] if found else "writer")
        )
        try:
            with layout.config.open("x") as file:
                file.write(text)
            if not found and not (layout.root / "agent.py").exists():
                (layout.root / "agent.py").write_text(EXAMPLE_AGENT)
        except OSError as exc:
            raise ConfigError(
                f"{layout.config}: cannot be written ({exc.strerror}); check the folder's permissions"
            ) from exc
        click.echo(
            f"{CONFIG_NAME} is written, with "
            + (
                f"an agent for each of: {', '.join(found)}"
                if found
                else "an example agent, `writer` (agent.py)"
            )
        )
    settings = reading.load(layout.config)
    state_folder.make(layout)
    make_inboxes(layout, settings)
    excluded = exclude(layout)
    click.echo(
        "git ignores inbox/, outbox/, .aipass/ and .trinity/ here"
        if excluded
        else f"{no_repository(layout.root)}; everything else works"
        if has_repository(layout.root)
        else "no git repository here: everything works but the git verbs"
    )
    for name, driver in drivers.items():
        accounts = getattr(driver, "accounts", ())
        if (
            name in {agent.driver for agent in settings.agents.values()}
            and accounts
            and not signed_in_by(accounts, os.environ)
        ):
            click.echo(f"no sign-in of {name} was found: {how_to_sign_in(driver)}, before `aipass up`")
    click.echo(
        "next: `aipass up --detach`, then drop a file in "
        + ", ".join(f"inbox/{name}/" for name in settings.agents)
    )


def _above(layout: Layout) -> Path | None:
    """The root that this one would lie in."""
    return next((folder for folder in layout.root.parents if (folder / CONFIG_NAME).is_file()), None)


def installed() -> dict[str, Driver]:
    """The drivers whose programs are on this machine, by name."""
    from aipass.plugins import Plugins

    plugins = Plugins()
    plugins.load_installed(root_or_here())
    here = programs.of(root_or_here())
    found = {}
    for name, driver in sorted(plugins.drivers().items()):
        program = getattr(driver, "program", None)
        if program and here.find(program):
            found[name] = driver
    return found
