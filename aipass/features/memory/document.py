"""The strict reader and the writer of JSON state files; faults have a line and a field. Pure."""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A state file within its limits is far smaller.
MAX_BYTES = 1_000_000
#: Valid files are 4 deep. Code that walks a document recursively needs a limit.
MAX_DEPTH = 20
_BLANK = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(r"[^\s,\]}]+")

Place = tuple[str | int, ...]


class FaultError(Exception):
    """Why a document cannot be used. `line` counts from 1; `field` is dotted, and empty for the whole file."""

    def __init__(self, message: str, line: int = 1, field: str = "") -> None:
        super().__init__(message)
        self.message, self.line, self.field = message, line, field

    def __str__(self) -> str:
        """Return line, field and message in one text."""
        return f"line {self.line}{f', `{self.field}`' if self.field else ''}: {self.message}"


def read(data: bytes) -> tuple[str, dict[str, Any]]:
    """Return the text of a file and its JSON object. Raises FaultError, and nothing else, for any bytes."""
    if len(data) > MAX_BYTES:
        raise FaultError(f"the file has {len(data)} bytes; a state file has at most {MAX_BYTES}")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FaultError("this is UTF-16; save the file as UTF-8")
    if data.startswith(b"\xef\xbb\xbf"):
        raise FaultError("the file begins with a byte order mark; save it as UTF-8 without one")
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise FaultError(f"byte 0x{data[exc.start]:02x} is not UTF-8; save the file as UTF-8", line) from None
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    except json.JSONDecodeError as exc:
        if not text.strip():
            raise FaultError("the file is empty; it must contain one JSON object") from None
        raise FaultError(f"this is not JSON: {exc.msg} (column {exc.colno})", exc.lineno) from None
    except _NoJsonError as exc:
        raise FaultError(exc.message, _line_with(text, exc.sign)) from None
    except (RecursionError, ValueError) as exc:
        # Python refuses integers of more than 4,300 digits, and brackets that are nested too deep.
        raise FaultError(f"this cannot be read: {str(exc)[:100]}") from None
    if not isinstance(found, dict):
        raise FaultError(f"the file contains {kind_of(found)}; it must contain one JSON object, in braces")
    if _is_deeper(found, MAX_DEPTH):
        raise FaultError(f"it is nested more than {MAX_DEPTH} levels deep")
    return text, found


def render(document: Mapping[str, Any]) -> bytes:
    """Return the bytes of a document: keys in their order, indented by two spaces, with a line end at the end."""
    # "replace": a lone surrogate (a path that is not UTF-8, for example) must not stop the engine.
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def line_of(text: str, place: Place) -> int:
    """Return the line of a value in valid JSON text. For a missing value: the line of the innermost container on its way."""
    where = _BLANK.match(text).end()  # type: ignore[union-attr]
    for step in place:
        found = _inner(text, where, step)
        if found is None:
            break
        where = found
    return text.count("\n", 0, where) + 1


def kind_of(value: object) -> str:
    """Return the kind of a value, in words for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "text"
        case int() | float():
            return "a number"
        case list() | tuple():
            return "a list"
    return "an object"


class _NoJsonError(Exception):
    def __init__(self, message: str, sign: str) -> None:
        self.message, self.sign = message, sign


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON parsers keep the last of two equal keys: a list that an agent wrote first would be lost silently.
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _NoJsonError(
                f"the key {json.dumps(key)} appears twice in one object; keep one", json.dumps(key)
            )
        found[key] = value
    return found


def _float(digits: str) -> float:
    found = float(digits)
    if found in {float("inf"), float("-inf")}:
        raise _NoJsonError(f"{digits[:40]} is larger than any number that can be stored", digits)
    return found


def _constant(name: str) -> NoReturn:
    raise _NoJsonError(f"{name} is not JSON; write a number, or null", name)


def _line_with(text: str, sign: str) -> int:
    """Return the last line with a text: for a repeated key, the line of the second."""
    at = text.rfind(sign)
    return text.count("\n", 0, at) + 1 if at >= 0 else 1


def _is_deeper(value: object, limit: int) -> bool:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return limit == 0 or any(_is_deeper(one, limit - 1) for one in below)


def _inner(text: str, where: int, step: str | int) -> int | None:
    """Return the offset of the member `step` of the object or list at `where`; None where there is none."""
    if text[where] not in "{[":
        return None
    is_object, number = text[where] == "{", 0
    where = _skip_blank(text, where + 1)
    while text[where] not in "}]":
        key: str | int = number
        if is_object:
            key, where = scanstring(text, where + 1, False)
            where = _skip_blank(text, _skip_blank(text, where) + 1)
        if key == step:
            return where
        where = _skip_blank(text, _skip_value(text, where))
        if text[where] == ",":
            where = _skip_blank(text, where + 1)
        number += 1
    return None


def _skip_blank(text: str, where: int) -> int:
    return _BLANK.match(text, where).end()  # type: ignore[union-attr]


def _skip_value(text: str, where: int) -> int:
    if text[where] == '"':
        return int(scanstring(text, where + 1, False)[1])
    if text[where] not in "{[":
        return _SCALAR.match(text, where).end()  # type: ignore[union-attr]
    depth = 0
    while True:
        if text[where] == '"':
            where = scanstring(text, where + 1, False)[1]
            continue
        depth += (text[where] in "{[") - (text[where] in "}]")
        where += 1
        if not depth:
            return where
