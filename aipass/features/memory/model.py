"""The three files' shapes. What the engine writes into them is not read back; what an agent writes is checked. Pure."""

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
#: What stands in which file, by kind; the singular is the kind's name.
LISTS = {"todos": "todo", "learnings": "learning", "observations": "observation"}
#: The keys of each file in their order.
KEYS = {
    PASSPORT: ("schema", "agent", "role", "purpose", "driver", "model", "owns", "created"),
    LOCAL: ("schema", "agent", "updated", "now", "todos", "learnings", "sessions"),
    OBSERVATIONS: ("schema", "agent", "updated", "observations"),
}
NOW = ("dispatch", "plan", "phase", "task", "since", "doing")
MAX_TAGS, MAX_TAG = 20, 60
LOOKED_AT = 10
#: In one list of a save; more would hold up everybody while they are merged.
MOST_ENTRIES = 1_000
#: In one object; none that is right has as many.
MOST_FIELDS = 40


def _text(value: str, info: ValidationInfo) -> str:
    """Text that a person and a database can hold."""
    context = info.context or {}
    limit = int(context.get("text", len(value)))
    if value in context.get("standing", ()):
        return value
    if not value.strip():
        raise ValueError("it is empty; write what is to be remembered, or leave the entry out")
    if len(value) > limit:
        raise ValueError(f"it has {len(value)} characters; at most {limit} are kept ([state] text)")
    return _plain(value)


def _plain(value: str) -> str:
    for letter in value:
        if _is_odd(letter):
            raise ValueError(f"it holds the character U+{ord(letter):04X}; take it out")
    return value


def printed(text: str) -> str:
    """A text without the characters that no entry may hold: line ends are one kind, all else is replaced."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_odd(letter) else letter for letter in text)


def _is_odd(letter: str) -> bool:
    return (letter < " " and letter not in "\n\t") or "\ud800" <= letter <= "\udfff" or letter == "\x7f"


def _tag(value: str) -> str:
    if not value.strip() or len(value) > MAX_TAG:
        raise ValueError(f"a tag has 1 to {MAX_TAG} characters")
    return _plain(value)


Text = Annotated[str, AfterValidator(_text)]
Tag = Annotated[str, AfterValidator(_tag)]


class Shape(BaseModel):
    """Base of what an agent may save: no unknown keys, no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NoteEntry(Shape):
    """A todo, a learning or an observation. A new one has neither id nor time: the engine gives them."""

    id: Annotated[int, Field(ge=1, lt=1 << 60)] | None = None
    text: Text
    added: str | None = None
    tags: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS, strict=False), FailFast()] = ()


#: The first that is wrong is enough: to describe each of many takes a thousand bytes and more.
Entries = Annotated[tuple[NoteEntry, ...], Field(strict=False), FailFast()]


class Now(Shape):
    """What an agent is doing: only `doing` is its own to write."""

    dispatch: Any = None
    plan: Any = None
    phase: Any = None
    task: Any = None
    since: Any = None
    doing: Text | None = None


class Local(Shape):
    """`local.json` as an agent may save it."""

    schema_: Any = Field(None, alias="schema")
    agent: Any = None
    updated: Any = None
    now: Now = Field(default_factory=Now)
    todos: Entries
    learnings: Entries
    sessions: Any = None


class Observations(Shape):
    """`observations.json` as an agent may save it."""

    schema_: Any = Field(None, alias="schema")
    agent: Any = None
    updated: Any = None
    observations: Entries


@dataclass(frozen=True, slots=True)
class Saved:
    """What an agent saved: its own part checked, the engine's as it was found."""

    lists: dict[str, tuple[NoteEntry, ...]]
    doing: str | None
    found: dict[str, Any]


#: By the schema that a document has: what makes one of the next of it.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def migrated(document: dict[str, Any]) -> dict[str, Any]:
    """A document of an older schema as one of today's; what has no usable number is taken for today's."""
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
    """What is in `local.json` or `observations.json`. Raises FaultError with the line, the field, and what would be right.

    standing: the file as the engine wrote it last. What stands there may stay, also where limits were lowered since.
    """
    text, document = read(data)
    for mark in MARKS:
        if mark in document:
            message = "this is a state file of AIPass 2.x; `aipass trinity import FOLDER` takes it over, also from where it is kept now"
            raise FaultError(message, line_of(text, (mark,)), mark)
    document = migrated(document)
    model = Local if name == LOCAL else Observations
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
            f"there are {len(lists['todo'])} todos; {limits.todos} may be open ([state] todos): finish some, or take them out",
            line_of(text, ("todos", most)),
            "todos",
        )
    return Saved(lists, found.now.doing if isinstance(found, Local) else None, document)


def _is_small(text: str, document: dict[str, Any]) -> None:
    """Raise FaultError where so much is wrong that to name it all would hold up everybody."""
    for key in LISTS:
        found = document.get(key)
        if isinstance(found, list) and len(found) > MOST_ENTRIES:
            raise FaultError(
                f"there are {len(found)} {key}; a file holds at most {MOST_ENTRIES}, and memory the rest",
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
                f"there are {len(found)} fields here", line_of(text, place), ".".join(map(str, place))
            )


def _standing(standing: bytes) -> tuple[set[str], int]:
    """The texts that stand in a file of ours, and how many todos."""
    if not standing:
        return set(), 0
    document = json.loads(standing)
    texts = {entry["text"] for key in LISTS for entry in document.get(key, ())}
    if doing := document.get("now", {}).get("doing"):
        texts.add(doing)
    return texts, len(document.get("todos", ()))


def _fault(text: str, errors: list[ErrorDetails]) -> FaultError:
    """The first of pydantic's errors in our words."""
    # Of many only the first are looked at: each look walks the text from its beginning.
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
            message = f"there are more than {context['max_length']}"
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
        return "a whole number, or left out: the engine gives it"
    if last in {"text", "doing", "added"} or (len(place) > 2 and place[-2] == "tags"):
        return "text" if last != "doing" else "text or null"
    if last == "now":
        return 'an object, such as {"doing": "…"}'
    if isinstance(last, int):
        return 'an object, such as {"text": "…"}'
    return "a list"
