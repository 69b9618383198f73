"""`aipass answer`: answer a question."""

from __future__ import annotations

from pathlib import Path

import click

from aipass.cli.asking import ask
from aipass.cli.send import text_of
from aipass.layout import find_root


@click.command("answer")
@click.argument("question", type=click.IntRange(1, 1 << 60))
@click.argument("text", required=False)
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), help="Read the text from a file; `-` is stdin."
)
def command(question: int, text: str | None, file: Path | None) -> int:
    """Answer QUESTION with TEXT; whoever asked goes on with it."""
    row = ask(find_root(), "answer", question=question, text=text_of(text, file))
    if row is not None:
        click.echo(row["message"])
    return 0
