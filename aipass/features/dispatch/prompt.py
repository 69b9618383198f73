"""Composes a dispatch's prompt from the texts of its senders. Pure: no I/O."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aipass.event import printable
from aipass.text.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.ledger import Row


HUMAN = "human"
#: The separator line `NAME also asks:`. With it an agent's text could pass the lines below it off as another sender's
#: (spoofing).
_SPEAKING = re.compile(r"also\s*asks", re.IGNORECASE)
#: How many of the newest refused writes are shown; the complete list is in the run's folder.
REFUSALS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Part:
    """The text of one sender, and the file that came with it: path relative to the root, MIME type, size in bytes."""

    sender: str
    text: str
    file: tuple[str, str, int] | None = None


def compose(parts: Iterable[Part]) -> str:
    """The prompt: the first text unchanged, then each different text under its sender's name; equal texts appear once."""
    said: list[str] = []
    prompt = ""
    for part in parts:
        text = _with_file(part)
        # People are trusted to quote such a line on purpose.
        if part.sender != HUMAN:
            text = _for_itself(text)
        if text in said:
            continue
        said.append(text)
        prompt = text if not prompt else f"{_closed(prompt)}\n---\n\n{part.sender} also asks:\n\n{text}"
    return prompt


def _for_itself(text: str) -> str:
    """An agent's text with each line quoted that looks like the separator of another sender."""
    if _SPEAKING.search(_seen(text)) is None:
        return text
    return "\n".join(f"> {line}" if _SPEAKING.search(_seen(line)) else line for line in text.splitlines())


def _seen(text: str) -> str:
    """The text as a reader sees it, with every kind of space as a plain one."""
    # Invisible characters, and variants that look alike (NFKC), would otherwise hide the separator from the check but
    # not from a model.
    return "".join(
        " " if one.isspace() or unicodedata.category(one) == "Zs" else one
        for one in unicodedata.normalize("NFKC", text)
        if one.isprintable() or one.isspace()
    )


def joined(parts: Iterable[str]) -> str:
    """The parts that are not empty, separated by a Markdown rule; a single part stays unchanged."""
    said = [part for part in parts if part.strip()]
    return said[0] if len(said) == 1 else "\n---\n\n".join(_closed(part) for part in said)


def with_refusals(prompt: str, run: int, refused: str) -> str:
    """The prompt with the writes that the fence refused in the agent's last run.

    `refused`: the content of its `$AIPASS_DENIED`.
    """
    lines = refused.splitlines()[-REFUSALS_SHOWN:]
    if not lines:
        return prompt
    told = "\n".join(lines)
    return f"{_closed(prompt)}\n---\n\nIn your last run ({run}) these writes were refused, because the paths are not yours:\n\n{told}\n"


def part_of(row: Row) -> Part:
    """A sender's row as a part of the prompt; a file whose text is the prompt itself is not named."""
    file = None
    if row["file"]:
        found = json.loads(row["file"])
        if not found["prompt"]:
            file = (found["path"], found["type"], found["size"])
    return Part(row["sender"], row["text"], file)


def _with_file(part: Part) -> str:
    if part.file is None:
        return part.text
    path, kind, size = part.file
    return f"{part.text}\n\nThe file: {printable(path)}\nType: {kind}\nSize: {show_size(size)}\n".lstrip("\n")


def _closed(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
