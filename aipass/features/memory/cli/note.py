"""The verb `aipass note`: adds an entry to an agent's state file."""

from __future__ import annotations

from typing import Any

import click

from aipass.errors import ConfigError
from aipass.terminal.asking import ask, check_agent
from aipass.workspace.layout import find_root


@click.command("note")
@click.argument("words", nargs=-1, metavar="TEXT | done ID")
@click.option("--todo", "kind", flag_value="todo", help="Add TEXT as a todo.")
@click.option(
    "--learning", "kind", flag_value="learning", default=True, help="Add TEXT as a learning (default)."
)
@click.option("--observation", "kind", flag_value="observation", help="Add TEXT as an observation.")
@click.option("--doing", "kind", flag_value="doing", help="Set TEXT as the current activity.")
@click.option("--tag", "tags", multiple=True, help="Add a tag for the search; repeatable.")
@click.option("--agent", help="Add the note to this agent; an agent can note only for itself.")
def command(words: tuple[str, ...], kind: str, tags: tuple[str, ...], agent: str | None) -> int:
    """Add TEXT to an agent's state file; `note done ID` removes a todo from its list.

    A text that is too long is cut, and the reply reports that.
    """
    layout = find_root()
    if agent is not None:
        check_agent(layout, agent)
    fields: dict[str, Any] = {"do": kind, "agent": agent, "text": " ".join(words)}
    # Fewer than 19 digits: a longer number does not fit SQLite's 64 bits, and is a text.
    if len(words) == 2 and words[0] == "done" and words[1].isdecimal() and len(words[1]) < 19:
        fields = {"do": "done", "agent": agent, "todo": int(words[1])}
    elif not " ".join(words).strip():
        raise ConfigError(
            'the note is empty; write `aipass note --todo "fix the tests"`, or `aipass note done ID`'
        )
    elif tags:
        fields["tags"] = list(tags)
    # The engine writes the file: it checks limits, masks secrets and merges with the agent's own edits.
    row = ask(layout, "note", **fields)
    if row is not None:
        click.echo(row["message"])
    return 0
