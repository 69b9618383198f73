"""The verb `aipass message`: sends a message to an agent, to all agents or to the person."""

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
@click.option("--subject", help="Subject of the message.")
@click.option(
    "--reply-to", type=click.IntRange(1, 1 << 60), metavar="ID", help="The message that this replies to."
)
@click.option("--attach", multiple=True, metavar="PATH", help="Attach a file by its path; repeatable.")
def command(
    to: str,
    text: str | None,
    file: Path | None,
    subject: str | None,
    reply_to: int | None,
    attach: tuple[str, ...],
) -> int:
    """Send TEXT to AGENT; print the id of the message.

    A message starts no agent (`aipass send` does). A live run gets it immediately, every other agent in its next prompt.
    """
    layout = find_root()
    if to not in {ALL, HUMAN}:
        check_agent(layout, to)
    files = []
    for name in attach:
        # Resolved, so that a link inside the repository cannot name a file outside.
        path = (Path.cwd() / name).resolve()
        if not path.is_file() or not path.is_relative_to(layout.root):
            # Only files of the repository: a path outside may be unreadable for the recipient in its sandbox.
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
