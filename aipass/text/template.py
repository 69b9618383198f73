"""Task templates of rules: `Review {sha}: {subject}`. Only names are replaced, nothing is evaluated."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aipass.event import iso, plain, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aipass.event import Event

#: What a task may name, besides `{detail.<field>}` of a plugin's own events.
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
# A commit subject or a path in a prompt: long enough for any honest one.
MAX_VALUE_CHARS = 2000


def check_template(text: str) -> str:
    """`text`, if all that it names is known; raises ValueError with the known names."""
    for match in _PLACE.finditer(text):
        name = match[1]
        if name is not None and name not in FIELDS and not name.startswith("detail."):
            raise ValueError(
                f"{{{name}}} is not known; a task may name {', '.join('{' + field + '}' for field in FIELDS)} and {{detail.<field>}}; write {{{{ for a brace"
            )
    return text


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with those `values` that it names in their places; braces around anything else stay as they are."""
    return re.sub(r"\{([a-z]+)\}", lambda match: values.get(match[1], match[0]), text)


def render(text: str, values: Mapping[str, Any]) -> str:
    """`text` with `values` in their places; what is not there becomes nothing."""

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
        # One line of words: a name with line ends would be words of the task. What a plugin's event tells may have lines.
        whole = name.startswith("detail.") and name not in _NAMES_OF_FILES
        return (str(found) if whole else plain(str(found)))[:MAX_VALUE_CHARS]

    return _PLACE.sub(value, text)


def values_of(event: Event) -> dict[str, Any]:
    """What a task may name of an event. Plain data, so that it can wait in a timer."""
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
