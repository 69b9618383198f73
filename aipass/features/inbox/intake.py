"""A file in the inbox as its event carries it: type, size, hash, and a Markdown file's whole text."""

from __future__ import annotations

import dataclasses
import hashlib
import mimetypes
import os
import stat
from typing import TYPE_CHECKING, Any

from aipass.sources import passing, writers
from aipass.sources.observation import identity_of
from aipass.supervisor import held

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.event import Fact

#: Read as the prompt itself; any other file is handed over by its path.
PROMPT_SUFFIXES = (".md", ".markdown")
# A prompt larger than this is handed over by path as well: it would stand in the ledger with each event.
MAX_PROMPT_BYTES = 1_000_000
_CHUNK = 1 << 20


def is_inbox(path: str | None) -> bool:
    """Whether a path lies in the inbox."""
    return path is not None and path.startswith("inbox/")


def waits_for(path: str) -> str | None:
    """The file of the inbox that was unfinished as long as `path` stood beside it; None where none was."""
    folder, _, name = path.rpartition("/")
    found = passing.control_of(name)
    return None if found is None else f"{folder}/{found}"


def look_into(root: Path, fact: Fact, limit: int) -> Fact:
    """The fact with what its file holds; what cannot be read is said in `detail.problem`. Larger files are not read."""
    assert fact.path is not None
    detail: dict[str, Any] = dict(fact.detail)
    if detail.get("type", "file") != "file" or fact.kind != "file.closed":
        return fact
    for ending in passing.controls():
        if os.path.lexists(root / (fact.path + ending)):
            # A download that has its final name from the start: looked at again when its control file goes.
            detail["control"] = fact.path.rpartition("/")[2] + ending
    detail["mime"] = mimetypes.guess_type(fact.path)[0] or "application/octet-stream"
    try:
        handle = held.open_at(root / fact.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            found = os.fstat(file.fileno())
            detail["size"] = found.st_size
            detail["identity"] = str(identity_of(found))
            if writers.is_written(file.fileno()):
                detail["writing"] = True  # again, or still, by another: its close is told
                return dataclasses.replace(fact, detail=detail)
            if stat.S_ISREG(found.st_mode) and 0 < found.st_size <= limit:
                is_prompt = fact.path.lower().endswith(PROMPT_SUFFIXES) and found.st_size <= MAX_PROMPT_BYTES
                _read(file, detail, is_prompt=is_prompt)
    except FileNotFoundError:
        detail["gone"] = True
    except OSError as exc:
        detail["problem"] = str(exc.strerror)
    return dataclasses.replace(fact, detail=detail)


def _read(file: Any, detail: dict[str, Any], *, is_prompt: bool) -> None:  # noqa: ANN401 - a binary file
    digest, kept = hashlib.sha256(), b""
    left = int(detail["size"])
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        left -= len(chunk)
        digest.update(chunk)
        if is_prompt:
            kept += chunk
    detail["sha256"] = digest.hexdigest()
    if is_prompt:
        try:
            detail["text"] = kept.decode("utf-8-sig")
        except UnicodeDecodeError:
            # No text after all: the agent gets it by path and can see for itself.
            detail["mime"] = "application/octet-stream"
