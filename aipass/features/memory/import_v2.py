"""The import of state files of AIPass 2.x and older: what can be imported, and what is left out. Pure.

Their format changed often, and their version fields do not say which one a file has; so each entry is judged by itself.
Everything that is left out is listed with the reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: `local.json`, `DRONE.local.json` of the versions before, and `<time>-local.json` where it was set aside.
_NAME = re.compile(r"(?:\d+-)?(?:[\w-]+\.)?(passport|id|local|observations)\.json")
#: The end of the year 2100, in seconds: a later date is a typing error.
MAX_TIME = 4_133_980_799.0
#: More than any real file has: `_entries` and `_said` are recursive.
MAX_DEPTH = 50
#: Keys that only the old documents have.
MARKS = ("document_metadata", "trinity_version")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
#: The time at the end of a text, in the oldest files.
_STAMP = re.compile(r"\s*\[(\d{4}-\d\d-\d\d(?:T[0-9:.+Z-]+)?)\]$")
#: Fields with an entry's text, in the order in which their values are joined.
_WORDS = (
    ("key", "title"),
    ("text", "task", "value", "learning", "detail", "observation", "insight", "pattern", "note", "summary", "activities", "content", "message"),
)  # fmt: skip
_DATES = ("date", "created", "added")
#: The known fields of an entry; others are reported. `_NOTHING`: values that count as absent.
_UNDERSTOOD = frozenset(
    (*(name for names in _WORDS for name in names), *_DATES, "entries", "tags", "status", "priority", "id", "number", "session_number", "session", "source", "category", "type")
)  # fmt: skip
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_DONE = frozenset(("done", "complete", "completed", "closed"))
#: Entries that the old programs wrote automatically.
_BIRTH = re.compile(r"(?:First Contact: )?Branch initialized\b")
_MACHINE = frozenset(("auto-compact", "system_push"))
#: Fields of a passport that have no counterpart in aipass.toml.
_CHARACTER = ("what_i_do", "what_i_dont_do", "how_i_work", "traits", "principles", "core_responsibilities")
#: Keys without content of an agent.
_FRAME = re.compile(
    r"document_metadata|guidelines|.*_meta|limits|status|config|metadata|trinity_version|schema_version"
)


@dataclass(frozen=True, slots=True)
class Old:
    """An entry to import. `kind`: todo, learning, observation or session; `time`: seconds."""

    kind: str
    text: str
    time: float
    tags: tuple[str, ...] = ()


@dataclass(slots=True)
class ImportedState:
    """The content of one agent's files. `left`: what is not imported, with the reason."""

    names: list[str] = field(default_factory=list)
    role: str = ""
    purpose: str = ""
    entries: list[Old] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def which(name: str) -> str | None:
    """Return the kind of a file by its name: passport, local or observations; None for any other."""
    match = _NAME.fullmatch(name)
    return None if match is None else "passport" if match[1] == "id" else match[1]


def read(files: Mapping[str, tuple[bytes, float]]) -> ImportedState:
    """Read the files of one agent, by their names; entries oldest first. Raises nothing: broken files are in `left`.

    `files`: content and modification time in seconds of each. An entry without a date gets that time.
    """
    found = ImportedState()
    for name, (data, changed) in files.items():
        before = len(found.entries)
        document = _document(name, data, found)
        kind = which(name)
        if document is None or kind is None:
            continue
        for key in [key for key in document if _FRAME.fullmatch(key)]:
            del document[key]
        if kind == "passport":
            _passport(name, document, found)
        elif kind == "local":
            _local(name, document, found)
        else:
            _take(name, "observation", document.pop("observations", None), found)
        found.entries[before:] = [replace(one, time=one.time or changed) for one in found.entries[before:]]
        for key, value in document.items():
            if value not in _NOTHING:
                found.left.append(f"{name}: aipass has no field for `{key}`")
    found.entries.sort(key=lambda entry: entry.time)
    return found


def _document(name: str, data: bytes, found: ImportedState) -> dict[str, Any] | None:
    twice: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in items)
        twice.extend(key for key, number in counts.items() if number > 1)
        return dict(items)

    try:
        document = json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs)
        if _depth(document) > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    except (ValueError, RecursionError) as exc:
        found.left.append(f"{name}: cannot be read ({exc})")
        return None
    found.left += [f"{name}: `{key}` appears twice; the last value was imported" for key in twice]
    if not isinstance(document, dict):
        found.left.append(f"{name}: it must contain one JSON object")
        return None
    return document


def _depth(document: object) -> int:
    """Return the depth of a document, up to MAX_DEPTH + 1. A loop: the depth is not limited yet."""
    depth, level = 0, [document]
    while level and depth <= MAX_DEPTH:
        depth += 1
        inner = [
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))
        ]
        level = [value for values in inner for value in values]
    return depth


# -- file by file ------------------------------------------------------------------------------------------------------


def _passport(name: str, document: dict[str, Any], found: ImportedState) -> None:
    """Read name, role and purpose: only printed, because a person writes them in aipass.toml."""
    branch, identity = _inner(document.pop("branch_info", None)), _inner(document.pop("identity", None))
    places = [branch, identity, document, _inner(document.pop("purpose_identity", None))]
    for key in ("branch_name", "name", "project_name"):
        found.names += [value for place in places if isinstance(value := place.get(key), str) and value]
    found.role = _first(places, ("role", "profile"))
    found.purpose = _first(places, ("purpose", "description"))
    others = [key for key in _CHARACTER if any(place.get(key) for place in places)]
    if others:
        named = ", ".join(f"`{key}`" for key in others)
        found.left.append(
            f"{name}: {named}: move this to a file that the agent's CLI reads, such as AGENTS.md"
        )
    for key in (*_CHARACTER, "citizenship", "name", "role", "purpose", "email", "description"):
        document.pop(key, None)


def _local(name: str, document: dict[str, Any], found: ImportedState) -> None:
    # The same block, with another name in another version; some versions have only the focus in it.
    for key in ("active_tasks", "active"):
        if not isinstance(document.get(key, {}), dict):
            focus = document.pop(key)
            _take(name, "todo", [focus] if isinstance(focus, str) else focus, found)
        active = _inner(document.pop(key, None))
        focus = active.pop("today_focus", None) or active.pop("current_focus", None)
        # Some files have only a date in this field.
        if isinstance(focus, str):
            focus = [] if _DATE.fullmatch(focus.strip()) or not focus.strip() else [focus]
        _take(name, "todo", focus, found)
        _take(name, "session", active.pop("recently_completed", None), found)
        _take(name, "learning", active.pop("key_learnings", None), found)
        document |= {f"{key}.{more}": value for more, value in active.items()}
    _take(name, "session", document.pop("recently_completed", None), found)
    for key, kind in (("todos", "todo"), ("key_learnings", "learning"), ("sessions", "session")):
        _take(name, kind, document.pop(key, None), found)


def _take(name: str, kind: str, values: object, found: ImportedState) -> None:
    if isinstance(values, dict):
        values = [
            {"key": key, **(value if isinstance(value, dict) else {"value": value})}
            for key, value in values.items()
        ]
    if values is None or values in ("", []):
        return
    if not isinstance(values, list):
        found.left.append(f"{name}: the {kind}s are not a list")
        return
    # Most files have the newest first. Reversed, entries of the same day are in order of time.
    for value in reversed(values):
        entries = list(_entries(kind, value))
        if not entries:
            found.left.append(f"{name}: a {kind} without text: {json.dumps(value)[:100]}")
        if others := [key for key in _inner(value) if key not in _UNDERSTOOD and value[key] not in _NOTHING]:
            named = ", ".join(f"`{key}`" for key in others)
            found.left.append(
                f"{name}: {named} of the {kind} {json.dumps(entries[0].text[:60]) if entries else ''}"
            )
        for entry in entries:
            if (reason := _useless(entry, value)) is not None:
                found.left.append(f"{name}: {kind} {json.dumps(entry.text[:60])}: {reason}")
            else:
                found.entries.append(entry)


def _useless(entry: Old, value: object) -> str | None:
    status = str(_inner(value).get("status", "")).strip().casefold()
    if entry.kind == "todo" and status in _DONE:
        return "it is done already"
    if _BIRTH.match(entry.text) or status in _MACHINE or _MACHINE & set(entry.tags):
        return "the old program wrote it automatically"
    if "{{" in entry.text:
        return "it is an unfilled template"
    return None


def _entries(kind: str, value: object) -> Iterator[Old]:
    """Convert an old entry; the block of a day contains several."""
    if isinstance(value, str):
        yield from _entry(kind, {"text": value})
    elif isinstance(value, dict):
        blocks = value.get("entries", value["note"] if isinstance(value.get("note"), list) else None)
        if not isinstance(blocks, list):
            yield from _entry(kind, value)
            return
        when, tags = _time(value), _tags(value)
        for block in blocks:
            for entry in _entries(kind, block):
                yield replace(entry, time=entry.time or when, tags=entry.tags or tags)


def _entry(kind: str, value: dict[str, Any]) -> Iterator[Old]:
    groups = [dict.fromkeys(said for name in names if (said := _said(value.get(name)))) for names in _WORDS]
    parts = ["; ".join(group) for group in groups if group]
    text, when = ": ".join(parts), _time(value)
    if len(parts) == 2 and parts[1].startswith(parts[0]):
        text = parts[1]  # the title repeats the beginning of the text
    if (stamp := _STAMP.search(text)) is not None:
        text, when = text[: stamp.start()], when or _time({"date": stamp[1]})
    tags = _tags(value)
    status = _said(value.get("status"))
    if kind == "session" and status and status.casefold() not in _DONE:
        text += f" ({status})"
    if kind == "todo" and (priority := _said(value.get("priority"))):
        tags = (*tags, priority)
    if text.strip():
        yield Old(kind, text.strip(), when, tags)


def _said(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(filter(None, map(_said, value)))
    if isinstance(value, dict):
        return "; ".join(filter(None, map(_said, value.values())))
    return "" if value is None or isinstance(value, bool) else str(value).strip()


def _tags(value: dict[str, Any]) -> tuple[str, ...]:
    tags = value.get("tags")
    return tuple(str(tag) for tag in tags if str(tag).strip()) if isinstance(tags, list) else ()


def _time(value: dict[str, Any]) -> float:
    """Return the time of an entry in seconds; 0 where it has none."""
    for name in _DATES:
        if isinstance(said := value.get(name), str):
            try:
                moment = datetime.fromisoformat(said.strip())
            except ValueError:
                continue
            try:
                seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            except (ValueError, OverflowError):
                continue
            return seconds if 0 <= seconds <= MAX_TIME else 0.0
    return 0.0


def _first(places: Iterable[dict[str, Any]], names: Iterable[str]) -> str:
    for name in names:
        for place in places:
            if isinstance(value := place.get(name), str) and value.strip() and "{{" not in value:
                return " ".join(value.split())
    return ""


def _inner(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
