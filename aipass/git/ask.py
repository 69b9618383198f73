"""Short questions to git that the engine asks on its way: bounded in time, and without locks."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Git answers in milliseconds; nobody waits for one that hangs.
TIMEOUT_S = 5.0


def ask(root: Path, *words: str) -> list[str]:
    """What git says to these words with `-z`, entry by entry; nothing where there is no git, or no repository."""
    # An engine that a hook has started must not be told about the hook's repository, index and all.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env["GIT_OPTIONAL_LOCKS"] = "0"
    command = ["git", "-c", "core.fsmonitor=false", "--literal-pathspecs", *words]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=env,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [os.fsdecode(entry) for entry in done.stdout.split(b"\0") if entry]
