"""The programs that aipass itself starts: found outside all that agents can write, and started with a clean environment.

Whatever is started here runs outside the fence. A program is therefore never looked up in the repository, in another
root, in a run's temporary folder or by a relative PATH entry, and what it starts in turn gets a PATH without those.
Everything but the supervisor's runs is started through this module; `tests/features/ownership/test_guarded.py` holds the code to that.
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

#: Every program that we start by name, and what for. A plugin's forge may add its own through `run`.
STARTED = {
    "git": "the repository: what git did, PRs, merges, the file list",
    "gh": 'PRs on GitHub, with `[pr] forge = "gh"`',
    "glab": 'merge requests on GitLab, with `[pr] forge = "glab"`',
    "cat": "a probe of `aipass doctor`",
    "sh": "the checks of plans and merges, inside the fence",
}
#: Where PATH names nothing else: the system's own folders.
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
#: A path of Linux; and so many `.pth` files of a Python are read, each so far.
MAX_PATH_BYTES, MOST_PTH, MAX_PTH_BYTES = 4096, 200, 100_000
#: Folders in which a run may make new entries (DESIGN 6); what lies directly in them is nobody's program.
SHARED_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
#: What git, Python, Perl, Node, Ruby, a shell and the dynamic linker take code or another repository from. `GIT_` is
#: dropped whole, but for what a person may have said about all repositories of this machine.
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
    """The programs that PATH offers to the engine of one root. Which folders are safe is looked up once."""

    def __init__(self, root: str, shell: str) -> None:
        """`shell`: PATH as the shell had it."""
        self.root, self.shell = root, shell
        folders = dict.fromkeys((shell or SYSTEM_PATH).split(":"))
        self._folders = [folder for folder in folders if is_safe(folder, root)]
        self._found: dict[str, str] = {}

    @property
    def path(self) -> str:
        """PATH without what agents can write; never empty."""
        return ":".join(self._folders) or SYSTEM_PATH

    def find(self, name: str) -> str | None:
        """The absolute path of a program; None where no safe folder of PATH has it. Once found it stays the same."""
        if (known := self._found.get(name)) is not None and is_program(known):
            return known
        for folder in self._folders:
            found = os.path.join(folder, name)
            if is_program(found) and not is_agents(os.path.realpath(found), self.root):
                self._found[name] = found
                return found
        return None

    def hidden(self, name: str) -> str | None:
        """A program of that name that a shell would start, and we do not, because it lies where agents write."""
        for folder in self.shell.split(":"):
            found = os.path.join(folder or ".", name)
            if is_program(found):
                return os.path.abspath(found) if found != self.find(name) else None
        return None


@lru_cache(maxsize=64)
def _of(root: str, shell: str) -> Programs:
    return Programs(root, shell)


def of(root: Path | str) -> Programs:
    """The programs for a root, by the PATH of this process."""
    return _of(os.path.realpath(root), os.environ.get("PATH", SYSTEM_PATH))


def is_program(path: str) -> bool:
    """Whether a file that can be executed stands there."""
    return os.path.isfile(path) and os.access(path, os.X_OK)


def is_safe(folder: str, root: str) -> bool:
    """Whether a folder of PATH is one that no agent can write, by its name and by where it leads."""
    return folder.startswith("/") and not any(
        is_agents(place, root) for place in {os.path.normpath(folder), os.path.realpath(folder)}
    )


def is_agents(path: str, root: str) -> bool:
    """Whether an absolute path lies where an agent of this root, or of another one, may write."""
    if path == root or path.startswith(root.rstrip("/") + "/") or path in SHARED_TEMPORARY:
        return True
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
    """The environment for a program of ours: `base` (default this process's own) without what makes programs load code,
    without a git hook's repository, and with a clean PATH.
    """
    env = {
        name: value
        for name, value in (os.environ if base is None else base).items()
        if name in _KEPT or not (name.startswith(_DROPPED) or name in _DROPPED_NAMES)
    }
    # A filter or a helper that is Python must not find its modules in the tree.
    return env | {"PATH": of(root).path, "PYTHONSAFEPATH": "1"}


def require(name: str, root: Path | str) -> str:
    """The absolute path of a program; raises ProgramMissingError, which says where one was passed over."""
    programs = of(root)
    found = programs.find(name)
    if found is None:
        hidden = programs.hidden(name)
        raise ProgramMissingError(
            f"`{name}` is not installed"
            + (
                f" outside the repository; {hidden} is not started, because agents may write there"
                if hidden
                else ""
            )
            + f"; install it where PATH has it (aipass looks in {programs.path})"
        )
    return found


class ProgramMissingError(AipassError):
    """A program that we need is nowhere on PATH that agents cannot write."""


def run(
    root: Path | str,
    words: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    base: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    **how: Any,  # noqa: ANN401 - whatever subprocess.run takes
) -> subprocess.CompletedProcess[Any]:
    """Run a program by its name and wait for it: in `cwd` (default the root), with `environment(root, base)` and `env` added.

    Raises ProgramMissingError where there is none, and what subprocess.run raises.
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
            _end(started)  # it, and what it has started: a filter that hangs keeps its git
            raise
        finally:
            _running.discard(started)
    return subprocess.CompletedProcess(command, started.returncode, said, complained)


#: What `run` waits for just now, in whatever thread.
_running: set[subprocess.Popen[Any]] = set()


def end_all() -> None:
    """End whatever `run` still waits for: the process that waits is about to go."""
    for started in list(_running):
        _end(started)


def _end(started: subprocess.Popen[Any]) -> None:
    table = process.table()
    doomed = {started.pid}
    while more := {one.pid for one in table.values() if one.ppid in doomed} - doomed:
        doomed |= more
    for pid in doomed:
        if pid in table:
            process.send(table[pid], signal.SIGKILL)


def python(*words: str) -> list[str]:
    """The command line of this Python with nothing of the current folder or of PYTHONPATH on its path."""
    return [sys.executable, "-E", "-P", *words]


def aipass(*words: str) -> list[str]:
    """The command line of this aipass, isolated the same way."""
    return python("-m", "aipass", *words)


def for_run(program: str, path: str, root: Path | str) -> str:
    """The program that a run is started with, found by the run's own PATH: outside of what agents can write wherever there is one.

    Our own scripts folder counts as outside wherever it lies: what runs us is nobody's to write. A program that lies only in the tree is found
    there, and the caller must know whether that may be. A word with a slash, or that nothing has, stays as it is.
    """
    if "/" in program or not program:
        return program
    top = os.path.realpath(root)
    scripts = os.path.dirname(sys.executable)
    folders = [folder for folder in path.split(":") if folder]
    safe = [folder for folder in folders if folder == scripts or is_safe(folder, top)]
    for folder in (*safe, *folders):
        found = os.path.join(top, folder, program)
        if is_program(found):
            return found
    return program


def is_plain(program: str) -> bool:
    """Whether a program is machine code, or a script of the system's own that is not Python's.

    Of any other nobody can say what it starts and imports: an interpreter looks for modules in many places, and a shim or a wrapper starts
    whatever the current folder says.
    """
    real = os.path.realpath(program)
    first = _first_lines(real)[0]
    if first.startswith(_MACHINE_CODE):
        return True
    return os.path.dirname(real) in _OF_SYSTEM and first.startswith(b"#!") and b"python" not in first


#: How a program begins: ELF, and Mach-O in its forms (https://github.com/apple-oss-distributions/xnu, EXTERNAL_HEADERS/mach-o/loader.h, fat.h).
_MACHINE_CODE = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
#: Where only the system's packages put programs.
_OF_SYSTEM = frozenset(("/bin", "/sbin", "/usr/bin", "/usr/sbin"))


def _found(python: str, root: Path | str) -> str:
    return python if python.startswith("/") else of(root).find(python) or python


def imported_from(program: str, root: Path | str) -> list[str]:
    """The folders that a Python imports from because somebody installed what lies there in editable form (`pip install -e`).

    `program`: the path of a Python, or of a script that one reads; of all else it is none. Read are a script's first two lines, and the
    `.pth` files of its Python. A help, no boundary: an interpreter has more ways to find a module than anybody lists.
    """
    found: list[str] = []
    for name in [program] if is_python(program) else _pythons_of(program):
        for folder in _packages_of(_found(name, root)):
            for pth in islice(glob.iglob(f"{glob.escape(folder)}/*.pth"), MOST_PTH):
                found += _named_by_pth(pth)
    return found


def pythons_of(program: str, root: Path | str) -> list[str]:
    """The Pythons that read a program, where one does, with what they are links to, and the folders of their packages."""
    found: list[str] = []
    for name in [program] if is_python(program) else _pythons_of(program):
        python = _found(name, root)
        found += [python, os.path.realpath(python), *_packages_of(python)]
    return found


def _pythons_of(script: str) -> list[str]:
    """The Pythons that a script's first line names; a long path stands in the second, in quotes for a shell."""
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
    """Whether a word is the name, or a path, of a Python."""
    return os.path.basename(word).startswith(("python", "pypy"))


def _first_lines(path: str) -> list[bytes]:
    try:
        with held.open_regular(path) as file:
            return file.read(2 * MAX_PATH_BYTES).split(b"\n")[:2]
    except OSError:
        return [b""]


def _packages_of(python: str) -> Iterator[str]:
    """Where a Python has its packages: those of its environment, or of the system and of the person."""
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
        # By a link elsewhere it is the Python that it leads to.
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
            # What setuptools writes for a project without `src/`: a program that knows the places of its packages.
            with contextlib.suppress(OSError):
                place = os.path.realpath(os.path.join(os.path.dirname(pth), f"{finder[1]}.py"))
                text = held.read(place, MAX_PTH_BYTES)
                yield from re.findall(r"'(/[^'\n]+)'", text.decode("utf-8", "replace"))
        elif entry and not entry.startswith(("#", "import ", "import\t")):
            yield os.path.normpath(os.path.join(os.path.dirname(pth), entry))


#: What a shell makes the top of the working tree of, where git starts a command.
_TOP = re.compile(
    r"\$(?:(?:PWD|AIPASS_ROOT)\b|\{(?:PWD|AIPASS_ROOT)\})|(?:\$\(|`)\s*(?:pwd|git rev-parse --show-toplevel)\s*(?:\)|`)"
)


def expanded(command: str, top: str) -> str:
    """A command with what a shell would make of `~` and of names of folders."""
    command = _TOP.sub(lambda _: top, command.lstrip("!"))
    return os.path.expandvars(re.sub(r"(?<![\w/])~(?=/)", lambda _: os.path.expanduser("~"), command))
