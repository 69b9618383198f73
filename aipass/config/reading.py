"""The reader of aipass.toml: every error names file, line and field, the value found, and a valid one."""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from aipass.config.model import Agent, Config, FromEnv, Model, Rule
from aipass.config.quick import not_toml
from aipass.errors import ConfigError
from aipass.event import plain
from aipass.text.suggestion import nearest
from aipass.workspace.layout import CONFIG_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails

#: A configuration larger than this is a mistake (a log, a database) and is not read.
MAX_CONFIG_BYTES = 4_000_000


def load(path: Path) -> Config:
    """The configuration in the file `path`. Raises ConfigError with one line for each error."""
    return parse(read_text(path), path.name)


def read_text(path: Path) -> str:
    """The text of the file, without a byte order mark. Raises ConfigError if it cannot be read or is not UTF-8."""
    try:
        # A FIFO of this name would block the read until a process writes into it.
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path.name}: is not a file; move away what is in its place")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"{path.name}: larger than {MAX_CONFIG_BYTES // 1_000_000} MB; is this the right file?"
            )
        data = path.read_bytes()
    except OSError as exc:
        raise ConfigError(
            f"{path.name}: cannot be read ({exc.strerror}); check that it is a file and its permissions"
        ) from exc
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError(
            f"{path.name}:{line}: not UTF-8 (byte 0x{data[exc.start]:02x}); save the file as UTF-8"
        ) from exc


def parse_toml(text: str, name: str = CONFIG_NAME) -> dict[str, Any]:
    """`text` as TOML. Raises ConfigError, which names the line."""
    try:
        return tomllib.loads(text)
    # Not only TOMLDecodeError: a number of thousands of digits raises a plain ValueError, deep nesting a RecursionError.
    except (ValueError, RecursionError) as exc:
        raise ConfigError(not_toml(text, exc, name)) from exc


def parse(text: str, name: str = CONFIG_NAME) -> Config:
    """The configuration in `text`. Raises ConfigError with one line for each error. `name`: the file, for messages."""
    raw = parse_toml(text, name)
    try:
        return Config.model_validate(raw)
    except ValidationError as exc:
        lines = TomlLines(text)
        # pydantic reports a value that fits none of several types once for each type, with the same text here.
        told = dict.fromkeys(_explain(error, lines, name) for error in exc.errors())
        raise ConfigError("\n".join(told)) from exc


def _explain(error: ErrorDetails, lines: TomlLines, name: str) -> str:
    # pydantic adds parts to the location that are not in the file: validators, and the types of a union.
    loc = tuple(
        part
        for part in error["loc"]
        if part not in {"[key]", "FromEnv"} and not str(part).startswith("function-")
    )
    # A validator of the whole model has no location of its own; see `model._misfit`.
    if error["type"] == "misfit":
        loc = tuple(error["ctx"]["place"])
    if loc and loc[-1] in {"str", "int", "float", "bool"}:
        loc = loc[:-1]
    field = plain(".".join(str(part) for part in loc))
    place = f"{name}:{lines.of(loc)}: " + (f"{field}: " if field else "")
    if error["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        near = nearest(str(loc[-1]), known)
        return f"{place}unknown key{near}{' Known' if near else '; known'} here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{place}missing; it is required"
    if error["type"] in {"tuple_type", "list_type"}:
        if isinstance(error["input"], dict) and len(loc) == 1:
            return f"{place}it is a list of tables; write `[[{field}]]`"
        words = (
            error["input"].split()
            if isinstance(error["input"], str) and loc[-1] == "command"
            else [error["input"]]
        )
        shape = json.dumps(words, ensure_ascii=False, default=str)[:200]
        return f"{place}it is a list, found {_show(error['input'])}; write `{loc[-1]} = {shape}`"
    # The messages of pydantic use the words of Python; the reader knows those of TOML.
    message = (
        error["msg"]
        .removeprefix("Value error, ")
        .replace("valid tuple", "list")
        .replace("valid dictionary", "table")
    )
    found = error["input"]
    shown = (
        ""
        if isinstance(found, dict) or error["type"] in {"value_error", "misfit"}
        else f", found {_show(found)}"
    )
    return f"{place}{message[0].lower()}{message[1:]}{shown}"


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def place(path: Path, *loc: str | int) -> str:
    """The beginning of a message about a key: file, line if the file can be read, and field."""
    try:
        line = f":{TomlLines(read_text(path)).of(loc)}"
    except ConfigError:
        line = ""
    return f"{path.name}{line}: {plain('.'.join(map(str, loc)))}: "


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """The keys that the table at `loc` accepts."""
    tables: dict[str, type[BaseModel]] = {"on": Rule}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Model):
            tables[name] = field.annotation
    model = tables.get(str(loc[0]), Config) if loc else Config
    if loc[:1] == ("agents",):
        model = Agent if len(loc) <= 2 else FromEnv
    return sorted(model.model_fields)


class TomlLines:
    """The line numbers of the keys of a TOML text: of tables, arrays of tables and plain keys. Inline tables are skipped."""

    # tomllib returns no positions, and a second parser would be a dependency only for messages.
    _HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
    _KEY = re.compile(
        r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+))*)\s*="""
    )

    def __init__(self, text: str) -> None:
        self._line: dict[tuple[Any, ...], int] = {}
        table: tuple[Any, ...] = ()
        count: dict[tuple[Any, ...], int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if header := self._HEADER.match(line):
                table = self._split(header[2])
                if header[1] == "[[":
                    index = count[table] = count.get(table, -1) + 1
                    table = (*table, index)
                self._line.setdefault(table, number)
            elif key := self._KEY.match(line):
                self._line.setdefault((*table, *self._split(key[1])), number)

    @staticmethod
    def _split(dotted: str) -> tuple[Any, ...]:
        return tuple(part.strip().strip("\"'") for part in re.findall(r""""[^"]*"|'[^']*'|[^.]+""", dotted))

    def of(self, loc: tuple[Any, ...]) -> int:
        """The line of `loc`, or of its longest beginning that is known; 1 if none is."""
        while loc:
            if loc in self._line:
                return self._line[loc]
            loc = loc[:-1]
        return 1
