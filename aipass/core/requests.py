"""The format of requests in the spool (request queue): one JSON object per file, put in place by rename."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.ledger import Ledger

#: The limit for `send` of a person, whose text is in the request. Larger input goes through the inbox as a file.
MAX_REQUEST_BYTES = 10_000_000
#: The limit for requests of a run: MAX_SAID characters, of at most 12 bytes each as escapes in JSON.
MAX_RUN_BYTES = 400_000
#: The limit for all verbs but `send`, which need little. The engine waits while it parses a request.
MAX_OTHER_BYTES = 2_000_000
MOST_LISTED = 10_000
#: Half of a surrogate pair, which cannot be stored as UTF-8. U+DC80 to U+DCFF are accepted: they stand for bytes that are
#: not UTF-8, as in names of files (PEP 383).
_NO_TEXT = re.compile("[\ud800-\udc7f\udd00-\udfff]")
#: The limit for a text to other agents, in characters. It is searched for secrets in the engine's thread.
MAX_SAID = 32_000
#: Larger than any id, and within the 64 bits of SQLite: a larger int would raise OverflowError inside a transaction.
MAX_NUMBER = 1 << 62
REQUEST_ID = re.compile(r"r-[0-9a-z][0-9a-z-]{3,63}")
#: Names of files in the spool that can be requests; the others are still being written.
FILE = re.compile(r"(?!\.).*(?<!\.tmp)", re.DOTALL)

#: The fields of a verb: the type of each, and whether it is required. Plain data, so that a command which only writes a
#: request does not import pydantic.
Fields = Mapping[str, tuple[type, bool]]
_KINDS = {str: "text", int: "a number", bool: "true or false", list: "a list"}


def new_id() -> str:
    """A new unique request id. Ids sort by time, to the microsecond."""
    return f"r-{time.time_ns() // 1000:014x}-{os.urandom(4).hex()}"


def known_as(name: str, run: int | None) -> str:
    """The id of a request in the ledger, which is unique for each spool folder. `run`: None for a person."""
    # An agent can read the id in a person's spool folder before the engine does, and use it for a request of its own. By
    # the id alone, the request of the person would then be dropped as a duplicate.
    return name if run is None else f"{name}@{run}"


def write(folder: Path, verb: str, **fields: object) -> str:
    """Write a request to a spool folder and return its id. Atomic, and durable (fsync) when it returns.

    Fields that are None are left out. Raises OSError if the folder cannot be written.
    """
    request = new_id()
    temporary, final = folder / f".{request}.tmp", folder / f"{request}.json"
    data = json.dumps(
        {"verb": verb, **{name: value for name, value in fields.items() if value is not None}}
    ).encode()
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            # Before the rename: after a power failure a request with its final name must not be empty.
            os.fsync(file.fileno())
        temporary.rename(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return request


def parse(data: bytes, verbs: Mapping[str, Fields]) -> dict[str, Any]:
    """The request in `data`, checked against the fields of `verbs`. Raises ValueError with the error and a valid form."""
    try:
        found = json.loads(data.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8; write the request as UTF-8 JSON") from None
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"not JSON: {exc}") from None
    if not isinstance(found, dict):
        raise ValueError('not a JSON object; write {"verb": "send", "agent": "…", "text": "…"}')
    verb = found.get("verb")
    if verb != "send" and len(data) > MAX_OTHER_BYTES:
        raise ValueError(f"larger than {MAX_OTHER_BYTES // 1_000_000} MB; only `send` may be")
    if not isinstance(verb, str) or verb not in verbs:
        raise ValueError(f"`verb` is {_show(verb)}; it is one of {', '.join(verbs)}")
    known = verbs[verb]
    for name, value in found.items():
        if name != "verb" and name not in known:
            raise ValueError(
                f"`{name}` is not a field of {verb}; its fields are {', '.join(known) or 'none'}"
            )
        # Not `isinstance`: `true` would pass as a number.
        if name != "verb" and type(value) is not known[name][0]:
            raise ValueError(f"`{name}` is {_show(value)}; it must be {_KINDS[known[name][0]]}")
        if any(
            type(one) is int and abs(one) >= MAX_NUMBER
            for one in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(f"`{name}` is {_show(value)}; a number must be less than 2 to the power of 62")
        if isinstance(value, list) and not all(isinstance(one, (str, int)) for one in value):
            raise ValueError(f"`{name}` is {_show(value)}; it must be a list of texts or numbers")
        if isinstance(value, list) and len(value) > MOST_LISTED:
            raise ValueError(f"`{name}` lists {len(value)} items; at most {MOST_LISTED} are accepted")
        if any(
            isinstance(one, str) and _NO_TEXT.search(one)
            for one in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(
                f"`{name}` is {_show(value)}; it contains half of a surrogate pair, which is not text"
            )
    missing = [name for name, (_, required) in known.items() if required and name not in found]
    if missing:
        raise ValueError(f"`{missing[0]}` is missing; {verb} needs it")
    if verb == "send" and not -100 <= found.get("priority", 0) <= 100:
        raise ValueError("`priority` is from -100 to 100")
    return found


def _show(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:60] + "…"


def answer(
    ledger: Ledger, request: str | None, exit_code: int, message: str, dispatch: int | None = None
) -> None:
    """Reply to a request, inside the transaction. Does nothing if `request` is None.

    `dispatch`: the id that the waiting command prints and can wait for.
    """
    if request is not None:
        reply = {"id": request, "exit": exit_code, "message": message, "dispatch": dispatch}
        ledger.run("answer_request", reply)
