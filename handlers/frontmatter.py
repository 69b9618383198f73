"""The front matter of a Markdown file in the inbox: TOML between `+++` or YAML between `---`, or none. Pure."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from typing import Any

import yaml

#: The fields that aipass reads. Other fields belong to other tools and are ignored.
KNOWN = ("subject", "key", "priority", "reply_to")
#: A larger block counts as text: parsing it would block the engine's thread.
MAX_FRONT_MATTER_CHARS = 65_536
_FENCED = re.compile(r"(\+\+\+|---)[ \t]*\r?\n(.*?)(?<=\n)\1[ \t]*(?:\r?\n|$)", re.DOTALL)
_KEYS = re.compile(r"^[\"']?([A-Za-z_-]{1,20})[\"']?[ \t]*:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file's text without its front matter, and the values of the known fields."""

    text: str
    subject: str | None = None
    key: str | None = None
    priority: int = 0
    reply_to: str | None = None


def read(text: str) -> Wanted:
    """Split `text` into front matter and body. Raises ValueError with a message for the author of the file."""
    match = _FENCED.match(text)
    if match is None or len(match[2]) > MAX_FRONT_MATTER_CHARS:
        return Wanted(text)
    if match[1] == "---" and not any(_nearest(word) for word in _KEYS.findall(match[2])):
        # Fields of other tools only, or text between two Markdown rules: the agent gets all of it.
        return Wanted(text)
    found = _parse_toml(match[2]) if match[1] == "+++" else _parse_yaml(match[2])
    if not isinstance(found, dict):
        # `---` is also a Markdown rule, so the text between two of them need not be front matter.
        return Wanted(text)
    for name in found:
        near = _nearest(str(name))
        if name not in KNOWN and near:
            raise ValueError(f"front matter: `{name}` is not known; did you mean `{near}`?")
    subject, key, reply_to = (_words(found, name) for name in ("subject", "key", "reply_to"))
    return Wanted(text[match.end() :], subject, key, _priority(found), reply_to)


def _nearest(name: str) -> str | None:
    """Return the known field that a name is or resembles; None if it resembles none."""
    return next(iter(difflib.get_close_matches(name.lower(), KNOWN, 1, 0.8)), None)


def _parse_toml(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"front matter is not valid TOML: {str(exc)[:200]}") from exc


def _parse_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    try:
        # Strings only: a date or a `no` stays as it was written, and no YAML tag creates a Python object.
        return yaml.load(text, yaml.BaseLoader)  # noqa: S506 - BaseLoader makes nothing but text, lists and dicts
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ValueError(f"front matter is not valid YAML: {_place(exc)}") from exc


def _place(exc: Exception) -> str:
    """Return the YAML error with its line in the file."""
    mark, problem = getattr(exc, "problem_mark", None), getattr(exc, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(exc).split())[:300]
    # + 2: lines count from 0, and the front matter begins in line 2 of the file.
    return f"line {mark.line + 2}, column {mark.column + 1}: {problem}"


def _words(found: dict[Any, Any], name: str) -> str | None:
    value = found.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, (dict, list)) or not str(value).strip():
        raise ValueError(f"front matter: `{name}` must be text")
    return str(value).strip()


def _priority(found: dict[Any, Any]) -> int:
    value = found.get("priority", 0)
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,4}", value.strip()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -100 <= value <= 100:
        raise ValueError("front matter: `priority` is a whole number from -100 to 100; larger runs first")
    return value
