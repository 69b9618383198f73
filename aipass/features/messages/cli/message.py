"""`aipass message`: say something to an agent, to all, or to the person."""

from __future__ import annotations

from pathlib import Path

import click

from aipass.errors import ConfigError
from aipass.features.messages.mailbox import ALL, HUMAN
from aipass.terminal.asking import ask, check_agent
from aipass.terminal.said import text_of
from aipass.workspace.layout import find_root


@click.command("message")
@click.argument("to", metavar="AGENT|all|human")
@click.argument("text", required=False)
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), help="Read the text from a file; `-` is stdin."
)
@click.option("--subject", help="What it is about.")
@click.option(
    "--reply-to", type=click.IntRange(1, 1 << 60), metavar="ID", help="The message that this answers."
)
@click.option("--attach", multiple=True, metavar="PATH", help="A file that comes with it, by its path.")
def command(
    to: str,
    text: str | None,
    file: Path | None,
    subject: str | None,
    reply_to: int | None,
    attach: tuple[str, ...],
) -> int:
    """Tell AGENT something; prints the message's id.

    It starts nobody (`aipass send` does): a run that lives finds it at once, any other in its next prompt.
    """
    layout = find_root()
    if to not in {ALL, HUMAN}:
        check_agent(layout, to)
    files = []
    for name in attach:
        path = (Path.cwd() / name).resolve()
        if not path.is_file() or not path.is_relative_to(layout.root):
            raise ConfigError(f"--attach {name}: there is no such file in this repository")
        files.append(str(path.relative_to(layout.root)))
    row = ask(
        layout,
        "message",
        to=to,
        text=text_of(text, file),
        subject=subject,
        reply_to=reply_to,
        files=files or None,
    )
    if row is not None:
        click.echo(row["message"])
    return 0
