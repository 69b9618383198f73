"""What the engine tells supervisors about fence and wall: who owns what, and the ground that one run stands on. Pure,
but for the question which layers this machine has."""

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
    """Which layers are around new runs."""

    fence: bool
    wall: bool


def active(config: Config) -> Active:
    """The layers that this machine has and the configuration does not turn off."""
    there = probe.layers()
    return Active(
        fence=there.fence is not None and config.sandbox.fence != "off",
        wall=there.wall is not None and config.sandbox.wall != "off",
    )


def described(config: Config | None) -> dict[str, str]:
    """The layers in words, as `status` and `doctor` show them: `seccomp`, `landlock 7`, `off`, `none (why)`."""
    there = probe.layers()
    found = {
        "fence": there.fence or f"none ({there.why_no_fence})",
        "wall": there.wall or f"none ({there.why_no_wall})",
    }
    for layer in found:
        if config is not None and getattr(config.sandbox, layer) == "off":
            found[layer] = "off"
    return found


def check_layers(config: Config) -> None:
    """Raise ConfigError where a layer is required that this machine does not have."""
    there = probe.layers()
    for layer, found, why in (
        ("fence", there.fence, there.why_no_fence),
        ("wall", there.wall, there.why_no_wall),
    ):
        if getattr(config.sandbox, layer) == "require" and found is None:
            raise ConfigError(
                f'{CONFIG_NAME}: sandbox.{layer} = "require", and there is none here: {why}; write "auto" to run without it'
            )


def check_outside(layout: Layout, config: Config) -> None:
    """Raise ConfigError where `[sandbox] write` or `sockets` would open what the fence is there to close."""
    root = str(layout.root)
    for entry in config.sandbox.write:
        folder = expand(entry)
        place = f"{CONFIG_NAME}: sandbox.write: `{entry}`"
        if not folder.startswith("/") or ".." in folder.split("/"):
            raise ConfigError(f"{place} is not an absolute path, nor one that begins with `~/`")
        real = os.path.realpath(folder)
        if root == real or root.startswith(real.rstrip("/") + "/") or real.startswith(root + "/"):
            raise ConfigError(
                f"{place} holds this repository, or lies in it; use `owns` or `scratch` for what is in the tree"
            )
        if ".git" in real.split("/") or ".aipass" in real.split("/"):
            raise ConfigError(f"{place} opens git's or another aipass's own files; name a folder of its own")
        if real in _TOO_WIDE or real == os.path.realpath(Path.home()):
            raise ConfigError(
                f"{place} opens far more than a tool's own folder; name the folder that it needs"
            )
        if real.startswith(("/proc", "/sys")):
            raise ConfigError(f"{place} opens the kernel's own files, which lead out of the fence")
    for entry in config.sandbox.sockets:
        if not expand(entry).startswith("/"):
            raise ConfigError(f"{CONFIG_NAME}: sandbox.sockets: `{entry}` is not an absolute path")
        if "supervisor-" in entry or ".aipass" in entry.split("/"):
            raise ConfigError(
                f"{CONFIG_NAME}: sandbox.sockets: `{entry}` would let agents start runs of their own; ask with `aipass send`"
            )


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
    """A path of the configuration with `~` as the user's home, without a closing slash."""
    return os.path.expanduser(entry).rstrip("/") or "/"


def table(
    layout: Layout,
    config: Config,
    phases: Iterable[Mapping[str, Any]] = (),
    nested: Iterable[str] = (),
    inner: Iterable[str] = (),
) -> dict[str, Any]:
    """Who owns what, as `territory.Territory.of` reads it. `nested`: roots below this one; `inner`: repositories."""
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
        # pytest makes its cache under another name first, and renames that.
        "scratch": [*config.sandbox.scratch, "pytest-cache-files-????????/"],
        "temp": list(config.sandbox.temp),
        "nested": list(nested),
        "guarded": guards.tree,
        "frozen": list(guards.outside),
    }
