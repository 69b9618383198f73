"""What can be asked for through the spool: one JSON object a file, put in place by rename."""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.ledger import Ledger

#: A request carries its text; larger things are handed over as files in the inbox.
MAX_REQUEST_BYTES = 10_000_000
#: What a run asks is cut at MAX_SAID anyway.
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

#: Verbs and their fields with type and whether they are required. Plain data, so that a verb of the command line that
#: only leaves a request pays for no model.
FIELDS: dict[str, dict[str, tuple[type, bool]]] = {
    "send": {
        "agent": (str, True),
        "text": (str, True),
        "subject": (str, False),
        "key": (str, False),
        "priority": (int, False),
        "reply_to": (str, False),
        "sender": (str, False),
        "wake": (bool, False),
        "waits": (int, False),
    },
    "cancel": {"id": (str, True)},
    "retry": {"id": (str, True)},
    "resume": {"name": (str, True)},
    "reload": {},
    "plan": {"do": (str, True), "id": (str, True), "again": (bool, False)},
    "deliver": {},
    "pr": {
        "do": (str, True),
        "title": (str, False),
        "body": (str, False),
        "agent": (str, False),
        "dispatch": (str, False),
        "paths": (list, False),
        "include": (bool, False),
        "ids": (list, False),
        "method": (str, False),
        "reason": (str, False),
    },
    "note": {
        "do": (str, True),
        "text": (str, False),
        "todo": (int, False),
        "added": (str, False),
        "tags": (list, False),
        "agent": (str, False),
    },
    "message": {
        "to": (str, True),
        "text": (str, True),
        "subject": (str, False),
        "files": (list, False),
        "reply_to": (int, False),
    },
    "ask": {"to": (str, True), "text": (str, True), "options": (list, False), "waits": (int, False)},
    "answer": {"question": (int, True), "text": (str, True), "other": (bool, False)},
    "forget": {"memory": (int, True)},
    "read": {"ids": (list, True)},
    "commit": {"title": (str, True), "body": (str, False), "paths": (list, False), "include": (bool, False)},
}
#: What an agent may ask for. Whatever stands here nowhere is for people: a new verb is theirs until somebody lets agents have it.
AGENT_VERBS = frozenset(
    (
        "send",
        "deliver",
        "pr",
        "note",
        "message",
        "ask",
        "answer",
        "read",
        "commit",
        "cancel",
        "retry",
        "resume",
        "plan",
        "forget",
    )
)
_KINDS = {str: "text", int: "a number", bool: "true or false", list: "a list"}
#: Who asks follows from the folder; only a person, or the orchestrator, may ask for these.
ORCHESTRATOR_VERBS = frozenset(("cancel", "retry", "resume", "plan"))
#: And what of `pr`.
ORCHESTRATOR_PR = frozenset(("merge", "close"))


def new_id() -> str:
    """A fresh request id; ids sort by the time of asking, to the microsecond."""
    return f"r-{time.time_ns() // 1000:014x}-{os.urandom(4).hex()}"


#: Keys that aipass gives: to work for a question, a phase, a sender who is woken, a reply, a file.
_OWN_KEY = re.compile(
    r"question \d+|woken by .*|plan \S+ \S+ \d+|reply to \d+: .*|PR \d+ is merged|sha256:[0-9a-f]{64}",
    re.DOTALL,
)


def is_own_key(key: str) -> bool:
    """Whether a key is one that only aipass gives: who could say it would join what it is for."""
    return _OWN_KEY.fullmatch(key) is not None


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


def parse(data: bytes) -> dict[str, Any]:
    """The request in `data`, checked; raises ValueError that says what is wrong and what would be right."""
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
    if not isinstance(verb, str) or verb not in FIELDS:
        raise ValueError(f"`verb` is {_show(verb)}; it is one of {', '.join(FIELDS)}")
    known = FIELDS[verb]
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
