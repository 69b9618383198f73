"""What can be asked for through the spool: one JSON object a file, put in place by rename."""

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

#: A request carries its text; larger things are handed over as files in the inbox.
MAX_REQUEST_BYTES = 10_000_000
#: Of what a run asks no more than MAX_SAID is taken anyway.
MAX_RUN_BYTES = 400_000
#: All but `send` says little, and everything waits while it is read.
MAX_OTHER_BYTES = 2_000_000
MOST_LISTED = 10_000
#: Half a surrogate pair; bytes that are not UTF-8, as in names of files, are the other kind (PEP 383).
_NO_TEXT = re.compile("[\ud800-\udc7f\udd00-\udfff]")
#: Of what is said to others, in characters: it is looked through for secrets while everything waits.
MAX_SAID = 32_000
#: More than any id; SQLite holds it.
MAX_NUMBER = 1 << 62
REQUEST_ID = re.compile(r"r-[0-9a-z][0-9a-z-]{3,63}")
#: Names of files in the spool that are looked at.
FILE = re.compile(r"(?!\.).*(?<!\.tmp)", re.DOTALL)

#: The fields of a verb: the type of each, and whether it is required. Plain data, so that a verb of the command line that only leaves a
#: request pays for no model.
Fields = Mapping[str, tuple[type, bool]]
_KINDS = {str: "text", int: "a number", bool: "true or false", list: "a list"}


def new_id() -> str:
    """A fresh request id; ids sort by the time of asking, to the microsecond."""
    return f"r-{time.time_ns() // 1000:014x}-{os.urandom(4).hex()}"


def known_as(name: str, run: int | None) -> str:
    """What the ledger knows a request by: its id within the folder of whoever asks.

    Everybody can see the ids of others before the engine does, so an id alone would let an agent's request stand in for a person's.
    """
    return name if run is None else f"{name}@{run}"


def write(folder: Path, verb: str, **fields: object) -> str:
    """Leave a request in a spool folder; returns its id. Durable when this returns.

    Raises OSError where the folder cannot be written.
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
            os.fsync(file.fileno())
        temporary.rename(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return request


def parse(data: bytes, verbs: Mapping[str, Fields]) -> dict[str, Any]:
    """The request in `data`, checked against the fields of `verbs`; raises ValueError that says what is wrong and what would be right."""
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
            raise ValueError(f"`{name}` is no field of {verb}; its fields are {', '.join(known) or 'none'}")
        if name != "verb" and type(value) is not known[name][0]:
            raise ValueError(f"`{name}` is {_show(value)}; it must be {_KINDS[known[name][0]]}")
        if any(
            type(one) is int and abs(one) >= MAX_NUMBER
            for one in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(f"`{name}` is {_show(value)}; no number here is so large")
        if isinstance(value, list) and not all(isinstance(one, (str, int)) for one in value):
            raise ValueError(f"`{name}` is {_show(value)}; it must be a list of texts or numbers")
        if isinstance(value, list) and len(value) > MOST_LISTED:
            raise ValueError(f"`{name}` lists {len(value)}; at most {MOST_LISTED} are taken at once")
        if any(
            isinstance(one, str) and _NO_TEXT.search(one)
            for one in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(f"`{name}` is {_show(value)}; it holds half a character")
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
    """Reply to a request, where there is one."""
    if request is not None:
        reply = {"id": request, "exit": exit_code, "message": message, "dispatch": dispatch}
        ledger.run("answer_request", reply)
