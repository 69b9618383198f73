"""Git hooks that tell the engine what git did: written, joined to what was there, shown and taken away again.

The roots that they tell are listed in `<common dir>/aipass/roots`; for a folder of hooks that several repositories share, in that folder's
`.aipass-roots`. The hook that was there before runs as it did, with the same arguments and stdin, and its status is the hook's: as a shell
script with a few more lines; put aside and called; or where it lies, from a folder of ours (`hookspath`).
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
#: For so many seconds one install waits for another.
PATIENCE_S = 10.0
#: So many entries of a folder of hooks are looked at; git has 28.
MOST_HOOKS = 200
#: Who may write a folder of hooks that is shared may write that file.
MAX_ROOTS_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook as it is.

    `state`: `installed`, `missing`, `folder` (one stands there, and is left alone), `other` (somebody else's stands there), `replaced` (somebody else's took the place of ours), `lost`
    (ours is gone, and what it called is still aside), `changed` (ours, edited).
    """

    name: str
    path: Path
    state: str
    #: Whether a hook of before is called by ours.
    chained: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """Where git looks for hooks, and the file with the roots that they tell.

    `calls`: the folder with the hooks that ours call, where those were not put aside, as seen from where git runs hooks.
    """

    where: Path
    roots: Path
    calls: str | None = None

    def text(self, name: str) -> bytes:
        """The whole text of a hook of ours; where a shell script is put aside, that with what is ours in it."""
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
        """The text of a hook that only calls the one that lies where it always did."""
        return hooktext.script(name, str(self.roots), self._told(), passes=True)

    def _told(self) -> tuple[str, str]:
        return str(self.where), str(self.where.parent.parent / "hooks")


def _shell(path: Path) -> bytes | None:
    """The text of a hook that git would run, and a shell reads; None where it is another program, a link, or none."""
    try:
        # A second name (hard link): what is written to the other is to be the hook's text as well.
        if path.is_symlink() or not os.access(path, os.X_OK) or path.lstat().st_nlink > 1:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    return data if hooktext.is_shell(data) else None


def called(root: Path) -> str | None:
    """The folder of hooks that commits hold, and that ours call where they lie; None where there is none."""
    return hookspath.theirs(root, _own(root))


def _place(root: Path) -> _Place:
    return _Place(folder(root), _listed(root), called(root))


def _own(root: Path) -> Path:
    """The folder of hooks that git is told of where commits hold its own."""
    return common(root) / "hooks"


def folder(root: Path) -> Path:
    """Where git looks for the hooks of the repository that holds `root`; honours core.hooksPath.

    Raises ConfigError where there is no repository.
    """
    return _path(root, "hooks")


def common(root: Path) -> Path:
    """What all worktrees of the repository share, and no commit can hold: `<git common dir>/aipass`."""
    return _path(root, "config").parent / "aipass"


def _path(root: Path, name: str) -> Path:
    # With -z git ends what it says by a newline all the same; a path may end with one itself.
    found = ask(root, "rev-parse", "--path-format=absolute", "--git-path", name, bare=True, hooks=True)
    said = found[0].removesuffix("\n") if found else ""
    if not said and ask(root, "rev-parse", "--git-dir", bare=True):
        raise ConfigError(
            f"{root}: `core.hooksPath` is empty, so git runs no hooks; `git config --unset core.hooksPath` ends that"
        )
    if not said:
        raise ConfigError(f"{root}: {no_repository(root)}")
    return Path(said)


def places(root: Path) -> list[Path]:
    """The folders that git takes hooks from, and would take them from without `core.hooksPath`; none where there is no repository."""
    words = ("rev-parse", "--path-format=absolute", "--git-path", "hooks", "--git-common-dir")
    said = ask(root, *words, bare=True, hooks=True)
    found = said[0].removesuffix("\n").split("\n") if said else []
    return [Path(one) for one in dict.fromkeys([found[0], f"{found[-1]}/hooks"])] if found else []


def links(where: Path | str) -> list[tuple[str, str]]:
    """Hooks that are links, with their own places."""
    with contextlib.suppress(OSError):
        found = [entry for entry in islice(os.scandir(where), MOST_HOOKS) if entry.is_symlink()]
        return [(entry.name, entry.path) for entry in found]
    return []


def is_shared(root: Path) -> bool:
    """Whether git takes the hooks from a folder that other repositories take theirs from as well."""
    where, ours = os.path.realpath(folder(root)), os.path.realpath(common(root).parent)
    top = _top(root)
    homes = (ours, *((os.path.realpath(top),) if top else ()))
    return not any(where.startswith(home + "/") for home in homes)


def _top(root: Path) -> str:
    return next(iter(ask(root, "rev-parse", "--show-toplevel")), "").removesuffix("\n")


def _listed(root: Path) -> Path:
    """The file with the roots that the hooks of this repository tell."""
    return folder(root) / SHARED_ROOTS if is_shared(root) else common(root) / "roots"


def status(root: Path) -> list[Hook]:
    """Each hook as it is now."""
    place = _place(root)
    return [_look(place, name) for name in ALL]


def _look(place: _Place, name: str) -> Hook:
    path = place.where / name
    chained = os.path.lexists(_aside(path))
    if path.is_symlink():
        # Ours is none, wherever it leads: to another hook, maybe, which has ours in it.
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
        # Theirs may be changed since; ours in it may not.
        wanted = hooktext.inserted(hooktext.stripped(data), name, str(place.roots))
        chained = not hooktext.is_alone(data)
    else:
        wanted = place.text(name)
    whole = data == wanted and os.access(path, os.X_OK)
    return Hook(name, path, "installed" if whole else "changed", chained)


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ASIDE)


def install(root: Path, spool: Path, wanted: Iterable[str] = HOOKS) -> list[Hook]:
    """Write every wanted hook that is not there, or into the shell script that is, and name this root to them; all others are called.

    Raises ConfigError where there is no repository, AipassError where the folder cannot be written.
    """
    if "\n" in str(root):
        raise ConfigError(f"{str(root)!r}: hooks cannot tell a root whose path holds a newline")
    where = folder(root)
    if hookspath.is_theirs(root, where, common(root).parent):
        hookspath.take_over(root, _own(root))
        where = folder(root)
    place = _place(root)
    if os.path.lexists(where) and not where.is_dir():
        raise ConfigError(
            f"{where}: is no folder, so git runs no hooks; `git config --unset core.hooksPath` ends that"
        )
    try:
        (spool / SPOOL).mkdir(mode=0o700, parents=True, exist_ok=True)
        where.mkdir(parents=True, exist_ok=True)
        with _alone(where):
            _write_all(root, place, set(wanted))
    except OSError as exc:
        raise AipassError(
            f"{exc.filename or where}: {exc.strerror}; some hooks may be written; `aipass git status` says which, and the same again goes on"
        ) from exc
    return status(root)


@contextlib.contextmanager
def _alone(where: Path) -> Iterator[None]:
    """One at a time looks at a folder of hooks and changes it. Who holds the lock for too long (anybody who may read it can) stops nobody."""
    try:
        handle = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        yield  # then there is nothing to change
        return
    try:
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
    """Have every other hook called as well: git looks for none where they are."""
    theirs = os.path.join(_top(root), place.calls or "")
    named: list[str] = []
    with contextlib.suppress(OSError):  # there is none yet
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
        _keep_edits(hook.path, place.passing(hook.name))  # one of ours that only called another until now
    if hook.state == "replaced":
        _hand_over(hook.path)
    if hook.state == "replaced" and os.path.lexists(_aside(hook.path)):
        # A manager of hooks wrote its own anew: that is the one to call. What we called until now is kept where it is another.
        _set_aside(hook.path)
    if there:
        try:
            _move(hook.path, _aside(hook.path))
        except FileExistsError:
            return  # another install was quicker: what stands there now is ours
    try:
        _write(hook.path, place.text(hook.name), _mode(hook.path))
    except BaseException:
        if there:
            os.rename(_aside(hook.path), hook.path)
        raise


def _move(path: Path, new: Path) -> None:
    """Give a file another name in its folder. Raises FileExistsError where something has that name."""
    with held.folder(os.path.realpath(path.parent)) as where:
        exchange.move(where, path.name, where, new.name)


def _hand_over(path: Path) -> None:
    """Another tool has put ours beside its own, to be called: it is given what ours called, which is somebody's hook and not that tool's."""
    aside = _aside(path)
    if _same(path, aside):
        return
    for other in path.parent.glob(f"{path.name}.*"):
        if ASIDE not in other.name and _is_ours(other) and not hooktext.is_inserted(other.read_bytes()):
            os.replace(aside, other)
            return


def _keep_edits(path: Path, wanted: bytes) -> None:
    """Somebody has edited a hook: theirs with ours in it is what is to be called, and to come back; of ours a copy is kept."""
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
    """Who may run a hook: as the one of before, where there is one."""
    aside = _aside(path)
    if _shell(aside) is None:
        return 0o755
    return stat.S_IMODE(aside.stat().st_mode)


def _mirror(where: Path) -> Path:
    """The folder in which what is aside is started by its old name: beside theirs, so that `..` leads to the same place."""
    return where.with_name(where.name + ASIDE)


def _link(where: Path) -> None:
    """Give what is aside its old name, and have all beside it that was beside it before."""
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
        return  # nobody may write beside it, or something stands there: what was there is started by the name that it has
    for name, path in aside.items():
        with contextlib.suppress(OSError):
            if path.is_symlink():
                # A link leads to where it led, which may be a hook beside it.
                (mirror / name).symlink_to(_leads(where, os.readlink(path)))
            else:
                _second(path, mirror / name)
    for name in os.listdir(where):
        if name not in aside and ASIDE not in name and not _is_ours_alone(where / name):
            with contextlib.suppress(OSError):  # a hook has put another there
                (mirror / name).symlink_to(f"../{where.name}/{name}")


def _second(path: Path, name: Path) -> None:
    """Another name of a file: one that stands when links are resolved, as Node does before it looks at a program's ending."""
    try:
        os.link(path, name)
    except OSError:  # it is another user's, or this filesystem has no such names
        name.symlink_to(f"../{path.parent.name}/{path.name}")


def _leads(where: Path, target: str) -> str:
    """Where a link of a folder of hooks leads, as seen from the folder beside: to a neighbour, by whatever way, or elsewhere."""
    folder, name = os.path.split(os.path.normpath(where / target))
    return name if name in ALL and os.path.realpath(folder) == os.path.realpath(where) else target


def _unlink(where: Path) -> None:
    mirror = _mirror(where)
    with contextlib.suppress(OSError):  # there is none, or somebody has put something into it
        if mirror.is_symlink():
            return
        for entry in list(os.scandir(mirror)):
            if entry.is_symlink():
                os.unlink(entry.path)
            elif entry.name in ALL and entry.is_file():
                _give_up(where, Path(entry.path))
        mirror.rmdir()


def _settle(where: Path) -> None:
    """Of two names of a hook that somebody has written anew, the later is the hook; what the other says is kept."""
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
    """Take away another name of a hook that is aside, or was; where it says something else by now, that is kept."""
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
    """Whether no other's hook stands there."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return not path.is_symlink() and (
        hooktext.is_alone(data) if hooktext.is_inserted(data) else hooktext.is_ours(data)
    )


def _set_aside(path: Path) -> None:
    """Make room for another `.before-aipass`, without losing what the one of before says."""
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
    """Hooks of ours that a manager of hooks keeps under another name, as `pre-commit.legacy`."""
    for name in ALL:
        for path in where.glob(f"{name}.*"):
            if ASIDE not in path.name and _is_ours(path):
                yield path


def uninstall(root: Path) -> list[Hook]:
    """Take this root's name away; with the last root the hooks go, and what stood there before comes back as it was."""
    # `core.hooksPath` may have come since: what was written into git's own folder would be back when it goes.
    own = common(root)
    if _own(root).is_dir():
        _uninstall(root, _Place(_own(root), own / "roots", called(root) or ""))
    if called(root) is None:
        for place in dict.fromkeys([_place(root), _Place(own.parent / "hooks", own / "roots")]):
            _uninstall(root, place)
    return status(root)


def left_over(root: Path) -> list[Path]:
    """Hooks of other tools in the folder that ours were in: written there while git took them from there, which it does no more."""
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
        with contextlib.suppress(OSError):  # somebody has put something into it
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
    with contextlib.suppress(NotADirectoryError):  # `core.hooksPath` names no folder
        roots.unlink(missing_ok=True)


def _bring_back(path: Path) -> None:
    """Put what stood there before in its place: as it was, or as somebody has edited it since."""
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
    """What another tool keeps under a name of its own: another's hook without what is ours, and none of ours."""
    data = path.read_bytes()
    if not hooktext.is_inserted(data):
        path.unlink()
        return
    _write(path, hooktext.stripped(data), stat.S_IMODE(path.stat().st_mode))
    aside = _aside(path.with_name(path.name.partition(".")[0]))
    if _same(path, aside):
        aside.unlink()  # that tool has it


def _is_told_from(other: Path, roots: Path) -> bool:
    """Whether another root is of the hooks that this list belongs to; in a copy of a repository stands what the original said."""
    try:
        return os.path.realpath(_listed(other)) == os.path.realpath(roots)
    except ConfigError:
        return True  # its git cannot be asked just now


def _lines(roots: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(one) + b"\n" for one in roots)


def _roots(listed: Path) -> Iterator[str]:
    """The roots that hooks tell, as far as they are there still."""
    try:
        lines = os.fsdecode(held.read(listed, MAX_ROOTS_BYTES)).split("\n")
    except OSError:
        return  # there is none, or what stands there is none
    yield from (line for line in lines if line and os.path.isdir(line))


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all: git may just be starting it."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_bytes(data)
        half.chmod(stat.S_IMODE(mode))
        half.replace(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
