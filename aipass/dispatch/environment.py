"""The environment of a run: the shell's that ran `up`, less what would lead out of the fence, plus who the run is. Pure."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from aipass.config import FromEnv
from aipass.errors import AipassError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aipass.config import Agent

#: Doors to programs that would do anything for the agent, and what belongs to another run.
REMOVED = ("TMUX", "TMUX_PANE", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST", "AIPASS_*")


def compose(
    shell: Mapping[str, str],
    allowed: Iterable[str] | None,
    settings: Agent,
    driver: Mapping[str, str],
    own: Mapping[str, str],
    scripts: str,
) -> dict[str, str]:
    """What a run gets: later ones win. `scripts` is aipass's own folder, first in PATH.

    Raises AipassError where the agent's `env` names a variable that the shell does not have.
    """
    names = None if allowed is None else tuple(allowed)
    env = {
        name: value
        for name, value in shell.items()
        if not _is_any(name, REMOVED) and (names is None or _is_any(name, names))
    }
    env.update(driver)
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
    env["PATH"] = scripts + ":" + env.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    return env


def _is_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
