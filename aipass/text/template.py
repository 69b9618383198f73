"""Task templates of rules, such as `Review {sha}: {subject}`. Names are replaced; nothing is evaluated."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aipass.event import iso, plain, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aipass.event import Event

#: The names that a task can use, in addition to `{detail.<field>}` for the fields of a plugin's events.
FIELDS = (
    "path",
    "name",
    "kind",
    "sha",
    "branch",
    "author",
    "subject",
    "count",
    "agent",
    "dispatch",
    "ref",
    "time",
)
_NAMES_OF_FILES = frozenset(("detail.from", "detail.paths"))
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
# Long enough for every honest commit subject or path. A longer one would fill the prompt with foreign text.
MAX_VALUE_CHARS = 2000


def check_template(text: str) -> str:
    """Return `text` unchanged if it uses only known names. Raises ValueError that lists the known names."""
    for match in _PLACE.finditer(text):
        name = match[1]
        if name is not None and name not in FIELDS and not name.startswith("detail."):
            raise ValueError(
                f"{{{name}}} is not a known name; a task can use {', '.join('{' + field + '}' for field in FIELDS)} and {{detail.<field>}}; write {{{{ for a brace"
            )
    return text


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with the names of `values` replaced. Braces around other words are left unchanged."""
    return re.sub(r"\{([a-z]+)\}", lambda match: values.get(match[1], match[0]), text)


def render(text: str, values: Mapping[str, Any]) -> str:
    """The text with all names replaced by `values`; a missing value becomes an empty text. Values are not expanded again."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        found = (
            values.get("detail", {}).get(name.removeprefix("detail."))
            if name.startswith("detail.")
            else values.get(name)
        )
        if found is None:
            return ""
        # In one line: a file name with line breaks could pass for instructions of the task (prompt injection). Fields of a
        # plugin's events can have several lines.
        whole = name.startswith("detail.") and name not in _NAMES_OF_FILES
        return (str(found) if whole else plain(str(found)))[:MAX_VALUE_CHARS]

    return _PLACE.sub(value, text)


def values_of(event: Event) -> dict[str, Any]:
    """The values of an event for `render`. Plain JSON data, so that a timer (debounce) can store it."""
    values = {name: event.detail.get(name) for name in FIELDS}
    path = printable(event.path)
    values |= {
        "path": path,
        "name": path and path.rpartition("/")[2],
        "kind": event.kind,
        "ref": event.ref,
        "time": iso(event.time),
    }
    return {**values, "count": event.detail.get("count", 1), "detail": event.detail}
