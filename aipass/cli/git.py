"""`aipass git`: hooks that tell the engine what git did."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from aipass.cli.output import json_option, print_json, table
from aipass.errors import EXIT_REFUSED, AipassError
from aipass.git import hooks
from aipass.layout import find_root

if TYPE_CHECKING:
    from aipass.git.hooks import Hook

#: What each state means to its reader.
WORDS = {
    "installed": "installed",
    "missing": "not installed",
    "other": "not installed; a hook of yours stands there",
    "changed": "edited by somebody; `aipass git install` mends it",
}


@click.group("git")
def command() -> None:
    """Hooks that tell the engine at once what git did. Without them it sees the same in git's own logs."""


@command.command("install")
def install() -> int:
    """Write the hooks. What stood there runs as before, with the same arguments and stdin, and comes back with `uninstall`."""
    if (reason := _refusal("install")) is not None:
        click.echo(reason, err=True)
        return EXIT_REFUSED
    layout = find_root()
    _show(hooks.install(layout.root, layout.spool))
    return 0


@command.command("uninstall")
def uninstall() -> int:
    """Take the hooks away again; what stood there before comes back byte for byte."""
    if (reason := _refusal("uninstall")) is not None:
        click.echo(reason, err=True)
        return EXIT_REFUSED
    left = hooks.uninstall(find_root().root)
    _show(left)
    if any(hook.state == "installed" for hook in left):
        click.echo("other roots of this repository still want them")
    if kept := [hook for hook in left if hook.chained and hook.state == "other"]:
        names = ", ".join(hook.path.name + hooks.ASIDE for hook in kept)
        raise AipassError(
            f"another hook had taken the place of ours and stays; what stood there before is kept as {names}"
        )
    return 0


@command.command("status")
@json_option
def status(as_json: bool) -> None:
    """Show each hook."""
    found = hooks.status(find_root().root)
    if as_json:
        print_json(
            [{"name": h.name, "path": str(h.path), "state": h.state, "chained": h.chained} for h in found]
        )
    else:
        _show(found)


def _refusal(verb: str) -> str | None:
    """Hooks run in people's shells: no agent writes them."""
    agent = os.environ.get("AIPASS_AGENT")
    return None if agent is None else f"`git {verb}` is for people, and `{agent}` is an agent"


def _show(found: list[Hook]) -> None:
    click.echo(f"hooks in {found[0].path.parent}")
    table(
        ("HOOK", "STATE"),
        ((h.name, WORDS[h.state] + (", calls the one of before" if h.chained else "")) for h in found),
        flexible=1,
    )
