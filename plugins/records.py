"""JSON lines that a CLI wrote, read from its output file as far as they are sound."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aipass.supervisor.wire import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Every line that is a JSON object; what else a CLI prints is passed over."""
    try:
        with open_regular(path) as file:
            for line in file:
                if not line.lstrip().startswith(b"{"):
                    continue
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                if isinstance(found, dict):
                    yield found
    except OSError:
        return


def denied(tools: Iterable[object]) -> str | None:
    """The reason of a run that was refused what it needed; None where nothing was."""
    names = sorted({str(tool) for tool in tools})
    return f"it was refused permission for {', '.join(names)}" if names else None


def no_result(code: int | None, signal: int | None, last: str) -> str:
    """The reason of a run that ended without saying how: an exit status of 0 alone is no success."""
    how = f"signal {signal}" if signal else f"exit status {code}"
    return f"it ended with {how} and without a result record" + (f": {last}" if last else "")
