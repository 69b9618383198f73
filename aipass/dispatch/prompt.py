"""A dispatch's prompt, composed of what its senders said. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aipass.event import printable
from aipass.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.ledger import Row


HUMAN = "human"
#: The beginning of a line that would say whose the words below it are.
_SPEAKING = re.compile(r"^(?=[^\n]{1,200} also asks:\s*$)", re.MULTILINE)
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
            # It speaks for nobody else.
            text = _SPEAKING.sub("> ", text)
        if text in said:
            continue
        said.append(text)
        prompt = text if not prompt else f"{_closed(prompt)}\n---\n\n{part.sender} also asks:\n\n{text}"
    return prompt


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
