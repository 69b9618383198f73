"""The schema of the three state files, and the check of what an agent saved in them. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError

from aipass.features.memory.document import FaultError, kind_of, line_of, read
from aipass.features.memory.import_v2 import MARKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import ValidationInfo
    from pydantic_core import ErrorDetails

    from aipass.config.model import State

SCHEMA = 1
FOLDER = ".trinity"
PASSPORT, LOCAL, OBSERVATIONS = "passport.json", "local.json", "observations.json"
FILES = (PASSPORT, LOCAL, OBSERVATIONS)
#: The lists of entries, and the kind of the entries in each.
LISTS = {"todos": "todo", "learnings": "learning", "observations": "observation"}
#: The keys of each file, in the order in which they are written.
KEYS = {
    PASSPORT: ("schema", "agent", "role", "purpose", "driver", "model", "owns", "created"),
    LOCAL: ("schema", "agent", "updated", "now", "todos", "learnings", "sessions"),
    OBSERVATIONS: ("schema", "agent", "updated", "observations"),
}
NOW = ("dispatch", "plan", "phase", "task", "since", "doing")
MAX_TAGS, MAX_TAG = 20, 60
#: The errors of a document that are considered for its report.
LOOKED_AT = 10
#: The most entries in one list of a save. They are merged in the engine's thread, and all agents wait for that.
MOST_ENTRIES = 1_000
#: The most fields in one object; valid ones have fewer. pydantic makes an error for each unknown one.
MOST_FIELDS = 40


def _text(value: str, info: ValidationInfo) -> str:
    """Check a text. Text that already is in the file is always accepted: a lowered limit must not reject it."""
    context = info.context or {}
    limit = int(context.get("text", len(value)))
    if value in context.get("standing", ()):
        return value
    if not value.strip():
        raise ValueError("it is empty; write the text to remember, or remove the entry")
    if len(value) > limit:
        raise ValueError(f"it has {len(value)} characters; at most {limit} are kept ([state] text)")
    return _plain(value)


def _plain(value: str) -> str:
    for letter in value:
        if _is_odd(letter):
            raise ValueError(f"it holds the character U+{ord(letter):04X}; remove it")
    return value


def printed(text: str) -> str:
    """Return a text in which line ends are `\\n`, and every character that entries must not contain is U+FFFD."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_odd(letter) else letter for letter in text)


def _is_odd(letter: str) -> bool:
    # Control characters act on terminals. A lone surrogate cannot be stored as UTF-8.
    return (letter < " " and letter not in "\n\t") or "\ud800" <= letter <= "\udfff" or letter == "\x7f"


def _tag(value: str) -> str:
    if not value.strip() or len(value) > MAX_TAG:
        raise ValueError(f"a tag has 1 to {MAX_TAG} characters")
    return _plain(value)


Text = Annotated[str, AfterValidator(_text)]
Tag = Annotated[str, AfterValidator(_tag)]
#: Parts of the reply to a note, by which an import counts what it has done.
NOTHING_ADDED, CUT = "; nothing was added", "; only its first"


class Shape(BaseModel):
    """Base of the models of a saved file: no unknown keys, no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NoteEntry(Shape):
    """A todo, a learning or an observation. A new one has neither id nor time: the engine assigns them."""

    #: Below 2^60: SQLite stores integers of 64 bits.
    id: Annotated[int, Field(ge=1, lt=1 << 60)] | None = None
    text: Text
    added: str | None = None
    tags: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS, strict=False), FailFast()] = ()


#: FailFast: pydantic needs a thousand bytes and more for each error, and only the first is reported.
Entries = Annotated[tuple[NoteEntry, ...], Field(strict=False), FailFast()]


class Now(Shape):
    """The current work of an agent. Only `doing` is the agent's to write."""

    # Any: what an agent writes in the engine's fields is restored, not rejected.
    dispatch: Any = None
    plan: Any = None
    phase: Any = None
    task: Any = None
    since: Any = None
    doing: Text | None = None


class Local(Shape):
    """`local.json` as an agent can save it."""

    schema_: Any = Field(None, alias="schema")
    agent: Any = None
    updated: Any = None
    now: Now = Field(default_factory=Now)
    todos: Entries
    learnings: Entries
    sessions: Any = None


class Observations(Shape):
    """`observations.json` as an agent can save it."""

    schema_: Any = Field(None, alias="schema")
    agent: Any = None
    updated: Any = None
    observations: Entries


@dataclass(frozen=True, slots=True)
class Saved:
    """A valid save: the agent's fields checked, and the whole document as it was found, for the engine's fields."""

    lists: dict[str, tuple[NoteEntry, ...]]
    doing: str | None
    found: dict[str, Any]


#: For each older schema number: a function that converts a document to the next number.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def migrated(document: dict[str, Any]) -> dict[str, Any]:
    """Convert a document of an older schema to SCHEMA. One without a usable number counts as current. Raises FaultError."""
    number = document.get("schema")
    while type(number) is int and number in MIGRATIONS:
        document = MIGRATIONS[number](document)
        number = document["schema"]
    if type(number) is int and number > SCHEMA:
        raise FaultError(
            f"schema {number} is newer than this aipass knows ({SCHEMA}); leave `schema` as it was",
            1,
            "schema",
        )
    return document


def parse(name: str, data: bytes, limits: State, standing: bytes = b"") -> Saved:
    """Parse and check `local.json` or `observations.json`. Raises FaultError with line, field, and what is expected.

    `standing`: the file as the engine wrote it last. Its content is accepted even if limits were lowered since.
    """
    text, document = read(data)
    for mark in MARKS:
        if mark in document:
            message = "this is a state file of AIPass 2.x; `aipass trinity import FOLDER` imports it; FOLDER can be the folder where it is kept now"
            raise FaultError(message, line_of(text, (mark,)), mark)
    document = migrated(document)
    model = Local if name == LOCAL else Observations
    # Before pydantic: its errors for a huge document would take the memory and time that the limits protect.
    _is_small(text, document)
    texts, todos = _standing(standing)
    try:
        found = model.model_validate(document, context={"text": limits.text, "standing": texts})
    except ValidationError as exc:
        raise _fault(text, exc.errors(include_url=False)) from None
    lists = {kind: getattr(found, key) for key, kind in LISTS.items() if hasattr(found, key)}
    most = max(limits.todos, todos)
    if len(lists.get("todo", ())) > most:
        raise FaultError(
            f"there are {len(lists['todo'])} todos; at most {limits.todos} can be open ([state] todos): finish some, or remove them",
            line_of(text, ("todos", most)),
            "todos",
        )
    return Saved(lists, found.now.doing if isinstance(found, Local) else None, document)


def _is_small(text: str, document: dict[str, Any]) -> None:
    """Raise FaultError for a document with too many entries or fields: to check it would block the thread."""
    for key in LISTS:
        found = document.get(key)
        if isinstance(found, list) and len(found) > MOST_ENTRIES:
            raise FaultError(
                f"there are {len(found)} {key}; a file has at most {MOST_ENTRIES}; remove some",
                line_of(text, (key, MOST_ENTRIES)),
                key,
            )
    objects: list[tuple[tuple[str | int, ...], Any]] = [((), document), (("now",), document.get("now"))]
    for key in LISTS:
        found = document.get(key)
        objects += [
            ((key, number), entry) for number, entry in enumerate(found if isinstance(found, list) else ())
        ]
    for place, found in objects:
        if isinstance(found, dict) and len(found) > MOST_FIELDS:
            raise FaultError(
                f"there are {len(found)} fields here; at most {MOST_FIELDS} are allowed",
                line_of(text, place),
                ".".join(map(str, place)),
            )


def _standing(standing: bytes) -> tuple[set[str], int]:
    """Return the texts in a file that the engine wrote, and the number of its todos."""
    if not standing:
        return set(), 0
    document = json.loads(standing)
    texts = {entry["text"] for key in LISTS for entry in document.get(key, ())}
    if doing := document.get("now", {}).get("doing"):
        texts.add(doing)
    return texts, len(document.get("todos", ()))


def _fault(text: str, errors: list[ErrorDetails]) -> FaultError:
    """Convert pydantic's errors to the fault of the first line."""
    # Only LOOKED_AT of them: `line_of` reads the text from its beginning each time.
    error = min(errors[:LOOKED_AT], key=lambda one: line_of(text, tuple(one["loc"])))
    place = tuple(error["loc"])
    field = ".".join(map(str, place))
    kind, context = error["type"], error.get("ctx", {})
    match kind:
        case "extra_forbidden":
            known = _known(place)
            message = f"there is no such field here; the fields are {', '.join(known)}"
        case "missing":
            message = f'it is missing; write `"{place[-1]}": {"[]" if str(place[-1]) in LISTS else "…"}`'
        case "value_error":
            message = str(context["error"])
        case "too_long":
            message = f"there are more than {context['max_length']} tags; remove some"
        case _:
            message = f"it is {kind_of(error['input'])}; it must be {_wanted(place)}"
    return FaultError(message, line_of(text, place), field)


def _known(place: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Local if place[0] != "observations" and len(place) == 1 else NoteEntry
    if place[0] == "now":
        model = Now
    return [field.alias or name for name, field in model.model_fields.items()]


def _wanted(place: tuple[str | int, ...]) -> str:
    last = place[-1]
    if last == "id":
        return "a whole number, or left out: the engine assigns it"
    if last in {"text", "doing", "added"} or (len(place) > 2 and place[-2] == "tags"):
        return "text" if last != "doing" else "text or null"
    if last == "now":
        return 'an object, such as {"doing": "…"}'
    if isinstance(last, int):
        return 'an object, such as {"text": "…"}'
    return "a list"
