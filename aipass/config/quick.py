"""aipass.toml, parsed but not validated: for verbs that must answer at once.

The model in `config` costs the import of pydantic; whoever only needs to know which agents there are reads this.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from aipass.errors import ConfigError

if TYPE_CHECKING:
    from aipass.workspace.layout import Layout


#: Where the ledger keeps which agents there are, and by what they are driven.
IN_FORCE = "config.agents"


def in_force(layout: Layout) -> dict[str, dict[str, Any]] | None:
    """The agents that the engine which runs here knows, whatever the file says by now; None where none runs."""
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
    """Tables by agent name. Raises ConfigError where the file cannot be read or is no TOML, and no engine runs with an earlier one."""
    try:
        found = raw(layout).get("agents", {})
    except ConfigError:
        known = in_force(layout)
        if known is None:
            raise
        return known
    return (
        {name: table for name, table in found.items() if isinstance(table, dict)}
        if isinstance(found, dict)
        else {}
    )


def raw(layout: Layout) -> dict[str, Any]:
    """All of the file; raises ConfigError where it cannot be read or is no TOML."""
    data = b""
    try:
        data = layout.config.read_bytes()
        return tomllib.loads(data.decode("utf-8-sig"))
    except OSError as exc:
        raise ConfigError(f"{layout.config.name}: cannot be read ({exc.strerror})") from exc
    except (ValueError, RecursionError) as exc:
        text = data.decode("utf-8-sig", "replace")
        raise ConfigError(not_toml(text, exc, layout.config.name)) from exc


def not_toml(text: str, exc: Exception, name: str) -> str:
    """What is wrong with a text that is no TOML: file, line and reason."""
    where = re.search(r"\(at line (\d+), column (\d+)\)", str(exc))
    line = where[1] if where else str(text.rstrip("\n").count("\n") + 1)
    if digits := re.search(r"[0-9_]{4300,}", text):
        line = str(text.count("\n", 0, digits.start()) + 1)
        return f"{name}:{line}: not valid TOML: a number of {len(digits[0])} digits"
    reason = re.sub(r"\s*\(at .*\)$", "", str(exc)) or "nested too deeply"
    if where and reason == "Invalid value":
        reason += f" at column {where[2]}; text stands in quotation marks, and `true` and `false` are written in lower case"
    elif reason.startswith("Illegal character '\\n'"):
        reason = "a quotation mark is missing at the end"
    elif reason.startswith(("Unclosed array", "Expected ']'")) and "[" in text:
        reason += "; a `]` is missing, there or above"
    return f"{name}:{line}: not valid TOML: {reason}"
