"""`aipass note`: keep something in an agent's state file."""

from __future__ import annotations

from typing import Any

import click

from aipass.errors import ConfigError
from aipass.terminal.asking import ask, check_agent
from aipass.workspace.layout import find_root


@click.command("note")
@click.argument("words", nargs=-1, metavar="TEXT | done ID")
@click.option("--todo", "kind", flag_value="todo", help="Something to be done.")
@click.option(
    "--learning", "kind", flag_value="learning", default=True, help="Something learned; the default."
)
@click.option("--observation", "kind", flag_value="observation", help="Something seen.")
@click.option("--doing", "kind", flag_value="doing", help="What it is doing now.")
@click.option("--tag", "tags", multiple=True, help="A word to find it by; may be given again.")
@click.option("--agent", help="Whose note it is; an agent notes for itself.")
def command(words: tuple[str, ...], kind: str, tags: tuple[str, ...], agent: str | None) -> int:
    """Keep TEXT in an agent's state file; `note done ID` takes a todo off its list.

    A text that is too long is cut, and the answer says so.
    """
    layout = find_root()
    if agent is not None:
        check_agent(layout, agent)
    fields: dict[str, Any] = {"do": kind, "agent": agent, "text": " ".join(words)}
    if len(words) == 2 and words[0] == "done" and words[1].isdecimal() and len(words[1]) < 19:
        fields = {"do": "done", "agent": agent, "todo": int(words[1])}
    elif not " ".join(words).strip():
        raise ConfigError(
            'there is nothing to note; write `aipass note --todo "mend the tests"`, or `aipass note done ID`'
        )
    elif tags:
        fields["tags"] = list(tags)
    row = ask(layout, "note", **fields)
    if row is not None:
        click.echo(row["message"])
    return 0
