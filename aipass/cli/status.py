"""`aipass status`: the engine, its agents, the queue, and whatever a person should know."""

from __future__ import annotations

import json
import os
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aipass.config.quick import agents, in_force, raw
from aipass.errors import AipassError, ConfigError
from aipass.event import iso, one_line, plain
from aipass.features.messages.cli.questions import state_of
from aipass.features.ownership import layers as ground
from aipass.files import filesystems
from aipass.terminal.output import clock, json_option, lines_of, print_json, table, when_iso
from aipass.text.units import count
from aipass.workspace import engine_lock
from aipass.workspace.layout import REJECTED, find_root

if TYPE_CHECKING:
    from aipass.config.model import Config
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout

STATES = ("queued", "running", "succeeded", "failed", "cancelled", "blocked")
NOTICES_SHOWN = 3
LONG_NAME = 200
#: Of more nobody needs to know how many.
MOST_COUNTED = 10_000


@click.command("status")
@json_option
def command(as_json: bool) -> None:
    """Show the engine, the agents and the queue of this repository."""
    layout = find_root()
    found = gather(layout)
    lines = found.pop("lines", ())
    if as_json:
        print_json(found)
    else:
        _show(found)
        for line in lines:
            click.echo(line)


def gather(layout: Layout) -> dict[str, Any]:
    """The status as `--json` prints it."""
    from aipass.ledger import Ledger

    running = engine_lock.holder(layout)
    known, broken = in_force(layout), None
    try:
        raw(layout)
        configured = known or agents(layout)
    except ConfigError as exc:
        configured, broken = known or {}, str(exc)
    ledger = Ledger.read(layout.ledger) if layout.ledger.exists() else None
    per_agent = {(row[0], row[1]): row[2] for row in ledger.all("count_agents")} if ledger else {}
    counts = {row[0]: row[1] for row in ledger.all("count_states")} if ledger else {}
    found: dict[str, Any] = {
        "engine": {
            "running": running is not None,
            "pid": running.pid if running else None,
            "version": running.version if running else None,
            "started": iso(running.started) if running else None,
        },
        "layers": ground.described(_sandbox(layout)),
        "agents": [
            {
                "name": name,
                "driver": settings.get("driver"),
                "running": per_agent.get((name, "running"), 0),
                "queued": per_agent.get((name, "queued"), 0),
            }
            for name, settings in configured.items()
        ],
        "counts": {state: counts.get(state, 0) for state in STATES},
        #: The kind of file system, where others may write unseen.
        "shared": filesystems.shared_by(layout.root),
        "plans": [],
        "leases": [],
        "prs": [],
        "testing": None,
        "questions": [],
        "unread": 0,
        "pauses": [],
        "attention": [],
        "notices": [],
    }
    if ledger is not None:
        _add_ledger(found, ledger)
        _add_plugins(found, layout, ledger)
        ledger.close()
    _add_git(found, layout)
    if number := _rejected(layout):
        found["attention"].append(
            f"{count(number, 'file')} in inbox/ cannot be used; `*.rejected.json` beside each says why and what to do"
        )
    if broken is not None and not any(
        "is not valid, the old one is in force" in text for text in found["attention"]
    ):
        found["attention"].append(f"aipass.toml cannot be used: {broken}")
    return found


def _add_plugins(found: dict[str, Any], layout: Layout, ledger: Ledger) -> None:
    """What features of plugins have to say; one that fails says that."""
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
        found["attention"].append(f"what plugins have to say cannot be asked: {exc}")
        return
    for name, (gather, show) in parts.items():
        try:
            found["plugins"][name] = gather(ledger)
            found["lines"] += map(one_line, show(found["plugins"][name]))
        except Exception as exc:  # noqa: BLE001 - a third party's code; told, and the rest is shown
            found["attention"].append(f"plugin `{name}` cannot say how it is: {type(exc).__name__}: {exc}")


def _sandbox(layout: Layout) -> Config | None:
    """The configuration, where it is valid; what is wrong with it is said elsewhere."""
    from aipass.config import reading

    try:
        return reading.load(layout.config)
    except ConfigError:
        return None


def _rejected(layout: Layout) -> int:
    """How many files of the inbox have a note beside them that says why they are not taken."""
    folders = islice(os.walk(layout.inbox), MOST_COUNTED)
    found = (Path(folder, name) for folder, _, names in folders for name in names if name.endswith(REJECTED))
    notes = islice(found, MOST_COUNTED)
    # A name that was too long for the note's is cut in it.
    return sum(
        1 for note in notes if os.path.lexists(str(note).removesuffix(REJECTED)) or len(note.name) > LONG_NAME
    )


def _add_git(found: dict[str, Any], layout: Layout) -> None:
    """Who builds or merges, and what waits to be merged."""
    from aipass.features.git import merge_checks as testing
    from aipass.features.git.lease import Lease
    from aipass.features.git.pr_records import Records
    from aipass.git import hooks

    try:
        shared = hooks.common(layout.root)
    except ConfigError:
        return  # without git there is neither
    found["leases"] = [
        {"name": "git", "holder": t.holder, "reason": t.reason, "since": iso(t.since), "pid": t.pid}
        for t in Lease(shared).tickets()
    ]
    found["testing"] = testing.in_words(layout) if found["engine"]["running"] else None
    found["prs"] = [{"id": pr.id, "agent": pr.agent, "title": pr.title} for pr in Records(shared).open()]


def _add_ledger(found: dict[str, Any], ledger: Ledger) -> None:
    found["pauses"] = [
        {"kind": row["kind"], "name": row["name"], "reason": row["reason"], "since": iso(row["since"])}
        | {"until": iso(row["until"])}
        for row in ledger.all("pauses")
    ]
    found["questions"] = [
        {
            "id": row["id"],
            "from": row["sender"],
            "to": row["recipient"],
            "dispatch": row["dispatch"],
            "state": state_of(ledger, row),
            "text": row["text"],
        }
        for row in ledger.all("questions", {"all": 0})
    ]
    unread = ledger.one("count_unread", {"recipient": "human"})
    # What is asked is shown by itself.
    asked = sum(1 for row in found["questions"] if row["to"] == "human")
    found["unread"] = max(0, (unread["number"] if unread is not None else 0) - asked)
    found["plans"] = [
        {"id": row["id"], "title": row["title"], "status": row["state"]} for row in ledger.all("open_plans")
    ]
    waiting = json.loads(ledger.meta("config.waiting") or "[]")
    if waiting:
        found["attention"].append(f"aipass.toml changed; waiting for `aipass reload`: {', '.join(waiting)}")
    found["attention"] += json.loads(ledger.meta("config.shared") or "[]")
    if error := ledger.meta("config.error"):
        found["attention"].append(f"aipass.toml is not valid, the old one is in force: {error}")
    if limited := ledger.meta("watch.limited"):
        about = json.loads(limited)
        found["attention"].append(
            f"{about['polled']} folders are polled, not watched ({about['limit']}): {about['remedy']}"
        )
    found["notices"] = [
        {"time": iso(row["time"]), "text": row["text"]}
        for row in ledger.all("open_notices", {"limit": NOTICES_SHOWN})
    ]


def _show(found: dict[str, Any]) -> None:
    engine = found["engine"]
    if engine["running"]:
        click.echo(
            f"engine   {click.style('running', fg='green')}, process {engine['pid']}, version {engine['version']}, since {when_iso(engine['started'])}"
        )
    else:
        click.echo(f"engine   {click.style('not running', fg='yellow')}; `aipass up --detach` starts it")
    layers = found["layers"]
    bare = all(text.startswith(("none", "off")) for text in layers.values())
    click.secho(
        f"layers   fence {layers['fence']}, wall {layers['wall']}"
        + (": agents can write wherever you can" if bare else ""),
        fg="yellow" if bare else None,
    )
    click.echo(
        "counts   "
        + ", ".join(
            f"{number} {state}"
            for state, number in found["counts"].items()
            if number or state in {"queued", "running"}
        )
    )
    if found["shared"]:
        click.echo(
            f"tree     on {found['shared']}: what others write there from another side is seen in inbox/ within seconds, elsewhere "
            "at the next `aipass up`"
        )
    for plan in found["plans"]:
        click.echo(
            f"plan     {plan['id']} {plan['title']}: {plan['status']}; `aipass plan status {plan['id']}`"
        )
    for one in found["questions"]:
        text = one_line(one["text"])
        whose = "you" if one["to"] == "human" else one["to"]
        who = f"{one['from']}{' waits and' if one['state'] == 'waiting' else ''} asks {whose}"
        _say("asks", f'{who}: {text}; `aipass answer {one["id"]} "…"`', fg="magenta")
    if found["unread"]:
        click.echo(f"mail     {count(found['unread'], 'unread message')}; `aipass messages`")
    if found["prs"]:
        click.echo(f"prs      {len(found['prs'])} open; `aipass pr list`")
    if found["testing"]:
        click.echo(f"merge    {found['testing']}")
    for place, lease in enumerate(found["leases"]):
        click.echo(
            f"lease    {'waiting' if place else 'held'}: {plain(lease['holder'])}, {plain(lease['reason'])}"
        )
    for pause in found["pauses"]:
        until = (
            f" until {clock(datetime.fromisoformat(pause['until']).timestamp())}" if pause["until"] else ""
        )
        text = f"paused   {pause['kind']} {pause['name']}{until}: {pause['reason']}"
        click.secho(f"{text}; `aipass resume {pause['name']}` ends that", fg="yellow")
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
            _say(f"  {when_iso(notice['time'])}", plain(notice["text"]), indent=4)


def _say(label: str, text: str, *, indent: int = 9, fg: str | None = None) -> None:
    """A line under its label; what does not fit goes on below, indented."""
    first, *more = lines_of(f"{label.ljust(indent - 1)} {text}", "") or [""]
    rest = lines_of(" ".join(more), " " * indent)
    click.secho("\n".join([first, *rest]), fg=fg)
