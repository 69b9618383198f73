"""The engine encloses itself: even one that was tricked writes only the root, git's folders, and what the settings name.

A Landlock domain on this process and all that it starts, for ever; supervisors are started by a helper that was forked before. Nothing
that agents do should ever need it: it is what stands behind everything else. Linux 5.13 or newer; elsewhere nothing is done, and
`aipass doctor` says so.
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

#: Where the CLIs of forges, and ssh below git, keep what they learn; only with such a forge.
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


#: Whether this process has taken it on.
_enclosed = False


def is_possible() -> bool:
    """Whether this kernel can do it."""
    try:
        return kernel.landlock_version() > 0
    except OSError:
        return False


def writable(layout: Layout, config: Config) -> list[str]:
    """All that the engine, and what it starts, may write from then on; absolute, as far as it is there."""
    found = [str(layout.root), *wall.DEVICES, *map(expand, config.sandbox.write)]
    said = ask(layout.root, "rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir", bare=True)
    found += said[0].removesuffix("\n").split("\n") if said else []
    if config.pr.forge != LOCAL:
        found += [expand(entry) for entry in _OF_FORGES]
        # A remote may be a folder of this machine, which git then writes itself.
        url = "".join(ask(layout.root, "remote", "get-url", "--push", config.pr.remote, bare=True)).strip()
        path = url.removeprefix("file://")
        found += [path] if path.startswith("/") else []
    return [place for place in dict.fromkeys(found) if os.path.lexists(place)]


def enclose(layout: Layout, config: Config) -> bool:
    """Take it on, for this thread and all that it starts; whether it was done. Called before the first thread is started."""
    own = layout.state / "tmp" / "engine"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite, git and Python make their temporary files here from now on.
    os.environ["TMPDIR"] = str(own)
    tempfile.tempdir = str(own)
    if config.sandbox.wall == "off" or not is_possible():
        return False
    take_on(writable(layout, config))
    global _enclosed
    _enclosed = True
    return True


def after_restart(before: Config, now: Config) -> list[str]:
    """What the engine itself may write only after a restart, because the settings name it since: `[sandbox] write`, a forge's folders."""
    if not _enclosed:
        return []
    named = [entry for entry in now.sandbox.write if entry not in before.sandbox.write]
    if now.pr.forge != LOCAL and (now.pr.forge, now.pr.remote) != (before.pr.forge, before.pr.remote):
        named.append(f"what `{now.pr.forge}` keeps")
    return named


def take_on(places: Iterable[str]) -> None:
    """The domain itself. Raises OSError where the kernel refuses."""
    version = kernel.landlock_version()
    # Signals are not scoped: `down --kill` and the end of who holds a lock go past it.
    ruleset = wall.build(places, version, scoped=False)
    try:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.landlock_restrict(ruleset)
        # Nobody of this user attaches to it, or reads its memory and descriptors.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    finally:
        os.close(ruleset)


def breaks_out(places: Iterable[str], outside: Path) -> list[str]:
    """Take it on in a child and try to get out of it; what got through, in words. For `aipass doctor` and tests."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            take_on(places)
            told = ", ".join(_attempts(outside))
        except BaseException as exc:  # noqa: BLE001 - a child that is about to end tells what stopped it
            told = f"it could not be taken on ({exc!r})"
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
            continue  # the last removes what was moved, where that got through
        through.append(name)
    if kernel.prctl(kernel.PR_GET_DUMPABLE, 0):
        through.append("being traced")
    return through
