"""The verb `aipass status`: the state of the engine, and the part that each feature adds."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from aipass.errors import AipassError
from aipass.event import iso, one_line, plain
from aipass.terminal.output import json_option, labelled, print_json, table, when_iso
from aipass.workspace import engine_lock
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout

#: The built-in features with a part, `aipass.features.<name>.status`, in the order of their lines.
# The features register the same parts with `Core.add_status`; with this list the verb need not import the whole engine.
PARTS = ("ownership", "dispatch", "filesystem", "plans", "messages", "git", "reload", "inbox")
#: Number of the newest open notices (notifications) that are shown.
NOTICES_SHOWN = 3


@click.command("status")
@json_option
def command(as_json: bool) -> None:
    """Show the engine, the agents and the queue of this repository."""
    layout = find_root()
    found = gather(layout)
    # Taken out before --json: scripts get the data of plugins in `plugins`, not their text.
    lines = found.pop("lines", ())
    if as_json:
        print_json(found)
    else:
        _show(found)
        for line in lines:
            click.echo(line)


def gather(layout: Layout) -> dict[str, Any]:
    """Return the document of `--json`; works without an engine and without a ledger.

    `lines`, only with plugins that have a part, are their lines for the terminal and no part of the document.
    """
    from aipass.ledger import Ledger

    running = engine_lock.holder(layout)
    found: dict[str, Any] = {
        "engine": {
            "running": running is not None,
            "pid": running.pid if running else None,
            "version": running.version if running else None,
            "started": iso(running.started) if running else None,
        },
        "attention": [],
        "notices": [],
    }
    ledger = Ledger.snapshot(layout.ledger) if layout.ledger.exists() else None
    for name in PARTS:
        part = _part(name).gather(layout, ledger)
        found["attention"] += part.pop("attention", ())
        found |= part
    if ledger is not None:
        found["notices"] = [
            {"time": iso(row["time"]), "text": row["text"]}
            for row in ledger.all("open_notices", {"limit": NOTICES_SHOWN})
        ]
        _add_plugins(found, layout, ledger)
        ledger.close()
    return found


def _part(name: str) -> Any:  # noqa: ANN401 - a module with `gather` and `show`
    return import_module(f"aipass.features.{name}.status")


def _add_plugins(found: dict[str, Any], layout: Layout, ledger: Ledger) -> None:
    """Add the parts of features from plugins; a part that fails becomes a line of `attention`."""
    # The engine records whether any plugin has a part: without one the verb need not load the plugins.
    if not ledger.meta("status.parts"):
        return
    from aipass import app
    from aipass.config import reading
    from aipass.plugins import Plugins

    plugins = Plugins()
    plugins.load_installed(layout.root)
    found["plugins"], found["lines"] = {}, []
    try:
        parts = app.assemble(layout, ledger, plugins, reading.load(layout.config)).status
    except AipassError as exc:
        found["attention"].append(f"the status of plugins is unknown: {exc}")
        return
    for name, (gather, show) in parts.items():
        # `assemble` returns the built-in parts as well, and those are already in the document.
        if name in PARTS:
            continue
        try:
            found["plugins"][name] = gather(ledger)
            found["lines"] += map(one_line, show(found["plugins"][name]))
        except Exception as exc:  # noqa: BLE001 - a third party's code; reported, and the other parts are shown
            found["attention"].append(
                f"plugin `{name}` failed to report its status: {type(exc).__name__}: {exc}"
            )


def _show(found: dict[str, Any]) -> None:
    engine = found["engine"]
    if engine["running"]:
        click.echo(
            f"engine   {click.style('running', fg='green')}, process {engine['pid']}, version {engine['version']}, since {when_iso(engine['started'])}"
        )
    else:
        click.echo(f"engine   {click.style('not running', fg='yellow')}; `aipass up --detach` starts it")
    for name in PARTS:
        for line in _part(name).show(found):
            click.echo(line)
    for text in found["attention"]:
        click.secho(f"note     {text}", fg="yellow")
    click.echo()
    table(
        ("AGENT", "DRIVER", "RUNNING", "QUEUED"),
        ((a["name"], a["driver"], a["running"], a["queued"]) for a in found["agents"]),
        flexible=0,
    )
    if found["notices"]:
        click.echo("\nlatest notices")
        for notice in found["notices"]:
            click.echo(labelled(f"  {when_iso(notice['time'])}", plain(notice["text"]), indent=4))
