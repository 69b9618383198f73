"""The sandbox of the engine itself: a Landlock domain in which it can write only the root, git's folders and configured paths.

It is a second line of defence, in case an agent tricks the engine into a write outside the root. It lasts until the process
ends and covers all its children; supervisors are started by a helper that was forked before. It needs Linux 5.13 or newer;
elsewhere nothing is done, and `aipass doctor` reports it.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from aipass.config.model import LOCAL
from aipass.features.ownership.layers import expand
from aipass.git.query import ask
from aipass.supervisor.fence import kernel, wall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from aipass.config.model import Config
    from aipass.workspace.layout import Layout

#: The files that the CLIs of forges, and ssh below git, write: tokens, caches, known hosts. Opened only with such a forge.
_OF_FORGES = (
    "~/.config/gh",
    "~/.local/state/gh",
    "~/.local/share/gh",
    "~/.cache/gh",
    "~/.config/glab-cli",
    "~/.cache/glab-cli",
    "~/.ssh/known_hosts",
    "~/.ssh/known_hosts.old",
)


#: Whether this process is in the domain, which cannot be widened later.
_enclosed = False


def is_possible() -> bool:
    """Whether this kernel has Landlock."""
    try:
        return kernel.landlock_version() > 0
    except OSError:
        return False


def writable(layout: Layout, config: Config) -> list[str]:
    """The existing absolute paths that the engine and its child processes must be able to write."""
    found = [str(layout.root), *wall.DEVICES, *map(expand, config.sandbox.write)]
    said = ask(layout.root, "rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir", bare=True)
    found += said[0].removesuffix("\n").split("\n") if said else []
    if config.pr.forge != LOCAL:
        found += [expand(entry) for entry in _OF_FORGES]
        # A remote may be a local folder, which `git push` then writes directly.
        url = "".join(ask(layout.root, "remote", "get-url", "--push", config.pr.remote, bare=True)).strip()
        path = url.removeprefix("file://")
        found += [path] if path.startswith("/") else []
    return [place for place in dict.fromkeys(found) if os.path.lexists(place)]


def enclose(layout: Layout, config: Config) -> bool:
    """Put this process into the domain; returns False if `sandbox.wall` is off or the kernel has no Landlock.

    Must be called before the first thread starts: the kernel encloses only the calling thread and what it starts.
    """
    own = layout.state / "tmp" / "engine"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite, git and Python create temporary files here: /tmp is outside the domain.
    os.environ["TMPDIR"] = str(own)
    tempfile.tempdir = str(own)
    if config.sandbox.wall == "off" or not is_possible():
        return False
    take_on(writable(layout, config))
    global _enclosed
    _enclosed = True
    return True


def after_restart(before: Config, now: Config) -> list[str]:
    """The newly configured paths that the engine can write only after a restart.

    They come from `[sandbox] write`, or are the folders of a forge.
    """
    # A Landlock domain cannot be widened.
    if not _enclosed:
        return []
    named = [entry for entry in now.sandbox.write if entry not in before.sandbox.write]
    if now.pr.forge != LOCAL and (now.pr.forge, now.pr.remote) != (before.pr.forge, before.pr.remote):
        named.append(f"the files of `{now.pr.forge}`")
    return named


def take_on(places: Iterable[str]) -> None:
    """Restrict the calling thread and its future children to writes below `places`.

    Raises OSError if the kernel refuses.
    """
    version = kernel.landlock_version()
    # Signals are not restricted: the engine must be able to end supervisors and processes that hold a lock.
    ruleset = wall.build(places, version, scoped=False)
    try:
        # Landlock requires it of a process without privileges: a setuid program must not start with restrictions.
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.landlock_restrict(ruleset)
        # Other processes of this user can no longer attach to it (ptrace), or read its memory and descriptors.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    finally:
        os.close(ruleset)


def breaks_out(places: Iterable[str], outside: Path) -> list[str]:
    """Test the domain: a child process enters it and tries to write outside; returns the successful attempts, in words.

    For `aipass doctor` and tests.
    """
    # In a child, because a process cannot leave the domain again.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            take_on(places)
            told = ", ".join(_attempts(outside))
        except BaseException as exc:  # noqa: BLE001 - the child must end here, and report the error
            told = f"the sandbox could not be applied ({exc!r})"
        os.write(writer, told.encode("utf-8", "replace"))
        os._exit(0)
    os.close(writer)
    said = b""
    while piece := os.read(reader, 4096):
        said += piece
    os.close(reader)
    os.waitpid(child, 0)
    return [one for one in said.decode().split(", ") if one]


def _attempts(outside: Path) -> list[str]:
    there = outside / "there"
    tries: dict[str, Callable[[], object]] = {
        "writing a file": lambda: there.write_text("x"),
        "truncating a file": lambda: os.truncate(there, 0),
        "making a file": lambda: (outside / "new").touch(),
        "making a folder": lambda: (outside / "folder").mkdir(),
        "making a link": lambda: (outside / "link").symlink_to("there"),
        "renaming a file": lambda: there.rename(outside / "there"),
        "moving a file": lambda: there.rename(outside / "moved"),
        "removing a file": (outside / "moved").unlink,
    }
    through = []
    for name, attempt in tries.items():
        try:
            attempt()
        except (PermissionError, FileNotFoundError):
            # FileNotFoundError: the last attempt needs a file that exists only if an earlier attempt succeeded.
            continue
        through.append(name)
    if kernel.prctl(kernel.PR_GET_DUMPABLE, 0):
        through.append("being traced")
    return through
