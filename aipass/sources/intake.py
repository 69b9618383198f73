"""A file in the inbox as its event carries it: type, size, hash, and a Markdown file's whole text."""

from __future__ import annotations

import dataclasses
import hashlib
import mimetypes
import os
import stat
from typing import TYPE_CHECKING, Any

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


def look_into(root: Path, fact: Fact, limit: int) -> Fact:
    """The fact with what its file holds; what cannot be read is said in `detail.problem`. Larger files are not read."""
    assert fact.path is not None
    detail: dict[str, Any] = dict(fact.detail)
    if detail.get("type", "file") != "file" or fact.kind != "file.closed":
        return fact
    detail["mime"] = mimetypes.guess_type(fact.path)[0] or "application/octet-stream"
    try:
        handle = held.open_at(root / fact.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            found = os.fstat(file.fileno())
            detail["size"] = found.st_size
            detail["identity"] = f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"
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
