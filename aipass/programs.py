"""The programs that aipass itself starts: found outside all folders that agents can write, with a clean environment.

Such a program runs outside the fence (per-file sandbox). It is therefore never looked up in the repository, in another
root, in the temporary folder of a run, or by a relative PATH entry; the PATH of its own children has none of these.
Only the supervisor starts processes without this module; `tests/features/ownership/test_guarded.py` enforces that.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shlex
import signal
import subprocess
import sys
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from aipass.errors import AipassError
from aipass.supervisor import held, process
from aipass.workspace.layout import CONFIG_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

#: Every program that aipass starts by name, with the purpose. The forge of a plugin can start its own through `run`.
STARTED = {
    "git": "the repository: what git did, PRs, merges, the file list",
    "gh": 'PRs on GitHub, with `[pr] forge = "gh"`',
    "glab": 'merge requests on GitLab, with `[pr] forge = "glab"`',
    "cat": "a probe of `aipass doctor`",
    "sh": "the checks of plans and merges, inside the fence",
}
#: The folders that are used if PATH has no safe folder.
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
#: The longest path on Linux (PATH_MAX); the number of `.pth` files that are read for one Python; the bytes of each. An
#: agent can write an environment with more and larger ones, to keep the engine busy.
MAX_PATH_BYTES, MOST_PTH, MAX_PTH_BYTES = 4096, 200, 100_000
#: Folders in which a run can create entries. A program directly in one of them is never used.
SHARED_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
#: Variables from which git, Python, Perl, Node, Ruby, a shell or the dynamic linker take code or another repository. All
#: of `GIT_` is dropped, except settings that a person makes for all repositories of this machine.
_DROPPED = ("GIT_", "PYTHON", "PERL5", "LD_", "DYLD_", "RUBY", "AIPASS_", "BASH_FUNC_")
_DROPPED_NAMES = frozenset(("NODE_OPTIONS", "NODE_PATH", "BASH_ENV", "ENV", "PAGER", "EDITOR", "VISUAL"))
_KEPT = frozenset(
    (
        "GIT_CONFIG_NOSYSTEM",
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_SYSTEM",
        "GIT_COMMITTER_NAME",
        "GIT_COMMITTER_EMAIL",
        "GIT_SSH",
        "GIT_SSH_COMMAND",
        "GIT_ASKPASS",
        "GIT_CEILING_DIRECTORIES",
    )
)


class Programs:
    """The programs on PATH for the engine of one root. Which folders are safe is determined once, at construction."""

    def __init__(self, root: str, shell: str) -> None:
        """`root`: an absolute path without links. `shell`: PATH of the shell, unfiltered."""
        self.root, self.shell = root, shell
        folders = dict.fromkeys((shell or SYSTEM_PATH).split(":"))
        self._folders = [folder for folder in folders if is_safe(folder, root)]
        self._found: dict[str, str] = {}

    @property
    def path(self) -> str:
        """PATH without the folders that agents can write; never empty."""
        return ":".join(self._folders) or SYSTEM_PATH

    def find(self, name: str) -> str | None:
        """The absolute path of a program; None if no safe folder of PATH has it. The result is kept while the file exists."""
        if (known := self._found.get(name)) is not None and is_program(known):
            return known
        for folder in self._folders:
            found = os.path.join(folder, name)
            # A safe folder can contain a link to a program in the repository, such as one of `npm link` or `pip install -e`.
            if is_program(found) and not is_agents(os.path.realpath(found), self.root):
                self._found[name] = found
                return found
        return None

    def hidden(self, name: str) -> str | None:
        """The program that a shell would start for this name, if aipass refuses it because agents can write it; or None."""
        for folder in self.shell.split(":"):
            found = os.path.join(folder or ".", name)
            if is_program(found):
                return os.path.abspath(found) if found != self.find(name) else None
        return None


@lru_cache(maxsize=64)
def _of(root: str, shell: str) -> Programs:
    return Programs(root, shell)


def of(root: Path | str) -> Programs:
    """The programs for a root, according to PATH of this process. Cached for each pair of root and PATH."""
    return _of(os.path.realpath(root), os.environ.get("PATH", SYSTEM_PATH))


def is_program(path: str) -> bool:
    """Whether the path is a file that this user can execute."""
    return os.path.isfile(path) and os.access(path, os.X_OK)


def is_safe(folder: str, root: str) -> bool:
    """Whether no agent can write a folder of PATH, by its name and by the target of its links. Relative folders are unsafe."""
    return folder.startswith("/") and not any(
        is_agents(place, root) for place in {os.path.normpath(folder), os.path.realpath(folder)}
    )


def is_agents(path: str, root: str) -> bool:
    """Whether an agent of this root, or of another root, can write an absolute path."""
    if path == root or path.startswith(root.rstrip("/") + "/") or path in SHARED_TEMPORARY:
        return True
    # The temporary folder of this user's runs (`TMPDIR`).
    mine = tuple(f"{shared}/aipass-{os.geteuid()}" for shared in SHARED_TEMPORARY)
    if any(path == one or path.startswith(one + "/") for one in mine):
        return True
    return any(os.path.isfile(os.path.join(above, CONFIG_NAME)) for above in _upward(path))


def _upward(path: str) -> Iterator[str]:
    while True:
        yield path
        above = os.path.dirname(path)
        if above == path:
            return
        path = above


def environment(root: Path | str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a program that aipass starts: `base` (default: that of this process), filtered.

    Variables from which programs load code and the repository of a git hook are removed; PATH has only safe folders.
    """
    env = {
        name: value
        for name, value in (os.environ if base is None else base).items()
        if name in _KEPT or not (name.startswith(_DROPPED) or name in _DROPPED_NAMES)
    }
    # A filter or a helper that is Python must not find its modules in the tree.
    return env | {"PATH": of(root).path, "PYTHONSAFEPATH": "1"}


def require(name: str, root: Path | str) -> str:
    """The absolute path of a program. Raises ProgramMissingError, which also names a program that was refused."""
    programs = of(root)
    found = programs.find(name)
    if found is None:
        hidden = programs.hidden(name)
        raise ProgramMissingError(
            f"`{name}` is not installed"
            + (
                f" outside the repository; {hidden} is not started, because agents can write there"
                if hidden
                else ""
            )
            + f"; install it in a folder of PATH (aipass looks in {programs.path})"
        )
    return found


class ProgramMissingError(AipassError):
    """A program that aipass needs is in no folder of PATH that is safe from agents."""


def run(
    root: Path | str,
    words: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    base: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    **how: Any,  # noqa: ANN401 - the arguments of subprocess.run
) -> subprocess.CompletedProcess[Any]:
    """Find a program by its name, run it and wait, in `cwd` (default: the root), with `environment(root, base)` and `env`.

    Takes and returns what `subprocess.run` does, without `check`. Raises ProgramMissingError if there is no such program,
    and the exceptions of `subprocess.run`; after an exception the program and all its descendants are killed.
    """
    command = [require(words[0], root), *words[1:]]
    whole = {**environment(root, base), **(env or {})}
    given, timeout = how.pop("input", None), how.pop("timeout", None)
    if how.pop("capture_output", False):
        how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    how.setdefault("stdin", subprocess.DEVNULL if given is None else subprocess.PIPE)
    with subprocess.Popen(command, cwd=cwd or root, env=whole, **how) as started:
        _running.add(started)
        try:
            said, complained = started.communicate(given, timeout)
        except BaseException:
            # With its descendants: a filter that hangs and keeps the pipe open would keep git, and this wait, alive.
            _end(started)
            raise
        finally:
            _running.discard(started)
    return subprocess.CompletedProcess(command, started.returncode, said, complained)


#: The processes that `run` waits for at this moment, in all threads.
_running: set[subprocess.Popen[Any]] = set()


def end_all() -> None:
    """Kill all processes that `run` waits for, with their descendants. For a process that is about to exit."""
    for started in list(_running):
        _end(started)


def _end(started: subprocess.Popen[Any]) -> None:
    table = process.table()
    doomed = {started.pid}
    while more := {one.pid for one in table.values() if one.ppid in doomed} - doomed:
        doomed |= more
    # By the entries of the table, which have the start time: a pid can belong to another process by now.
    for pid in doomed:
        if pid in table:
            process.send(table[pid], signal.SIGKILL)


def python(*words: str) -> list[str]:
    """A command line of this Python that ignores the current folder (`-P`) and variables such as PYTHONPATH (`-E`)."""
    return [sys.executable, "-E", "-P", *words]


def aipass(*words: str) -> list[str]:
    """A command line of this aipass, isolated as `python` is."""
    return python("-m", "aipass", *words)


def for_run(program: str, path: str, root: Path | str) -> str:
    """The program that a run starts, looked up in the run's own PATH (`path`). Safe folders have precedence.

    A program that only an unsafe folder has is returned as well; the caller decides whether it is acceptable. A word that
    contains a slash or that no folder has is returned unchanged.
    """
    if "/" in program or not program:
        return program
    top = os.path.realpath(root)
    scripts = os.path.dirname(sys.executable)
    folders = [folder for folder in path.split(":") if folder]
    # The folder of this `aipass` is safe even inside the repository: no agent can write what runs aipass.
    safe = [folder for folder in folders if folder == scripts or is_safe(folder, top)]
    for folder in (*safe, *folders):
        found = os.path.join(top, folder, program)
        if is_program(found):
            return found
    return program


def is_plain(program: str) -> bool:
    """Whether a program is machine code, or a script of the system's packages that is not for Python."""
    # It cannot be known what any other program loads: an interpreter looks for modules in many places, and a shim or a
    # wrapper starts a program that the current folder selects.
    real = os.path.realpath(program)
    first = _first_lines(real)[0]
    if first.startswith(_MACHINE_CODE):
        return True
    return os.path.dirname(real) in _OF_SYSTEM and first.startswith(b"#!") and b"python" not in first


#: First bytes of ELF and of the forms of Mach-O
#: (https://github.com/apple-oss-distributions/xnu, EXTERNAL_HEADERS/mach-o/loader.h, fat.h).
_MACHINE_CODE = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
#: Folders in which only packages of the system install programs.
_OF_SYSTEM = frozenset(("/bin", "/sbin", "/usr/bin", "/usr/sbin"))


def _found(python: str, root: Path | str) -> str:
    return python if python.startswith("/") else of(root).find(python) or python


def imported_from(program: str, root: Path | str) -> list[str]:
    """The folders from which a Python imports because a project was installed in editable form (`pip install -e`).

    `program`: the path of a Python or of a Python script; for other programs the result is empty. Reads the first two
    lines of the script and the `.pth` files of its Python. This is a help for people and no security boundary: an
    interpreter has more ways to find a module.
    """
    found: list[str] = []
    for name in [program] if is_python(program) else _pythons_of(program):
        for folder in _packages_of(_found(name, root)):
            for pth in islice(glob.iglob(f"{glob.escape(folder)}/*.pth"), MOST_PTH):
                found += _named_by_pth(pth)
    return found


def pythons_of(program: str, root: Path | str) -> list[str]:
    """The Pythons that run a program, the targets of their links, and their package folders; empty for other programs."""
    found: list[str] = []
    for name in [program] if is_python(program) else _pythons_of(program):
        python = _found(name, root)
        found += [python, os.path.realpath(python), *_packages_of(python)]
    return found


def _pythons_of(script: str) -> list[str]:
    """The Pythons that the first two lines of a script name."""
    # The kernel limits the length of a `#!` line (127 bytes before Linux 5.1). For a longer path, pip writes `#!/bin/sh`
    # and names the Python in the second line.
    first, *others = _first_lines(os.path.realpath(script))
    if not first.startswith(b"#!"):
        return []
    words = os.fsdecode(first[2:]).split()
    for line in others:
        if line.startswith(b"'''exec' "):
            with contextlib.suppress(ValueError):
                words += shlex.split(os.fsdecode(line.removeprefix(b"'''exec' ")))[:1]
    return [word for word in words if is_python(word)]


def is_python(word: str) -> bool:
    """Whether a word is the name or the path of a Python."""
    return os.path.basename(word).startswith(("python", "pypy"))


def _first_lines(path: str) -> list[bytes]:
    # Only a regular file: to open a FIFO that an agent made would block the engine until a process writes into it.
    try:
        with held.open_regular(path) as file:
            return file.read(2 * MAX_PATH_BYTES).split(b"\n")[:2]
    except OSError:
        return [b""]


def _packages_of(python: str) -> Iterator[str]:
    """The package folders of a Python: of its virtual environment, or of the system and the user."""
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(python)))
    is_venv = os.path.isfile(os.path.join(prefix, "pyvenv.cfg"))
    real = os.path.realpath(python)
    version = (
        os.path.basename(real) if re.fullmatch(r"(?:python|pypy)\d\.\d+", os.path.basename(real)) else "py*"
    )
    if is_venv:
        yield from glob.iglob(f"{glob.escape(prefix)}/lib*/py*/*-packages")
        try:
            place = os.path.realpath(os.path.join(prefix, "pyvenv.cfg"))
            config = held.read(place, MAX_PTH_BYTES).lower().replace(b" ", b"")
        except OSError:
            config = b""
        if b"include-system-site-packages=true" not in config:
            return
        prefix = os.path.dirname(os.path.dirname(real))
    else:
        # A link in another folder, such as `~/bin/python`: Python takes its prefix from the target.
        yield from glob.iglob(f"{glob.escape(os.path.dirname(os.path.dirname(real)))}/lib*/py*/*-packages")
    for base, name in (
        (prefix, "py*"),
        (os.path.join(prefix, "local"), "py*"),
        (os.path.expanduser("~/.local"), version),
    ):
        yield from glob.iglob(f"{glob.escape(base)}/lib*/{name}/*-packages")


def _named_by_pth(pth: str) -> Iterator[str]:
    try:
        lines = held.read(os.path.realpath(pth), MAX_PTH_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        entry = line.strip()
        if finder := re.match(r"import (__editable__\w+_finder)\b", entry):
            # setuptools writes a finder module for a project without `src/`; it has the folders of the packages as literals.
            with contextlib.suppress(OSError):
                place = os.path.realpath(os.path.join(os.path.dirname(pth), f"{finder[1]}.py"))
                text = held.read(place, MAX_PTH_BYTES)
                yield from re.findall(r"'(/[^'\n]+)'", text.decode("utf-8", "replace"))
        elif entry and not entry.startswith(("#", "import ", "import\t")):
            yield os.path.normpath(os.path.join(os.path.dirname(pth), entry))


#: Expressions of a shell for the top of the working tree, which is the current folder when git starts a command.
_TOP = re.compile(
    r"\$(?:(?:PWD|AIPASS_ROOT)\b|\{(?:PWD|AIPASS_ROOT)\})|(?:\$\(|`)\s*(?:pwd|git rev-parse --show-toplevel)\s*(?:\)|`)"
)


def expanded(command: str, top: str) -> str:
    """A command of git's configuration with `~`, variables and expressions for `top` expanded, as a shell would do."""
    command = _TOP.sub(lambda _: top, command.lstrip("!"))
    return os.path.expandvars(re.sub(r"(?<![\w/])~(?=/)", lambda _: os.path.expanduser("~"), command))
