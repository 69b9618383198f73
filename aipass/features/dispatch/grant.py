"""The sandbox specification (grant) of one run or one check: what it may write besides the paths of its agent."""

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
    """The path of a run's TMPDIR, unique among all repositories of this user."""
    # Run numbers begin at 1 in every repository; the hash of the root keeps two repositories apart.
    mark = hashlib.sha256(os.fsencode(layout.root)).hexdigest()[:8]
    return f"/tmp/aipass-{os.geteuid()}/{mark}-{run}"


def cache(layout: Layout, agent: str) -> Path:
    """The folder for the caches of an agent's package managers; kept between runs, and shared with no other agent."""
    return layout.state / "cache" / agent


def of_run(layout: Layout, config: Config, job: Job, command: Command, layers: Active) -> dict[str, Any]:
    """The sandbox specification of one run, as the supervisor's start message needs it."""
    home = config.home(job.agent)
    own = [str(layout.run_spool(job.run)), str(cache(layout, job.agent)), str(job.state)]
    own += map(expand, command.state)
    # Only these files, not their folders: a file that does not exist cannot be granted, and the run cannot create it.
    sources = (os.path.realpath(expand(share.source)) for share in command.shares if share.writable)
    files = [source for source in sources if os.path.isfile(source)]
    if home.startswith(".aipass/"):
        # Everything below .aipass/ is closed to runs, so a home there needs a grant of its own.
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
    """The sandbox specification of a check: it may write unowned and ignored paths, or with `folder` only that folder."""
    return {
        "fence": layers.fence,
        "wall": layers.wall,
        # No shared cache: code of one pull request could leave a file there that runs in the checks of the next.
        "own": [folder] if folder is not None else [],
        "tmp": temporary(layout, run),
        "outside": [*map(expand, config.sandbox.write)],
        "sockets": [expand(entry) for entry in config.sandbox.sockets],
        "tree": [],
        "extra": ignored(layout.root) if folder is None else [],
    }


def ignored(root: Path) -> list[str]:
    """The patterns of every .gitignore that git tracks, relative to the root.

    They match mostly build output, which a check must be able to write.
    """
    found = []
    for folder in _ignoring(root):
        try:
            rules = lines_of(root, f"{folder}/{NAME}" if folder else NAME)
        except ValueError:
            continue  # the filesystem source reports an unusable .gitignore
        found += [_below(folder, rule) if folder else rule for rule in rules]
    # The last ones: in git a later rule, of a deeper folder, overrides an earlier one.
    return found[-5 * MAX_LINES :]


def _ignoring(root: Path) -> list[str]:
    """Folders with a .gitignore that git tracks, outermost first."""
    names = ask(root, "ls-files", "-z")
    nested = (name.rpartition("/")[0] for name in names if name.endswith("/.gitignore"))
    return ["", *sorted(nested, key=lambda folder: folder.count("/"))]


def _below(folder: str, rule: str) -> str:
    """A rule of a folder's .gitignore, rewritten as a rule relative to the root."""
    negated, rule = ("!", rule[1:]) if rule.startswith("!") else ("", rule)
    # A folder's name may contain characters that are wildcards in a pattern.
    base = "".join(f"\\{c}" if c in "*?[\\" else c for c in folder)
    anywhere = "" if "/" in rule.rstrip("/") else "**/"
    return f"{negated}/{base}/{anywhere}{rule.lstrip('/')}"


def environment(caches: Path, tmp: str, folder: Path, *, fence: bool) -> dict[str, str]:
    """The environment variables that move temporary files, caches and bytecode into folders that the run may write.

    `fence`: adds AIPASS_DENIED, the file in which the fence lists the writes that it refused.
    """
    # Without them most tools write to ~/.cache, where the sandbox refuses it, and many then fail.
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
    """The folders and existing files of the tree that the wall (Landlock) opens to an agent when the fence is off.

    Landlock knows only paths, no patterns, so each pattern opens the folder of its literal beginning.
    """
    owns = config.agents[agent].owns
    # Without `owns` an agent may write every path that no other agent owns, which no list of folders can express.
    if owns is None:
        return [str(root)]
    found = {str(root.joinpath(*_literal(pattern))) for pattern in owns if not pattern.startswith("!")}
    # A scratch pattern that matches at any depth would open the whole tree, so it has no effect without the fence.
    found |= {
        str(root.joinpath(*parts)) for pattern in config.sandbox.scratch if (parts := _literal(pattern))
    }
    return sorted(found)


def _literal(pattern: str) -> list[str]:
    """The leading folders of a pattern that contain no wildcard."""
    body = pattern.rstrip("/")
    found: list[str] = []
    if "/" in body:
        for part in body.strip("/").split("/"):
            if any(character in part for character in "*?[\\"):
                break
            found.append(part)
    return found
