"""Reads a file of the inbox for its event: type, size, hash, and the text of a Markdown file."""

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

#: The text of these files is the prompt; of any other file the agent gets the path.
PROMPT_SUFFIXES = (".md", ".markdown")
# Of a larger Markdown file the agent gets the path as well: the text is stored in the ledger with the event.
MAX_PROMPT_BYTES = 1_000_000
_CHUNK = 1 << 20


def is_inbox(path: str | None) -> bool:
    """Whether a path, relative to the root, is inside the inbox."""
    return path is not None and path.startswith("inbox/")


def waits_for(path: str) -> str | None:
    """The download that was incomplete while its control file `path` existed; None if `path` is no control file."""
    folder, _, name = path.rpartition("/")
    found = passing.control_of(name)
    return None if found is None else f"{folder}/{found}"


def look_into(root: Path, fact: Fact, limit: int) -> Fact:
    """The fact with details of its file; raises nothing.

    `detail` gets `mime`, `size`, `identity`, `sha256` and `text`; or `control` (a download that is not complete), `writing` (another
    process still writes it), `gone`, or `problem` (an error in words). A file larger than `limit` bytes is not read.
    """
    assert fact.path is not None
    detail: dict[str, Any] = dict(fact.detail)
    if detail.get("type", "file") != "file" or fact.kind != "file.closed":
        return fact
    for ending in passing.controls():
        if os.path.lexists(root / (fact.path + ending)):
            # Some downloads have their final name from the start. The file is read again when the control file is removed.
            detail["control"] = fact.path.rpartition("/")[2] + ending
    detail["mime"] = mimetypes.guess_type(fact.path)[0] or "application/octet-stream"
    try:
        # No link is followed: it could lead to any file of the user. The open of a named pipe must not block the engine.
        handle = held.open_at(root / fact.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            # All details come from one descriptor: by name, each could be that of another version of the file.
            found = os.fstat(file.fileno())
            detail["size"] = found.st_size
            detail["identity"] = str(identity_of(found))
            if writers.is_written(file.fileno()):
                # Another process opened it after the close that caused this event; its own close causes the next one.
                detail["writing"] = True
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
            # The file is not UTF-8 text, whatever its name: the agent gets its path.
            detail["mime"] = "application/octet-stream"
