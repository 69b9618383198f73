"""The verb `aipass answer`: answers a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aipass.terminal.asking import ask
from aipass.terminal.said import text_of
from aipass.workspace.layout import find_root


@click.command("answer")
@click.argument("question", type=click.IntRange(1, 1 << 60))
@click.argument("text", required=False)
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), help="Read the text from a file; `-` is stdin."
)
@click.option("--other", is_flag=True, help="Accept a TEXT that is not one of the question's options.")
def command(question: int, text: str | None, file: Path | None, other: bool) -> int:
    """Answer QUESTION with TEXT; the agent that asked continues with the answer.

    If the question has options, TEXT must be one of them.
    """
    # Left out instead of False, so that the request has only the fields that the user gave.
    more: dict[str, Any] = {"other": True} if other else {}
    row = ask(find_root(), "answer", question=question, text=text_of(text, file), **more)
    if row is not None:
        click.echo(row["message"])
    return 0
