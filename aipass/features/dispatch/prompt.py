"""A dispatch's prompt, composed of what its senders said. Pure."""

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
#: A line that would say whose the words below it are, whatever letters nobody sees stand in it.
_SPEAKING = re.compile(r"also\s*asks", re.IGNORECASE)
#: The newest are told; the rest is in the run's folder.
REFUSALS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Part:
    """What one sender said, and the file that came with it: path relative to the root, type, size."""

    sender: str
    text: str
    file: tuple[str, str, int] | None = None


def compose(parts: Iterable[Part]) -> str:
    """The first text as it is; each different one after it under its sender's name."""
    said: list[str] = []
    prompt = ""
    for part in parts:
        text = _with_file(part)
        if part.sender != HUMAN:
            text = _for_itself(text)
        if text in said:
            continue
        said.append(text)
        prompt = text if not prompt else f"{_closed(prompt)}\n---\n\n{part.sender} also asks:\n\n{text}"
    return prompt


def _for_itself(text: str) -> str:
    """An agent's words, with which it speaks for nobody else."""
    if _SPEAKING.search(_seen(text)) is None:
        return text
    return "\n".join(f"> {line}" if _SPEAKING.search(_seen(line)) else line for line in text.splitlines())


def _seen(text: str) -> str:
    """What a reader sees of the letters, all blanks alike."""
    return "".join(
        " " if one.isspace() or unicodedata.category(one) == "Zs" else one
        for one in unicodedata.normalize("NFKC", text)
        if one.isprintable() or one.isspace()
    )


def joined(parts: Iterable[str]) -> str:
    """What there is of the parts, one below the other."""
    said = [part for part in parts if part.strip()]
    return said[0] if len(said) == 1 else "\n---\n\n".join(_closed(part) for part in said)


def with_refusals(prompt: str, run: int, refused: str) -> str:
    """The prompt, and what the fence refused the agent in its last run; `refused` as `$AIPASS_DENIED` had it."""
    lines = refused.splitlines()[-REFUSALS_SHOWN:]
    if not lines:
        return prompt
    told = "\n".join(lines)
    return f"{_closed(prompt)}\n---\n\nIn your last run ({run}) these writes were refused, because the paths are not yours:\n\n{told}\n"


def part_of(row: Row) -> Part:
    """A sender's row as a part of the prompt."""
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
