"""What the engine tells supervisors about fence and wall: who owns what, and the ground that one run stands on. Pure,
but for the question which layers this machine has."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aipass import guarded
from aipass.errors import ConfigError
from aipass.git.ask import ask
from aipass.layout import CONFIG_NAME
from aipass.sources.ignore import MAX_LINES, NAME, lines_of
from aipass.supervisor.fence import probe
from aipass.supervisor.fence.fenced import DENIED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aipass.config import Config
    from aipass.dispatch.driver import Command, Job
    from aipass.layout import Layout


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


def temporary(layout: Layout, run: int) -> str:
    """The TMPDIR of a run: its own among all repositories of this user."""
    mark = hashlib.sha256(os.fsencode(layout.root)).hexdigest()[:8]
    return f"/tmp/aipass-{os.geteuid()}/{mark}-{run}"


def cache(layout: Layout, agent: str) -> Path:
    """Where an agent's package managers keep what they fetched."""
    return layout.state / "cache" / agent


def of_run(layout: Layout, config: Config, job: Job, command: Command, layers: Active) -> dict[str, Any]:
    """The ground of one run, for its start message."""
    home = config.home(job.agent)
    own = [str(layout.run_spool(job.run)), str(cache(layout, job.agent)), str(job.state)]
    own += map(expand, command.state)
    # The files themselves, and nothing that could be put in their place: what is not there is not to be made either.
    sources = (os.path.realpath(expand(share.source)) for share in command.shares if share.writable)
    files = [source for source in sources if os.path.isfile(source)]
    if home.startswith(".aipass/"):
        own.append(str(layout.root / home))
    return {
        "fence": layers.fence,
        "wall": layers.wall,
        "own": own,
        "tmp": temporary(layout, job.run),
        "outside": [*map(expand, config.sandbox.write), *map(expand, command.writes)],
        "files": files,
        "sockets": [expand(entry) for entry in config.sandbox.sockets],
        "tree": tree(layout.root, config, job.agent),
    }


def of_check(
    layout: Layout, config: Config, run: int, layers: Active, folder: str | None = None
) -> dict[str, Any]:
    """The ground of checks: what is nobody's, what git ignores, and nothing else of the tree; with a `folder` only that."""
    return {
        "fence": layers.fence,
        "wall": layers.wall,
        # A cache of its own, which ends with it: what one PR's code leaves there would run in the checks of the next.
        "own": [folder] if folder is not None else [],
        "tmp": temporary(layout, run),
        "outside": [*map(expand, config.sandbox.write)],
        "sockets": [expand(entry) for entry in config.sandbox.sockets],
        "tree": [],
        "extra": ignored(layout.root) if folder is None else [],
    }


def ignored(root: Path) -> list[str]:
    """The patterns of every .gitignore that git knows of, as from the root: build output and the like."""
    found = []
    for folder in _ignoring(root):
        try:
            rules = lines_of(root, f"{folder}/{NAME}" if folder else NAME)
        except ValueError:
            continue  # whoever watches the tree tells of it
        found += [_below(folder, rule) if folder else rule for rule in rules]
    return found[-5 * MAX_LINES :]


def _ignoring(root: Path) -> list[str]:
    """Folders with a .gitignore that is committed, outermost first."""
    names = ask(root, "ls-files", "-z")
    nested = (name.rpartition("/")[0] for name in names if name.endswith("/.gitignore"))
    return ["", *sorted(nested, key=lambda folder: folder.count("/"))]


def _below(folder: str, rule: str) -> str:
    """A rule of a folder's .gitignore as one of the root's."""
    negated, rule = ("!", rule[1:]) if rule.startswith("!") else ("", rule)
    base = "".join(f"\\{c}" if c in "*?[\\" else c for c in folder)
    anywhere = "" if "/" in rule.rstrip("/") else "**/"
    return f"{negated}/{base}/{anywhere}{rule.lstrip('/')}"


def environment(caches: Path, tmp: str, folder: Path, *, fence: bool) -> dict[str, str]:
    """What makes programs keep their temporary files, caches and bytecode in the run's own folders; and where a `fence`
    says what it has refused.
    """
    return {
        "TMPDIR": tmp,
        "XDG_CACHE_HOME": str(caches),
        "PIP_CACHE_DIR": str(caches / "pip"),
        "UV_CACHE_DIR": str(caches / "uv"),
        "npm_config_cache": str(caches / "npm"),
        "YARN_CACHE_FOLDER": str(caches / "yarn"),
        "PYTHONPYCACHEPREFIX": str(caches / "pycache"),
        "GOCACHE": str(caches / "go-build"),
        "GOMODCACHE": str(caches / "go-mod"),
        "IPYTHONDIR": str(caches / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(caches / "jupyter"),
        "MPLCONFIGDIR": str(caches / "matplotlib"),
        "NUMBA_CACHE_DIR": str(caches / "numba"),
        "RUFF_CACHE_DIR": str(caches / "ruff"),
        "MYPY_CACHE_DIR": str(caches / "mypy"),
        "DENO_DIR": str(caches / "deno"),
        "COREPACK_HOME": str(caches / "corepack"),
        "BUN_INSTALL_CACHE_DIR": str(caches / "bun"),
        "NUGET_PACKAGES": str(caches / "nuget"),
        "COMPOSER_CACHE_DIR": str(caches / "composer"),
        "GRADLE_USER_HOME": str(caches / "gradle"),
        "CCACHE_DIR": str(caches / "ccache"),
        **({"AIPASS_DENIED": str(folder / DENIED)} if fence else {}),
    }


def tree(root: Path, config: Config, agent: str) -> list[str]:
    """Where the fence is off, how wide the wall must be in the tree: folders, and files that exist."""
    owns = config.agents[agent].owns
    if owns is None:
        return [str(root)]
    found = {str(root.joinpath(*_literal(pattern))) for pattern in owns if not pattern.startswith("!")}
    # A scratch pattern for anywhere would open everything: without the fence those are done without.
    found |= {
        str(root.joinpath(*parts)) for pattern in config.sandbox.scratch if (parts := _literal(pattern))
    }
    return sorted(found)


def _literal(pattern: str) -> list[str]:
    """The folders that a pattern begins with by name."""
    body = pattern.rstrip("/")
    found: list[str] = []
    if "/" in body:
        for part in body.strip("/").split("/"):
            if any(character in part for character in "*?[\\"):
                break
            found.append(part)
    return found
