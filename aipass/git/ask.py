"""Short questions to git that the engine asks on its way: bounded in time, and without locks."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Whatever lies in the tree is an agent's to write: no folder there is taken for a repository because it looks like one, and
#: no program is started that a configuration names.
QUIET = (
    "-c",
    "core.fsmonitor=false",
    "-c",
    "log.showSignature=false",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "safe.bareRepository=explicit",
)
#: Git answers in milliseconds; nobody waits for one that hangs.
TIMEOUT_S = 5.0


def ask(root: Path, *words: str, bare: bool = False, hooks: bool = False) -> list[str]:
    """What git says to these words with `-z`, entry by entry; nothing where there is no git, or no repository.

    `bare`: a bare repository is one as well; for what people ask for themselves. `hooks`: as configured.
    """
    # An engine that a hook has started must not be told about the hook's repository, index and all.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env["GIT_OPTIONAL_LOCKS"] = "0"
    quiet = QUIET[:4] if hooks else QUIET[:-2] if bare else QUIET
    command = ["git", *quiet, "--literal-pathspecs", *words]
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
