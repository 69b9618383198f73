"""The installation, inspection and removal of the git hooks that notify the engine.

The roots to notify are listed in `<common dir>/aipass/roots`; for a folder of hooks that several repositories share, in that folder's
`.aipass-roots`. A hook that existed before still runs, with the same arguments and stdin, and its exit status decides. There are three ways:
a shell script gets a few more lines; another program is moved aside and called; a tracked one is called from a folder of ours (`hookspath`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from aipass.errors import AipassError, ConfigError
from aipass.files import exchange
from aipass.git import hookspath, hooktext
from aipass.git.hooktext import ALL, ASIDE, EDITED, HOOKS, SPOOL
from aipass.git.query import ask, no_repository
from aipass.supervisor import held
from aipass.workspace.layout import CONFIG_NAME

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

#: The roots of all repositories that share one folder of hooks (`git config --global core.hooksPath`).
SHARED_ROOTS = ".aipass-roots"
#: How long one install waits for another.
PATIENCE_S = 10.0
#: The most entries of a folder of hooks that are checked; git knows 28 hooks.
MOST_HOOKS = 200
#: Security: other users may write the list of roots in a shared folder of hooks.
MAX_ROOTS_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Hook:
    """The present state of one hook.

    `state`: `installed`, `missing`, `folder` (a folder has its name; left unchanged), `other` (a hook of another tool), `replaced` (another
    tool's hook took the place of ours), `lost` (ours is gone, and the hook that it called is still aside), `changed` (ours, edited).
    """

    name: str
    path: Path
    state: str
    #: Whether ours calls a hook that existed before.
    chained: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """The folder where git looks for hooks, and the file with the roots to notify.

    `calls`: the folder of the tracked hooks that ours call, relative to the folder where git runs hooks; None where hooks are moved aside.
    """

    where: Path
    roots: Path
    calls: str | None = None

    def text(self, name: str) -> bytes:
        """Return the complete text of our hook; if a shell script is aside, that script with our lines in it."""
        if self.calls is not None:
            return hooktext.script(name, str(self.roots), self._told())
        aside = _aside(self.where / name)
        data = _shell(aside) if os.path.lexists(aside) else hooktext.EMPTY
        return (
            hooktext.script(name, str(self.roots))
            if data is None
            else hooktext.inserted(data, name, str(self.roots))
        )

    def passing(self, name: str) -> bytes:
        """Return the text of a hook that only calls the tracked hook of its name."""
        return hooktext.script(name, str(self.roots), self._told(), passes=True)

    def _told(self) -> tuple[str, str]:
        return str(self.where), str(self.where.parent.parent / "hooks")


def _shell(path: Path) -> bytes | None:
    """The text of an executable shell script; None where it is another program, a link, or missing."""
    try:
        # A hard link: our lines would also change the other name's file, and a later edit there must change the hook.
        if path.is_symlink() or not os.access(path, os.X_OK) or path.lstat().st_nlink > 1:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    return data if hooktext.is_shell(data) else None


def called(root: Path) -> str | None:
    """Return the folder of the tracked hooks that ours call; None where no commit contains the hooks."""
    return hookspath.theirs(root, _own(root))


def _place(root: Path) -> _Place:
    return _Place(folder(root), _listed(root), called(root))


def _own(root: Path) -> Path:
    """The folder of our hooks beside tracked ones."""
    return common(root) / "hooks"


def folder(root: Path) -> Path:
    """Return the folder where git looks for the hooks of the repository at or above `root`; honours core.hooksPath.

    Raises ConfigError where there is no repository.
    """
    return _path(root, "hooks")


def common(root: Path) -> Path:
    """Return `<git common dir>/aipass`: all worktrees share this folder, and no commit can contain it. Raises ConfigError as `folder` does."""
    return _path(root, "config").parent / "aipass"


def _path(root: Path, name: str) -> Path:
    # Git ends this output with a newline in any case; only one is removed, because a path may end with a newline itself.
    found = ask(root, "rev-parse", "--path-format=absolute", "--git-path", name, bare=True, hooks=True)
    said = found[0].removesuffix("\n") if found else ""
    if not said and ask(root, "rev-parse", "--git-dir", bare=True):
        raise ConfigError(
            f"{root}: `core.hooksPath` is empty, so git runs no hooks; remove it with `git config --unset core.hooksPath`"
        )
    if not said:
        raise ConfigError(f"{root}: {no_repository(root)}")
    return Path(said)


def places(root: Path) -> list[Path]:
    """Return git's folder of hooks, and the one that it would use without `core.hooksPath`; empty where there is no repository."""
    words = ("rev-parse", "--path-format=absolute", "--git-path", "hooks", "--git-common-dir")
    said = ask(root, *words, bare=True, hooks=True)
    found = said[0].removesuffix("\n").split("\n") if said else []
    return [Path(one) for one in dict.fromkeys([found[0], f"{found[-1]}/hooks"])] if found else []


def links(where: Path | str) -> list[tuple[str, str]]:
    """Return the entries of a folder of hooks that are symbolic links, as pairs of name and path."""
    with contextlib.suppress(OSError):
        found = [entry for entry in islice(os.scandir(where), MOST_HOOKS) if entry.is_symlink()]
        return [(entry.name, entry.path) for entry in found]
    return []


def is_shared(root: Path) -> bool:
    """Return whether git takes the hooks from a folder outside this repository, which others may use as well. Raises ConfigError as `folder` does."""
    where, ours = os.path.realpath(folder(root)), os.path.realpath(common(root).parent)
    top = _top(root)
    homes = (ours, *((os.path.realpath(top),) if top else ()))
    return not any(where.startswith(home + "/") for home in homes)


def _top(root: Path) -> str:
    return next(iter(ask(root, "rev-parse", "--show-toplevel")), "").removesuffix("\n")


def _listed(root: Path) -> Path:
    """The file with the roots that the hooks of this repository notify."""
    return folder(root) / SHARED_ROOTS if is_shared(root) else common(root) / "roots"


def status(root: Path) -> list[Hook]:
    """Return the state of every hook in `hooktext.ALL`. Raises ConfigError where there is no repository."""
    place = _place(root)
    return [_look(place, name) for name in ALL]


def _look(place: _Place, name: str) -> Hook:
    path = place.where / name
    chained = os.path.lexists(_aside(path))
    if path.is_symlink():
        # Our hooks are never links, even if this one leads to a hook with our lines in it.
        return Hook(name, path, "replaced" if chained else "other", chained)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Hook(name, path, "lost" if chained else "missing", chained)
    except IsADirectoryError:
        return Hook(name, path, "folder", chained)
    except OSError:
        data = b""
    if not hooktext.is_ours(data):
        return Hook(name, path, "replaced" if chained else "other", chained)
    if place.calls is not None and hooktext.is_passing(data):
        return Hook(name, path, "missing", chained)
    if hooktext.is_inserted(data):
        # People may edit their own lines of the script; only a change of ours counts.
        wanted = hooktext.inserted(hooktext.stripped(data), name, str(place.roots))
        chained = not hooktext.is_alone(data)
    else:
        wanted = place.text(name)
    whole = data == wanted and os.access(path, os.X_OK)
    return Hook(name, path, "installed" if whole else "changed", chained)


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ASIDE)


def install(root: Path, spool: Path, wanted: Iterable[str] = HOOKS) -> list[Hook]:
    """Install every hook in `wanted`, register this root, and return the new states. Existing hooks still run.

    Idempotent: a second call repairs hooks that were lost, replaced or edited. Raises ConfigError where there is no repository, AipassError
    where the folder cannot be written.
    """
    if "\n" in str(root):
        raise ConfigError(
            f"{str(root)!r}: hooks cannot notify a root whose path contains a newline; rename that folder"
        )
    where = folder(root)
    if hookspath.is_theirs(root, where, common(root).parent):
        hookspath.take_over(root, _own(root))
        where = folder(root)
    place = _place(root)
    if os.path.lexists(where) and not where.is_dir():
        raise ConfigError(
            f"{where}: is not a folder, so git runs no hooks; remove the setting with `git config --unset core.hooksPath`"
        )
    try:
        (spool / SPOOL).mkdir(mode=0o700, parents=True, exist_ok=True)
        where.mkdir(parents=True, exist_ok=True)
        with _alone(where):
            _write_all(root, place, set(wanted))
    except OSError as exc:
        raise AipassError(
            f"{exc.filename or where}: {exc.strerror}; some hooks may be written already; `aipass git status` shows which, and running the command again continues"
        ) from exc
    return status(root)


@contextlib.contextmanager
def _alone(where: Path) -> Iterator[None]:
    """A lock of a folder of hooks, against a second install at the same time."""
    try:
        handle = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        yield  # without the folder there is nothing to change
        return
    try:
        # Every process that may read the folder can lock it. So the wait has a limit, and then the work goes on without the lock.
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
            else:
                break
        yield
    finally:
        os.close(handle)


def _write_all(root: Path, place: _Place, wanted: Collection[str]) -> None:
    place.roots.parent.mkdir(exist_ok=True)
    _settle(place.where)
    known = list(_roots(place.roots))
    if str(root) not in known:
        _write(place.roots, _lines([*known, str(root)]), 0o644)
    for hook in status(root):
        is_wanted = hook.name in wanted and hook.state in {"other", "missing"}
        if hook.state in {"replaced", "lost"} or is_wanted:
            _install(hook, place)
        elif hook.state == "changed":
            _keep_edits(hook.path, place.text(hook.name))
            _write(hook.path, place.text(hook.name), _mode(hook.path))
    if place.calls is None:
        _link(place.where)
    else:
        _pass_on(root, place)


def _pass_on(root: Path, place: _Place) -> None:
    """Write a hook for every tracked one: git no longer looks into their folder."""
    theirs = os.path.join(_top(root), place.calls or "")
    named: list[str] = []
    with contextlib.suppress(OSError):  # the folder of tracked hooks does not exist yet
        named = [name for name in os.listdir(theirs) if os.access(os.path.join(theirs, name), os.X_OK)]
    for name in {*hookspath.PASSED, *(name for name in named if re.fullmatch("[a-z0-9-]+", name))}:
        path = place.where / name
        wanted = place.passing(name)
        is_former = _is_ours(path) and hooktext.is_passing(path.read_bytes())
        if is_former:
            _keep_edits(path, wanted)
        if is_former or not os.path.lexists(path):
            _write(path, wanted, 0o755)


def _install(hook: Hook, place: _Place) -> None:
    there = hook.state in {"other", "replaced"}
    if hook.state == "missing" and os.path.lexists(hook.path):
        _keep_edits(hook.path, place.passing(hook.name))  # our hook that only called a tracked one until now
    if hook.state == "replaced":
        _hand_over(hook.path)
    if hook.state == "replaced" and os.path.lexists(_aside(hook.path)):
        # A hook manager wrote its hook again: that one must be called now. The former one is kept if it is different.
        _set_aside(hook.path)
    if there:
        try:
            _move(hook.path, _aside(hook.path))
        except FileExistsError:
            return  # a second install was faster: the hook is ours by now
    try:
        _write(hook.path, place.text(hook.name), _mode(hook.path))
    except BaseException:
        # Also after Ctrl-C: the repository must never be left without the hook that it had.
        if there:
            os.rename(_aside(hook.path), hook.path)
        raise


def _move(path: Path, new: Path) -> None:
    """Rename a file within its folder. Raises FileExistsError where the new name is in use."""
    with held.folder(os.path.realpath(path.parent)) as where:
        exchange.move(where, path.name, where, new.name)


def _hand_over(path: Path) -> None:
    """Give the hook that ours called to another tool which moved ours aside."""
    # That tool calls the hook which it moved aside (pre-commit: NAME.legacy). It must get the user's hook there, not ours.
    aside = _aside(path)
    if _same(path, aside):
        return
    for other in path.parent.glob(f"{path.name}.*"):
        if ASIDE not in other.name and _is_ours(other) and not hooktext.is_inserted(other.read_bytes()):
            os.replace(aside, other)
            return


def _keep_edits(path: Path, wanted: bytes) -> None:
    """Keep the edits that a user made in a hook before it is overwritten: in the hook aside, or as a copy of our lines."""
    try:
        data = path.read_bytes()
        if hooktext.is_inserted(data):
            if not hooktext.is_alone(data):
                _write(_aside(path), hooktext.stripped(data), stat.S_IMODE(path.stat().st_mode))
            data, wanted = hooktext.block(data), hooktext.block(wanted) or wanted
        if hooktext.edits(data, wanted):
            _write(path.with_name(path.name + ASIDE + EDITED), data, stat.S_IMODE(path.stat().st_mode))
    except OSError:
        return


def _mode(path: Path) -> int:
    """The file mode of our hook: that of the script it contains, else 0o755."""
    aside = _aside(path)
    if _shell(aside) is None:
        return 0o755
    return stat.S_IMODE(aside.stat().st_mode)


def _mirror(where: Path) -> Path:
    """The folder in which a moved program has its old name: a sibling of the hooks folder, so that `..` leads to the same place."""
    return where.with_name(where.name + ASIDE)


def _link(where: Path) -> None:
    """Give moved programs their old names in the mirror folder, beside links to all files that were beside them."""
    aside = {
        name: _aside(where / name)
        for name in ALL
        if os.path.lexists(_aside(where / name)) and _shell(_aside(where / name)) is None
    }
    _unlink(where)
    mirror = _mirror(where)
    if not aside:
        return
    try:
        mirror.mkdir(exist_ok=True)
    except OSError:
        return  # not writable, or the name is in use: the moved program starts under its new name
    for name, path in aside.items():
        with contextlib.suppress(OSError):
            if path.is_symlink():
                # A copy of the link, not of its target: the target may be another hook in this folder.
                (mirror / name).symlink_to(_leads(where, os.readlink(path)))
            else:
                _second(path, mirror / name)
    for name in os.listdir(where):
        if name not in aside and ASIDE not in name and not _is_ours_alone(where / name):
            with contextlib.suppress(
                OSError
            ):  # a running hook has made the same link (see the text of our hooks)
                (mirror / name).symlink_to(f"../{where.name}/{name}")


def _second(path: Path, name: Path) -> None:
    """Give a file a second name: a hard link, else a symbolic one."""
    try:
        # Node resolves symbolic links before it looks at a program's ending, so only a hard link keeps the old name.
        os.link(path, name)
    except OSError:  # another user's file, or a filesystem without hard links
        name.symlink_to(f"../{path.parent.name}/{path.name}")


def _leads(where: Path, target: str) -> str:
    """The target of a link, as seen from the mirror folder: a hook in the same folder becomes its plain name."""
    folder, name = os.path.split(os.path.normpath(where / target))
    return name if name in ALL and os.path.realpath(folder) == os.path.realpath(where) else target


def _unlink(where: Path) -> None:
    mirror = _mirror(where)
    with contextlib.suppress(OSError):  # it does not exist, or contains other files
        if mirror.is_symlink():
            return  # its files are elsewhere and not ours to remove
        for entry in list(os.scandir(mirror)):
            if entry.is_symlink():
                os.unlink(entry.path)
            elif entry.name in ALL and entry.is_file():
                _give_up(where, Path(entry.path))
        mirror.rmdir()


def _settle(where: Path) -> None:
    """Join the two names of a moved hook after a tool wrote one of them: the newer text is the hook, the older one is kept as a copy."""
    for name in ALL:
        aside, second = _aside(where / name), _mirror(where) / name
        with contextlib.suppress(OSError):
            both = [path.lstat() for path in (aside, second)]
            if all(stat.S_ISREG(found.st_mode) for found in both) and not _same(aside, second):
                kept = aside.with_name(aside.name + EDITED)
                if both[1].st_mtime_ns > both[0].st_mtime_ns:
                    os.replace(aside, kept)
                    os.replace(second, aside)
                else:
                    os.replace(second, kept)


def _give_up(where: Path, second: Path) -> None:
    """Remove the second name of a moved hook; if its text is different by now, keep it as a copy."""
    own = where / second.name
    if any(_same(second, path) for path in (own, _aside(own))):
        second.unlink()
    else:
        os.replace(second, own.with_name(own.name + ASIDE + EDITED))


def _is_ours(path: Path) -> bool:
    try:
        return not path.is_symlink() and path.is_file() and hooktext.is_ours(path.read_bytes())
    except OSError:
        return False


def _is_ours_alone(path: Path) -> bool:
    """Whether a file contains only our lines."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return not path.is_symlink() and (
        hooktext.is_alone(data) if hooktext.is_inserted(data) else hooktext.is_ours(data)
    )


def _set_aside(path: Path) -> None:
    """Free the name `.before-aipass`; a different text there gets a number and stays."""
    before = _aside(path)
    if _same(path, before):
        before.unlink()
        return
    number = 1
    while os.path.lexists(kept := before.with_name(f"{before.name}.{number}")):
        if _same(kept, before):
            before.unlink()
            return
        number += 1
    os.rename(before, kept)


def _same(one: Path, other: Path) -> bool:
    try:
        return (
            one.is_symlink() == other.is_symlink()
            and one.read_bytes() == other.read_bytes()
            and os.access(one, os.X_OK) == os.access(other, os.X_OK)
        )
    except OSError:
        return False


def _put_aside_by_others(where: Path) -> Iterator[Path]:
    """Our hooks that a hook manager keeps under another name, such as `pre-commit.legacy`."""
    for name in ALL:
        for path in where.glob(f"{name}.*"):
            if ASIDE not in path.name and _is_ours(path):
                yield path


def uninstall(root: Path) -> list[Hook]:
    """Remove this root from the list; with the last root, remove our hooks and restore the former ones. Returns the new states.

    Idempotent. Raises ConfigError where there is no repository, AipassError where a file cannot be written.
    """
    # `core.hooksPath` may be newer than our hooks: those in git's own folder would run again when the setting is removed.
    own = common(root)
    if _own(root).is_dir():
        _uninstall(root, _Place(_own(root), own / "roots", called(root) or ""))
    if called(root) is None:
        for place in dict.fromkeys([_place(root), _Place(own.parent / "hooks", own / "roots")]):
            _uninstall(root, place)
    return status(root)


def left_over(root: Path) -> list[Path]:
    """Return hooks of other tools in our former folder: a tool wrote them while git used that folder; git does not run them any more."""
    own = _own(root)
    if called(root) is not None or not own.is_dir():
        return []
    return sorted(path for path in own.iterdir() if ASIDE not in path.name and not _is_ours(path))


def _uninstall(root: Path, place: _Place) -> None:
    try:
        with _alone(place.where):
            _take_away(root, place)
    except OSError as exc:
        raise AipassError(f"{exc.filename}: {exc.strerror}") from exc


def _take_away(root: Path, place: _Place) -> None:
    where, roots = place.where, place.roots
    _settle(where)
    left = [
        one
        for one in _roots(roots)
        if one != str(root) and (Path(one) / CONFIG_NAME).is_file() and _is_told_from(Path(one), roots)
    ]
    if left:
        _write(roots, _lines(left), 0o644)
        return
    if place.calls is not None:
        for path in [path for path in where.iterdir() if ASIDE not in path.name and _is_ours(path)]:
            _keep_edits(path, place.text(path.name))
            path.unlink()
            with contextlib.suppress(FileNotFoundError):
                os.rename(_aside(path), path)
        with contextlib.suppress(OSError):  # it contains hooks of other tools: see `left_over`
            where.rmdir()
        hookspath.give_back(root, where)
        return
    for hook in [_look(place, name) for name in ALL]:
        if hook.state == "lost" or (hook.chained and hook.state in {"installed", "changed"}):
            if hook.state == "changed":
                _keep_edits(hook.path, place.text(hook.name))
            _bring_back(hook.path)
        elif hook.state in {"installed", "changed"}:
            _keep_edits(hook.path, place.text(hook.name))
            hook.path.unlink()
        elif hook.state == "replaced" and _same(hook.path, _aside(hook.path)):
            _aside(hook.path).unlink()
        elif hook.state == "replaced":
            _hand_over(hook.path)
    for path in _put_aside_by_others(where):
        _take_out(path)
    _unlink(where)
    with contextlib.suppress(NotADirectoryError):  # `core.hooksPath` names a file
        roots.unlink(missing_ok=True)


def _bring_back(path: Path) -> None:
    """Restore the former hook, with the edits that a user has made since."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if hooktext.is_inserted(data) and hooktext.stripped(data) != _shell(_aside(path)):
        _write(path, hooktext.stripped(data), stat.S_IMODE(path.stat().st_mode))
        _aside(path).unlink(missing_ok=True)
    else:
        os.replace(_aside(path), path)


def _take_out(path: Path) -> None:
    """Remove our lines from a hook that another tool keeps under its own name; a hook of ours alone is deleted."""
    data = path.read_bytes()
    if not hooktext.is_inserted(data):
        path.unlink()
        return
    _write(path, hooktext.stripped(data), stat.S_IMODE(path.stat().st_mode))
    aside = _aside(path.with_name(path.name.partition(".")[0]))
    if _same(path, aside):
        aside.unlink()  # that tool keeps the hook, so no second copy is needed


def _is_told_from(other: Path, roots: Path) -> bool:
    """Whether another root uses the hooks of this list."""
    # A copied repository also has the original's list, and those roots use the hooks of the original.
    try:
        return os.path.realpath(_listed(other)) == os.path.realpath(roots)
    except ConfigError:
        return True  # git cannot answer for it now: its entry must not be lost


def _lines(roots: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(one) + b"\n" for one in roots)


def _roots(listed: Path) -> Iterator[str]:
    """The listed roots that still exist."""
    try:
        lines = os.fsdecode(held.read(listed, MAX_ROOTS_BYTES)).split("\n")
    except OSError:
        return  # no list, or not a plain file
    yield from (line for line in lines if line and os.path.isdir(line))


def _write(path: Path, data: bytes, mode: int) -> None:
    # Atomic: git may start this hook at the same moment.
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_bytes(data)
        half.chmod(stat.S_IMODE(mode))
        half.replace(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
