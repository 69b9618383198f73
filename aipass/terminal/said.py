"""The text that a user gives to a verb: from an argument, a file, or standard input."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from aipass.core.requests import MAX_REQUEST_BYTES
from aipass.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def text_of(text: str | None, file: Path | None) -> str:
    """Return the text from TEXT, from a file (`-` is stdin), or from stdin if it is not a terminal.

    Raises ConfigError if it is empty, is not UTF-8, has a NUL, or is too large for a request.
    """
    if text is not None and file is not None:
        raise ConfigError("give either TEXT or --file, not both")
    if file is not None and str(file) != "-":
        try:
            data = file.read_bytes()
        except OSError as exc:
            raise ConfigError(f"{file}: cannot be read ({exc.strerror})") from exc
    elif text is not None:
        # Python decodes arguments with surrogates; the original bytes then fail the check for UTF-8 below.
        data = text.encode("utf-8", "surrogateescape")
    elif file is not None or not sys.stdin.isatty():
        data = sys.stdin.buffer.read()
    else:
        data = b""
    try:
        said = data.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as exc:
        raise ConfigError("the text is not UTF-8; put the file into the agent's inbox instead") from exc
    # The size as JSON, because the request is JSON; 10,000 bytes are left for its other fields.
    if len(json.dumps(said)) > MAX_REQUEST_BYTES - 10_000:
        raise ConfigError(
            f"the text is larger than {MAX_REQUEST_BYTES // 1_000_000} MB; put the file into the agent's inbox instead"
        )
    if not said.strip():
        raise ConfigError("the text is empty; give TEXT, --file, or text on stdin")
    if "\0" in said:
        raise ConfigError("the text contains a NUL byte; put the file into the agent's inbox instead")
    return said
