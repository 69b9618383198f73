"""The layers of the sandbox: fence (per-file sandbox, seccomp) and wall (folder sandbox, Landlock).

It finds the active layers, checks the settings about them, and builds the ownership table for the supervisors.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aipass.errors import ConfigError
from aipass.features.ownership import guarded
from aipass.supervisor.fence import probe
from aipass.workspace.layout import CONFIG_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aipass.config.model import Config
    from aipass.workspace.layout import Layout


class Active(NamedTuple):
    """The layers that new runs get."""

    fence: bool
    wall: bool


def active(config: Config) -> Active:
    """The layers that this machine supports and the configuration does not turn off."""
    there = probe.layers()
    return Active(
        fence=there.fence is not None and config.sandbox.fence != "off",
        wall=there.wall is not None and config.sandbox.wall != "off",
    )


def described(config: Config | None) -> dict[str, str]:
    """See probe.described. `config`: None for what this machine has."""
    settings = {} if config is None else {"fence": config.sandbox.fence, "wall": config.sandbox.wall}
    return probe.described(settings)


def check_layers(config: Config) -> None:
    """Raise ConfigError if the configuration requires a layer that this machine does not support."""
    there = probe.layers()
    for layer, found, why in (
        ("fence", there.fence, there.why_no_fence),
        ("wall", there.wall, there.why_no_wall),
    ):
        if getattr(config.sandbox, layer) == "require" and found is None:
            raise ConfigError(
                f'{CONFIG_NAME}: sandbox.{layer} = "require", but this machine has no {layer}: {why}; write "auto" to run without it'
            )


def check_outside(layout: Layout, config: Config) -> None:
    """Raise ConfigError if `[sandbox] write` or `sockets` would open a way out of the sandbox."""
    root = str(layout.root)
    for entry in config.sandbox.write:
        folder = expand(entry)
        place = f"{CONFIG_NAME}: sandbox.write: `{entry}`"
        if not folder.startswith("/") or ".." in folder.split("/"):
            raise ConfigError(f"{place} is not an absolute path, nor one that begins with `~/`")
        # Links are resolved first: the kernel grants the target, and not the name.
        real = os.path.realpath(folder)
        if root == real or root.startswith(real.rstrip("/") + "/") or real.startswith(root + "/"):
            raise ConfigError(
                f"{place} holds this repository or is inside it; use `owns` or `scratch` for paths in the tree"
            )
        if ".git" in real.split("/") or ".aipass" in real.split("/"):
            raise ConfigError(f"{place} opens files of git, or of another aipass root; name another folder")
        if real in _TOO_WIDE or real == os.path.realpath(Path.home()):
            raise ConfigError(f"{place} opens far more than one tool needs; name the tool's own folder")
        if real.startswith(("/proc", "/sys")):
            raise ConfigError(
                f"{place} opens files of the kernel, by which a run could leave the sandbox; remove it"
            )
    for entry in config.sandbox.sockets:
        if not expand(entry).startswith("/"):
            raise ConfigError(f"{CONFIG_NAME}: sandbox.sockets: `{entry}` is not an absolute path")
        # Agents run as the engine's user, so a supervisor could not distinguish their requests from those of the engine.
        if "supervisor-" in entry or ".aipass" in entry.split("/"):
            raise ConfigError(
                f"{CONFIG_NAME}: sandbox.sockets: `{entry}` would let agents start runs without the engine; remove it (agents can use `aipass send`)"
            )


#: Folders that many programs share. The check is by the exact path: a folder below one of them is allowed.
_TOO_WIDE = frozenset(
    (
        "/",
        "/home",
        "/root",
        "/etc",
        "/usr",
        "/bin",
        "/lib",
        "/var",
        "/tmp",
        "/var/tmp",
        "/dev",
        "/run",
        "/opt",
        "/srv",
    )
)


def expand(entry: str) -> str:
    """A path of the configuration with `~` expanded and without a trailing slash."""
    return os.path.expanduser(entry).rstrip("/") or "/"


def table(
    layout: Layout,
    config: Config,
    phases: Iterable[Mapping[str, Any]] = (),
    nested: Iterable[str] = (),
    inner: Iterable[str] = (),
) -> dict[str, Any]:
    """The ownership table that `territory.Territory.of` reads.

    `nested`: aipass roots below this one; `inner`: git repositories.
    """
    guards = guarded.of(layout, config, inner)
    return {
        "agents": {
            name: {
                "home": config.home(name).strip("/"),
                "owns": None if agent.owns is None else list(agent.owns),
            }
            for name, agent in config.agents.items()
        },
        "phases": [dict(phase) for phase in phases],
        # pytest creates its cache under a temporary name at the root and renames it; without this the fence would
        # refuse that.
        "scratch": [*config.sandbox.scratch, "pytest-cache-files-????????/"],
        "temp": list(config.sandbox.temp),
        "nested": list(nested),
        "guarded": guards.tree,
        "frozen": list(guards.outside),
    }
