"""The crash report: a Markdown file that a user can file as a bug report without changes."""

from __future__ import annotations

import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

from aipass import __version__


def write_report(folder: Path, exc: BaseException, doing: str) -> Path:
    """Write a report of `exc` and return its path. `doing`: what aipass was doing, in a few words.

    If `folder` cannot be written, the report goes to the folder for temporary files, and if that fails, to stderr. Never
    raises OSError: the callers are already handling an exception.
    """
    text = f"""# aipass stopped unexpectedly: {type(exc).__name__}

{exc}

- doing: {doing}
- aipass {__version__}, Python {platform.python_version()}, {platform.platform()}
- time: {time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}

```
{"".join(traceback.format_exception(exc)).rstrip()}
```
"""
    # Digits below the second, because the engine can write several reports in one second.
    name = f"crash-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{time.time_ns() % 1_000_000:06d}.md"
    for place in (folder, Path(tempfile.gettempdir())):
        try:
            place.mkdir(parents=True, exist_ok=True)
            path = place / name
            # The text of an exception can contain a path with bytes that are not UTF-8.
            path.write_text(text, "utf-8", "backslashreplace")
        except OSError:
            continue
        return path
    print(text, file=sys.stderr)
    return Path("(printed above)")
