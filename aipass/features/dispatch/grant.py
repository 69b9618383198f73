"""The sandbox specification of one run, or of one check: where it may write, besides what it owns."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from aipass.features.ownership.layers import expand
from aipass.git.query import ask
from aipass.sources.ignore import MAX_LINES, NAME, lines_of
from aipass.supervisor.fence.fenced import DENIED

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.config.model import Config
    from aipass.features.dispatch.driver import Command, Job
    from aipass.features.ownership.layers import Active
    from aipass.workspace.layout import Layout


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
