"""A crash report that already is a bug report: Markdown, with all that its reader will ask for."""

from __future__ import annotations

import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

from aipass import __version__


def write_report(folder: Path, exc: BaseException, doing: str) -> Path:
    """Write what happened to `folder`, or where that cannot be had, to the folder for temporary files; returns the path."""
    text = f"""# aipass stopped unexpectedly: {type(exc).__name__}

{exc}

- doing: {doing}
- aipass {__version__}, Python {platform.python_version()}, {platform.platform()}
- time: {time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}

```
{"".join(traceback.format_exception(exc)).rstrip()}
```
"""
    name = f"crash-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{time.time_ns() % 1_000_000:06d}.md"
    for place in (folder, Path(tempfile.gettempdir())):
        try:
            place.mkdir(parents=True, exist_ok=True)
            path = place / name
            path.write_text(text, "utf-8", "backslashreplace")
        except OSError:
            continue
        return path
    print(text, file=sys.stderr)
    return Path("(printed above)")
