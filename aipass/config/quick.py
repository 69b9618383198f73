"""aipass.toml, parsed but not validated: for verbs that must answer fast.

The model in `config.model` costs the import of pydantic. Code that only needs the names of the agents uses this module.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from aipass.errors import ConfigError

if TYPE_CHECKING:
    from aipass.workspace.layout import Layout


#: Key in the ledger's `meta` table: the agents and their drivers under the configuration in force, as JSON.
IN_FORCE = "config.agents"


def in_force(layout: Layout) -> dict[str, dict[str, Any]] | None:
    """The agents of the running engine, even if the file has changed since then; None if no engine runs."""
    # Imported here because `agents` needs neither of these as long as the file is valid.
    import json

    from aipass.ledger import Ledger
    from aipass.workspace import engine_lock

    if engine_lock.holder(layout) is None or not layout.ledger.exists():
        return None
    ledger = Ledger.read(layout.ledger)
    try:
        said = ledger.meta(IN_FORCE)
    finally:
        ledger.close()
    return {str(name): {"driver": driver} for name, driver in json.loads(said).items()} if said else None


def agents(layout: Layout) -> dict[str, dict[str, Any]]:
    """The tables of the agents, by name.

    Raises ConfigError if the file cannot be read or is not TOML, and no engine runs with an earlier version of it.
    """
    # While a person edits the file it can be invalid. The engine still works with the old one, and so do the verbs.
    try:
        found = raw(layout).get("agents", {})
    except ConfigError:
        known = in_force(layout)
        if known is None:
            raise
        return known
    # Not validated here: `agents = 1` is valid TOML as well.
    return (
        {name: table for name, table in found.items() if isinstance(table, dict)}
        if isinstance(found, dict)
        else {}
    )


def raw(layout: Layout) -> dict[str, Any]:
    """The whole file as a dict. Raises ConfigError if it cannot be read or is not TOML."""
    data = b""
    try:
        data = layout.config.read_bytes()
        # "-sig": some editors on Windows begin a file with a byte order mark, which tomllib refuses.
        return tomllib.loads(data.decode("utf-8-sig"))
    except OSError as exc:
        raise ConfigError(f"{layout.config.name}: cannot be read ({exc.strerror})") from exc
    except (ValueError, RecursionError) as exc:
        text = data.decode("utf-8-sig", "replace")
        raise ConfigError(not_toml(text, exc, layout.config.name)) from exc


def not_toml(text: str, exc: Exception, name: str) -> str:
    """The message for a text that is not TOML: file, line and reason. `exc`: what `tomllib.loads` raised."""
    # "at end of document" has no line number.
    where = re.search(r"\(at line (\d+), column (\d+)\)", str(exc))
    line = where[1] if where else str(text.rstrip("\n").count("\n") + 1)
    # From 4300 digits on, `int` raises a ValueError of its own, without a line (CPython's limit, CVE-2020-10735).
    if digits := re.search(r"[0-9_]{4300,}", text):
        line = str(text.count("\n", 0, digits.start()) + 1)
        return f"{name}:{line}: not valid TOML: a number of {len(digits[0])} digits"
    reason = re.sub(r"\s*\(at .*\)$", "", str(exc)) or "nested too deeply"
    if where and reason == "Invalid value":
        reason += (
            f" at column {where[2]}; write text in quotation marks, and `true` and `false` in lower case"
        )
    elif reason.startswith("Illegal character '\\n'"):
        reason = "a quotation mark is missing at the end"
    elif reason.startswith(("Unclosed array", "Expected ']'")) and "[" in text:
        reason += "; a `]` is missing, there or above"
    return f"{name}:{line}: not valid TOML: {reason}"
