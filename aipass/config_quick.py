"""aipass.toml, parsed but not validated: for verbs that must answer at once.

The model in `config` costs the import of pydantic; whoever only needs to know which agents there are reads this.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from aipass.errors import ConfigError

if TYPE_CHECKING:
    from aipass.layout import Layout


def agents(layout: Layout) -> dict[str, dict[str, Any]]:
    """Tables by agent name; raises ConfigError where the file cannot be read or is no TOML."""
    found = raw(layout).get("agents", {})
    return (
        {name: table for name, table in found.items() if isinstance(table, dict)}
        if isinstance(found, dict)
        else {}
    )


def raw(layout: Layout) -> dict[str, Any]:
    """All of the file; raises ConfigError where it cannot be read or is no TOML."""
    try:
        return tomllib.loads(layout.config.read_bytes().decode("utf-8-sig"))
    except OSError as exc:
        raise ConfigError(f"{layout.config.name}: cannot be read ({exc.strerror})") from exc
    except (ValueError, RecursionError) as exc:
        where = re.search(r"\(at line (\d+), column \d+\)", str(exc))
        place = f"{layout.config.name}:{where[1]}" if where else layout.config.name
        raise ConfigError(f"{place}: not valid TOML: {exc}") from exc
