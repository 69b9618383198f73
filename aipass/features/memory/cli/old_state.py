"""The import of state files of AIPass 2.x, for `aipass trinity import`."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aipass.errors import ConfigError, NoEngineError
from aipass.event import iso, one_line, plain, printable
from aipass.features.memory import import_v2 as old
from aipass.features.memory.model import CUT, NOTHING_ADDED
from aipass.terminal.asking import ReplyError, check_agent, known_agents, leave, reply
from aipass.terminal.output import lines_of, print_json
from aipass.workspace import engine_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aipass.workspace.layout import Layout

#: State files of 2.x are much smaller; a larger file is something else, and is read only up to here.
MAX_BYTES = 10_000_000
#: Folders of an old tree that contain copies of state files, or no data of agents.
_PASSED_OVER = frozenset(
    (".git", ".backup", ".archive", ".aipass", "node_modules", "templates", "__pycache__")
)
_TRINITY = ".trinity"
KINDS = ("todo", "learning", "observation", "session")


@dataclass(frozen=True, slots=True)
class Branch:
    """The old state of one agent. `agent`: the configured agent that gets the entries; None if none has that name."""

    folder: Path
    found: old.ImportedState
    agent: str | None


def branches(layout: Layout, folder: Path, named: str | None) -> list[Branch]:
    """Return the state of one agent in `folder`, or of each agent in the tree below it. `named`: the agent that gets it.

    Raises ConfigError if there are no state files, or if `named` is given and there are several agents.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: this folder does not exist")
    places = (
        [folder]
        if _names(folder)
        else [folder / _TRINITY]
        if _names(folder / _TRINITY)
        else list(_below(folder))
    )
    if not places:
        raise ConfigError(
            f"{folder}: no state files found; name a folder with passport.json, local.json or observations.json, or one above it"
        )
    if named is not None and len(places) > 1:
        raise ConfigError(
            f"{folder}: contains the state files of {len(places)} agents; with --agent, name the folder of one agent"
        )
    agents = known_agents(layout)
    return [_branch(place, agents, named) for place in places]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if old.which(name) and (folder / name).is_file())
    except OSError:
        return []


# `os.walk` follows no links to folders, so a link to a folder above cannot make the search endless.
def _below(folder: Path) -> Iterator[Path]:
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _PASSED_OVER)
        if os.path.basename(place) == _TRINITY and _names(Path(place)):
            yield Path(place)


def _branch(folder: Path, agents: dict[str, Any], named: str | None) -> Branch:
    files = {}
    for name in _names(folder):
        with (folder / name).open("rb") as file:
            # The time of the last change dates entries of old formats that have no time of their own.
            files[name] = file.read(MAX_BYTES), os.fstat(file.fileno()).st_mtime
    found = old.read(files)
    home = folder.parent if folder.name == _TRINITY else folder
    # 2.x wrote names of branches in other cases and with `_` for `-`, so names are compared without these differences.
    by_key = {_key(name): name for name in agents}
    known = (by_key.get(_key(name)) for name in (*found.names, home.resolve().name))
    return Branch(folder, found, named or next(filter(None, known), None))


def _key(name: str) -> str:
    return name.casefold().replace("_", "-")


def take_over(layout: Layout, folder: Path, named: str | None, *, dry_run: bool, as_json: bool) -> int:
    """Request a note for each old entry, and print the results. Returns 1 if an entry was refused or a state has no agent, else 0.

    Idempotent: the engine knows entries that it has already. `dry_run`: print only, request nothing.
    """
    if named is not None:
        check_agent(layout, named)
    told = []
    for branch in branches(layout, folder, named):
        one = _shown(branch)
        if branch.agent is not None and not dry_run:
            one |= _asked(layout, branch.agent, branch.found.entries)
        told.append(one)
    if as_json:
        print_json(told)
    else:
        for one in told:
            _print(one, dry_run=dry_run)
    return 1 if any(one["agent"] is None or one["refused"] for one in told) else 0


def _shown(branch: Branch) -> dict[str, Any]:
    found = branch.found
    counts = Counter(entry.kind for entry in found.entries)
    return {
        "folder": printable(str(branch.folder)),
        "agent": branch.agent,
        "names": found.names,
        "role": found.role or None,
        "purpose": found.purpose or None,
        "found": {kind: counts[kind] for kind in KINDS if counts[kind]},
        "taken": 0,
        "known": 0,
        "cut": [],
        "refused": [],
        "left": found.left,
        "waits": 0,
    }


def _asked(layout: Layout, agent: str, entries: list[old.Old]) -> dict[str, Any]:
    # First all requests, then all replies: one wait for each entry would take as long as the engine's steps together.
    names = [
        leave(
            layout,
            "note",
            do=entry.kind,
            agent=agent,
            text=entry.text,
            tags=list(entry.tags) or None,
            added=iso(entry.time),
        )
        for entry in entries
    ]
    done: dict[str, Any] = {"taken": 0, "known": 0, "cut": [], "refused": [], "waits": 0}
    # The requests stay in the spool. Their results are known only after the next start, so this verb cannot report them.
    if engine_lock.holder(layout) is None:
        return done | {"waits": len(names)}
    for name, entry in zip(names, entries, strict=True):
        begin = f"{entry.kind} “{one_line(entry.text)[:60]}”"
        try:
            said = reply(layout, name)["message"]
        except NoEngineError:
            done["waits"] += 1
        except ReplyError as exc:
            done["refused"].append(f"{begin}: {exc}")
        else:
            # The reply has only a text; the words that decide are constants of whoever writes it.
            done["known" if said.endswith(NOTHING_ADDED) else "taken"] += 1
            if CUT in said:
                done["cut"].append(f"{begin}: {said.partition('; ')[2]}")
    return done


def _print(one: dict[str, Any], *, dry_run: bool) -> None:
    found = ", ".join(f"{number} {kind}{'s' if number != 1 else ''}" for kind, number in one["found"].items())
    click.secho(f"{one['folder']} → {one['agent'] or 'no agent'}", bold=True)
    if one["agent"] is None:
        called = one["names"][0] if one["names"] else "it"
        _say(f"no agent in aipass.toml is called {called}: add it, or choose an agent with --agent NAME")
    _say(f"found: {found or 'no entries to import'}")
    if not dry_run and one["agent"] is not None:
        _say(f"imported: {one['taken']}" + (f", already there: {one['known']}" if one["known"] else ""))
    if one["waits"]:
        _say(f"queued until `aipass up`: {one['waits']}")
    for title in ("cut", "refused", "left"):
        for line in one[title]:
            _say(f"{title}: {line}")
    if one["role"] or one["purpose"]:
        _say(f"for aipass.toml, below [agents.{one['agent'] or 'NAME'}]:")
        for name in ("role", "purpose"):
            if one[name]:
                click.echo(f"    {name} = {_toml(one[name])}")


def _say(text: str) -> None:
    click.echo("\n".join(lines_of(plain(text), "  ")))


def _toml(text: str) -> str:
    return json.dumps(plain(text), ensure_ascii=False)
