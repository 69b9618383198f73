"""The environment of a run: the shell's that ran `up`, less what would lead out of the fence, plus who the run is. Pure."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from aipass.config import FromEnv
from aipass.errors import AipassError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aipass.config import Agent

#: Doors to programs that would do anything for the agent, and what belongs to another run.
REMOVED = ("TMUX", "TMUX_PANE", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST", "AIPASS_*")
#: Where the `aipass` that runs now has its command.
SCRIPTS = str(Path(sys.executable).parent)


def inherited(shell: Mapping[str, str], allowed: Iterable[str] | None) -> dict[str, str]:
    """What of the shell's environment every run gets; `allowed` are names or patterns, None all."""
    names = None if allowed is None else tuple(allowed)
    return {
        name: value
        for name, value in shell.items()
        if not _is_any(name, REMOVED) and (names is None or _is_any(name, names))
    }


def compose(
    base: Mapping[str, str],
    shell: Mapping[str, str],
    settings: Agent,
    driver: Mapping[str, str],
    own: Mapping[str, str],
) -> dict[str, str]:
    """What one run gets: `base`, then the driver's, the agent's, aipass's own; later ones win.

    aipass's own folder comes first in PATH. Raises AipassError where the agent's `env` names a variable that the shell
    does not have.
    """
    env = {**base, **driver}
    for name, value in settings.env.items():
        if isinstance(value, FromEnv):
            if value.from_env not in shell:
                raise AipassError(
                    f"env.{name} is to come from `{value.from_env}`, which the shell that ran `aipass up` does not have; set it there, then restart"
                )
            env[name] = shell[value.from_env]
        else:
            env[name] = value
    env.update(own)
    env["GIT_OPTIONAL_LOCKS"] = "0"
    env["PATH"] = SCRIPTS + ":" + env.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    return env


def _is_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
