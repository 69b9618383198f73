"""The verb `aipass recall`: searches the shared memory."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

import click

from aipass.config.quick import raw
from aipass.errors import ConfigError
from aipass.event import plain, printable
from aipass.features.memory.recall import SOURCES, Hit, recall
from aipass.terminal.asking import check_agent, is_agent
from aipass.terminal.output import json_option, lines_of, print_json, when
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aipass.features.memory.index import SemanticIndex
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


@click.command("recall")
@click.argument("words", metavar="QUERY", nargs=-1, required=True)
@click.option("--agent", help="Show only memories of this agent.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    type=click.Choice(SOURCES),
    help="Show only memories of this kind; repeatable.",
)
@click.option(
    "--limit", type=click.IntRange(1, 200), default=10, show_default=True, help="Show at most this number."
)
@json_option
def command(
    words: tuple[str, ...], agent: str | None, sources: tuple[str, ...], limit: int, as_json: bool
) -> int:
    """Search what agents learned, saw, did, wrote and opened as PRs about QUERY; best matches first.

    Every word of QUERY counts: as a whole word, in another form, or as a prefix. Parts of names (`parse_url`) count too.
    """
    from aipass.ledger import Ledger

    layout = find_root()
    if agent is not None and agent != "human":  # the person has memories too, but is no agent in aipass.toml
        check_agent(layout, agent)
    asked = " ".join(words)
    if not asked.strip():
        raise ConfigError("the query is empty; give some words")
    ledger = Ledger.read(layout.ledger)
    # An agent's own memories rank higher for it; a person has none.
    asker = os.environ.get("AIPASS_AGENT") if is_agent() else None
    find = partial(
        recall,
        ledger,
        asked,
        asker=asker,
        agent=agent,
        sources=sources or SOURCES,
        now=time.time(),
        limit=limit,
    )
    # The semantic index is a plugin with a model: it may be missing, damaged or of another version.
    try:
        found = find(meanings=_meanings(layout, ledger))
    except Exception as exc:  # noqa: BLE001 - a third party's code; the search by words works without it
        click.echo(f"the search by meaning failed, results are by words only: {exc}", err=True)
        found = find()
    ledger.close()
    if as_json:
        print_json([hit.as_json() for hit in found])
    elif not found:
        click.echo("no memories found")
    else:
        click.echo("\n\n".join(map(_shown, found)))
    return 0


def _meanings(layout: Layout, ledger: Ledger) -> Sequence[SemanticIndex]:
    """The semantic indexes that aipass.toml configures."""
    # Without a configured model return first: loading the plugins would dominate the time of a search.
    memory, known = raw(layout).get("memory"), ledger.meta("memory.id")
    if known is None or not isinstance(memory, dict) or not memory.get("model"):
        return ()
    from aipass.config import reading
    from aipass.plugins import Plugins

    plugins = Plugins()
    plugins.load_installed(layout.root)
    return plugins.meanings(reading.load(layout.config), layout.meaning(known))


def _shown(hit: Hit) -> str:
    row = hit.row
    where = f", dispatch {row['dispatch']}" if row["dispatch"] is not None else ""
    where += f", {plain(str(printable(row['path'])))}" if row["path"] else ""
    lines = [f"{row['id']}  {row['source']} of {row['agent']} ({when(row['time'])}{where})"]
    # Four lines are enough to recognise a memory; blank lines would waste them.
    text = lines_of("\n".join(line for line in row["text"].splitlines() if line.strip()))
    return "\n".join([*lines, *text[:4], *(["    …"] if len(text) > 4 else [])])
