"""The verb `aipass trinity`: shows, checks and imports the state files of agents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aipass.errors import AipassError
from aipass.event import plain, printable
from aipass.terminal.asking import check_agent
from aipass.terminal.output import json_option, lines_of, print_json
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.config.model import Config
    from aipass.workspace.layout import Layout


@click.group("trinity")
def command() -> None:
    """Manage state files: identity, current work, learnings and observations of each agent."""


@command.command("show")
@click.argument("agent")
@json_option
def show(agent: str, as_json: bool) -> int:
    """Show the state of AGENT."""
    from aipass.config import reading
    from aipass.features.memory.model import FILES

    layout = find_root()
    check_agent(layout, agent)
    folder = _folder(layout, reading.load(layout.config), agent)
    found: dict[str, Any] = {}
    # Validated first: `_print` reads fields without checks of its own.
    for problem in _problems(layout, reading.load(layout.config), agent):
        raise AipassError(f"{problem['file']}:{problem['line']}: {problem['message']}")
    for name in FILES:
        try:
            found[name.removesuffix(".json")] = json.loads((folder / name).read_bytes())
        except FileNotFoundError:
            raise AipassError(f"{folder / name}: does not exist yet; `aipass up` creates it") from None
        except (OSError, ValueError) as exc:
            raise AipassError(
                f"{folder / name}: cannot be read ({exc}); `aipass trinity check` shows details"
            ) from exc
    if as_json:
        print_json(found)
        return 0
    _print(agent, found)
    return 0


@command.command("check")
@click.argument("agents", nargs=-1)
@json_option
def check(agents: tuple[str, ...], as_json: bool) -> int:
    """Validate the state files of AGENTS (default: all); print file, line and field of each fault. Exit status 1 on a fault."""
    from aipass.config import reading

    layout = find_root()
    for name in agents:
        check_agent(layout, name)
    settings = reading.load(layout.config)
    problems = [
        problem
        for agent in agents or tuple(settings.agents)
        for problem in _problems(layout, settings, agent)
    ]
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    elif not problems:
        click.echo("all state files are valid")
    for one in () if as_json else problems:
        where = f"{one['file']}:{one['line']}" + (f" `{one['field']}`" if one["field"] else "")
        click.echo(plain(f"{one['agent']}: {where}: {one['message']}"))
    return 1 if problems else 0


@command.command("import")
@click.argument("folder", metavar="OLD_FOLDER", type=click.Path(path_type=Path))
@click.option("--agent", help="Import into this agent (default: the agent with the same name).")
@click.option(
    "--dry-run", is_flag=True, help="Only print which entries would be imported and which left out."
)
@json_option
def take_over(folder: Path, agent: str | None, dry_run: bool, as_json: bool) -> int:
    """Import the state files of AIPass 2.x.

    OLD_FOLDER contains the files of one agent, or is above those of several. It is not changed. A second import adds no duplicates.
    """
    from aipass.features.memory.cli import old_state

    return old_state.take_over(find_root(), folder, agent, dry_run=dry_run, as_json=as_json)


def _folder(layout: Layout, settings: Config, agent: str) -> Path:
    from aipass.features.memory.model import FOLDER

    return layout.root / settings.home(agent) / FOLDER


def _problems(layout: Layout, settings: Config, agent: str) -> list[dict[str, Any]]:
    """Return the faults of an agent's state files; at most one for each file."""
    from aipass.features.memory.document import MAX_BYTES, FaultError, read
    from aipass.features.memory.model import FILES, PASSPORT, parse
    from aipass.supervisor.held import open_regular

    found = []
    standing = _standing(layout)
    for name in FILES:
        path = _folder(layout, settings, agent) / name
        try:
            # An agent can put a link or a pipe there: a pipe would block, a link would lead to a file of the person.
            with open_regular(path) as file:
                data = file.read(MAX_BYTES + 1)
            # The engine writes the passport from aipass.toml, so its fields need no check here, only its JSON.
            if name == PASSPORT:
                read(data)
            else:
                # Entries that the engine wrote earlier stay valid, even if the limits in aipass.toml were lowered since.
                parse(name, data, settings.state, standing.get((agent, name), b""))
        except FaultError as fault:
            line, field, message = fault.line, fault.field, fault.message
        except FileNotFoundError:
            line, field, message = 1, "", "does not exist yet; `aipass up` creates it"
        except OSError as exc:
            line, field, message = 1, "", f"cannot be read ({exc.strerror}); it must be a regular file"
        else:
            continue
        shown = printable(str(path.relative_to(layout.root)))
        found.append(
            {"agent": agent, "file": shown, "line": line, "field": field or None, "message": message}
        )
    return found


def _standing(layout: Layout) -> dict[tuple[str, str], bytes]:
    """The content that the engine wrote last, by (agent, file)."""
    from aipass.ledger import Ledger

    if not layout.ledger.exists():
        return {}
    ledger = Ledger.read(layout.ledger)
    try:
        return {(row["agent"], row["file"]): bytes(row["body"]) for row in ledger.all("states")}
    finally:
        ledger.close()


def _print(agent: str, found: dict[str, Any]) -> None:
    passport, local = found["passport"], found["local"]
    about = ", ".join(
        plain(str(passport[name])) for name in ("role", "driver", "model") if passport.get(name)
    )
    click.secho(f"{agent}" + (f" ({about})" if about else ""), bold=True)
    if passport.get("purpose"):
        click.echo(f"  {plain(passport['purpose'])}")
    # A file that an agent saved while no engine ran is valid, but may lack the fields that the engine adds.
    now = local.get("now") or {}
    if now.get("dispatch") is not None:
        click.echo(f"  working on dispatch {now['dispatch']}: {plain(str(now.get('task') or ''))}")
    if now.get("doing"):
        click.echo(f"  doing: {plain(now['doing'])}")
    lists = {"todos": local["todos"], "learnings": local["learnings"]}
    for title, entries in (lists | {"observations": found["observations"]["observations"]}).items():
        click.secho(f"{title}", bold=True)
        for entry in entries:
            _entry(entry.get("id"), entry["text"])
        if not entries:
            click.echo("        none")
    click.secho("sessions", bold=True)
    # The engine adds the sessions, and validation does not cover them: a file saved by an agent may have any value here.
    sessions = local.get("sessions")
    sessions = [one for one in sessions if isinstance(one, dict)] if isinstance(sessions, list) else []
    for one in sessions:
        _entry(one.get("dispatch"), f"{one.get('outcome')}: {one.get('summary')}")
    if not sessions:
        click.echo("        none")


def _entry(number: int | None, text: str) -> None:
    """One entry under its number, on as many lines as it needs."""
    first, *more = lines_of(text, " " * 8) or [""]
    click.echo("\n".join([f"  {number or '':>4}  {first.strip()}", *more]))
