"""Guarded paths: no run may write what is executed by others, which is the code of agents, of aipass and of git.

An agent that could write such a file would act as another agent, or as the engine outside every sandbox. An `owns` that names
such a path literally still grants it. Scripts of Python are read for their imports; of all other files only the name is used.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from aipass import environment, isolation, programs
from aipass.git import hooks, hooktext
from aipass.git.query import ask, has_repository, no_repository
from aipass.supervisor import held
from aipass.supervisor.fence.glob import Globs
from aipass.supervisor.fence.territory import Guard
from aipass.workspace.layout import CONFIG_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from aipass.config.model import Agent, Config
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout

#: The files from which task runners read their commands, in the folder in which they are started.
_OF_RUNNERS = {
    "make": ("Makefile", "makefile", "GNUmakefile"),
    "gmake": ("Makefile", "makefile", "GNUmakefile"),
    "tox": ("tox.ini",),
    "cargo": ("Cargo.toml", "build.rs"),
    "gradle": ("build.gradle", "build.gradle.kts"),
    "mvn": ("pom.xml",),
    "deno": ("deno.json", "deno.jsonc"),
    "just": ("justfile", "Justfile", ".justfile"),
    "task": (
        "Taskfile.yml",
        "Taskfile.yaml",
        "taskfile.yml",
        "taskfile.yaml",
        "Taskfile.dist.yml",
        "Taskfile.dist.yaml",
    ),
    "rake": ("Rakefile", "rakefile", "rakefile.rb", "Rakefile.rb"),
    "invoke": ("tasks.py", "tasks/__init__.py"),
    "nox": ("noxfile.py",),
    "npm": ("package.json",),
    "pnpm": ("package.json",),
    "yarn": ("package.json",),
    "bun": ("package.json",),
}
#: The files that are executed if a command names only their folder (Python, Node, npm).
_ENTRIES = tuple(
    dict.fromkeys(
        (
            "__main__.py",
            "index.js",
            "index.mjs",
            "index.cjs",
            *(one for names in _OF_RUNNERS.values() for one in names),
        )
    )
)
#: Words before the name of the folder in which the rest of a command line is started.
_INTO = frozenset(
    ("cd", "pushd", "-C", "--directory", "--prefix", "--cwd", "--chdir", "-f", "--file", "--makefile")
)
#: Settings of git whose value is a path with commands or attributes. In lower case, as `git config --list` prints names.
_GIT_PATHS = frozenset(("core.hookspath", "core.attributesfile", "init.templatedir"))
#: Settings of git whose values are data and no commands. All other settings are treated as commands, since any version
#: of git, or a tool beside it, may execute them: a filter, a helper, `difftool.*.cmd`, `trailer.*.command`, an alias.
_GIT_DATA = re.compile(
    r"remote\..*\.(?:url|pushurl|fetch|push|mirror|tagopt)|url\..*|branch\..*|submodule\..*\.(?:url|path|branch|active)|user\..*|author\..*"
    r"|committer\..*|core\.(?:worktree|excludesfile|bare|filemode|autocrlf|eol)|color\..*|safe\.directory|commit\.template|diff\.orderfile"
    r"|blame\.ignorerevsfile|mailmap\..*|http\..*|gpg\.ssh\.(?:allowedsignersfile|revocationfile)|lfs\.(?!extension\.|customtransfer\.).*|include(?:if)?\..*"
)
#: An option of Python: flags, and then at most one option with a value, which may follow without a space.
_OPTION_OF_PYTHON = re.compile(r"-(?:-\S+|[bBdEiIOPqsSuvVhx?]*(?:(?P<last>[mcWX])(?P<value>.*))?)", re.DOTALL)
_SPACES = re.compile(r"\s")
#: The number of inner worktrees and repositories whose git configuration is read: each costs several starts of git.
MOST_INNER = 32
#: Names of Python's own modules: a file of such a name beside a script is imported in place of the module. Without
#: `test`, because `test.py` is a usual name for a file of one's own. With `org`, which `copy` tries to import (it
#: exists only in Jython).
_OF_PYTHON = sorted(sys.stdlib_module_names - set(sys.builtin_module_names) - {"test"} | {"org"})
_IMPORTS = re.compile(
    r"(?:^|[;:])[ \t]*(?:from[ \t]+(\w[\w.]*)[ \t]+import\b|import[ \t]+(\w[\w., \t]*))", re.MULTILINE
)
#: The endings of a module's file, in Python's search order. Beside a script, each of them comes before installed packages.
_PACKAGE_FILES = ("/__init__.py", "/__init__.pyc", *(f"/__init__{ending}" for ending in EXTENSION_SUFFIXES))
_MODULE_FILES = (*EXTENSION_SUFFIXES, ".py", ".pyc")
#: The key in the ledger's `meta` table for the repositories inside the tree.
INNER = "git.inner"
#: Linux follows at most 40 symbolic links in one path.
MOST_LINKS = 40
#: Limits for the imports of one script and its modules: names searched, and bytes read. A reload waits for this search.
MOST_NAMES, MOST_READ_BYTES = 1_000, 500_000
_SEPARATORS = re.compile(r"[\s;|&<>()`\"'$=]+")


@dataclass(frozen=True, slots=True)
class Guarded:
    """The guarded paths. `tree`: files and folders, relative to the root, each with the reason.

    `outside`: absolute folders.
    """

    tree: dict[str, str]
    outside: tuple[str, ...]


def of(layout: Layout, config: Config, inner: Iterable[str] = ()) -> Guarded:
    """Compute the guarded paths for a configuration, from the present state of the files and of git's settings.

    `inner`: the folders below the root that are git repositories.
    """
    # Real paths, because the fence compares paths after the kernel has resolved their links.
    root = os.path.realpath(layout.root)
    tree: dict[str, str] = {}
    for place, why in (
        *_of_agents(config, root),
        *_of_ours(root),
        *_of_git(layout.root),
        *_hooks(layout.root),
        *(one for top in _inner(layout.root, root, inner) for one in _of_git(top)),
    ):
        # A link on the way is as good a target as the file itself: who can replace it decides what is executed.
        for one in _way(place):
            if (relative := _below(one, root)) is not None:
                tree.setdefault(relative, why)
    for place, why in _imported_by_agents(config, root):
        if (relative := _below(place, root)) is not None:
            tree.setdefault(relative, why)
    return Guarded(tree, tuple(dict.fromkeys(_outside(root, config))))


def inner(ledger: Ledger) -> list[str]:
    """The repositories inside the tree, as the engine recorded them last, relative to the root."""
    said = ledger.meta(INNER)
    return [str(one) for one in json.loads(said)] if said else []


def warnings(layout: Layout, config: Config, *, fenced: bool) -> list[str]:
    """Warnings for people before agents start, one sentence each.

    They name executed files that agents can still write, and folders of PYTHONPATH that agents can write.
    """
    root = os.path.realpath(layout.root)
    found: list[str] = []
    owners = {name: Globs(agent.owns) for name, agent in config.agents.items() if agent.owns}
    for path, why in of(layout, config).tree.items():
        place = os.path.join(root, path)
        # Many guarded names do not exist (a module that could be shadowed); a warning about each would hide the real ones.
        if not os.path.lexists(place):
            continue
        guard, spelled = Guard(path, why), path + "/" if os.path.isdir(place) else path
        named = [
            name
            for name, owns in owners.items()
            if any(map(guard.is_named_by, owns.lines)) and owns.match(spelled)
        ]
        if named:
            found.append(f"`owns` of {' and '.join(named)} names {path}, and {why}")
        elif not fenced:
            found.append(f"agents can write {path}, and {why}; without a fence nothing guards it")
    if not ask(layout.root, "rev-parse", "--git-dir") and has_repository(layout.root):
        found.append(f"{no_repository(layout.root)}; until then no rule on git fires here")
    named_by_path = (entry for entry in os.environ.get("PYTHONPATH", "").split(":") if entry)
    return found + [
        f"PYTHONPATH names {entry}, where agents may write: every Python that you start imports from there first; `unset PYTHONPATH` ends that (aipass itself imports nothing from there, and agents cannot write the names of Python's own modules)"
        for entry in named_by_path
        if programs.is_agents(os.path.realpath(entry), root)
    ]


def leave_out(root: str) -> None:
    """Remove from `sys.path` the folders that agents of this root may write, except those from which aipass itself runs.

    Folders below any `aipass.toml` were removed when this process started.
    """
    sys.path[:] = [entry for entry in sys.path if not _is_foreign(entry, root)]


def code_of_agents(module: str, root: str) -> str | None:
    """The folder of a module's package if agents of this root may write it; else None. Nothing is imported."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None  # the import that follows reports the error
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location else [])]
    return next((str(place) for place in places if _is_foreign(str(place), root)), None)


def _is_foreign(place: str, root: str) -> bool:
    real = os.path.realpath(place)
    ours = [os.path.realpath(one) for one in _running_from()]
    return programs.is_agents(real, os.path.realpath(root)) and not any(
        real == one or real.startswith(one + "/") for one in ours
    )


def _way(place: str) -> Iterator[str]:
    """A path as given, each symbolic link that the kernel follows on the way, and the path at the end."""
    yield os.path.normpath(place)
    done, left = "/", os.path.normpath(place).strip("/").split("/")
    for _ in range(MOST_LINKS):
        while left:
            name, here = left.pop(0), done
            done = os.path.dirname(done) if name == ".." else os.path.join(done, name)
            if name in ("", "."):
                done = here
            elif name != ".." and os.path.islink(done):
                yield done
                break
        else:
            break
        # As the kernel does: the rest of the path continues from the target of the link.
        try:
            leads = os.readlink(done)
        except OSError:
            break
        left[:0] = leads.split("/")
        done = "/" if leads.startswith("/") else here
    yield os.path.realpath(place)


def _inner(root: Path, real: str, inner: Iterable[str]) -> list[Path]:
    """The git worktrees and repositories below the root."""
    said = ask(root, "worktree", "list", "--porcelain", "-z", bare=True, hooks=True)
    trees = (entry.removeprefix("worktree ") for entry in said if entry.startswith("worktree "))
    found = dict.fromkeys((*trees, *(os.path.join(real, one) for one in inner)))
    return [root.__class__(one) for one in found if os.path.realpath(one).startswith(real + "/")][:MOST_INNER]


def _inside(place: str, root: str) -> str | None:
    """A path as one below the real root, even if it was named through links; None if it is outside."""
    place = os.path.normpath(place)
    for one in (
        place,
        os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place)),
        os.path.realpath(place),
    ):
        if one.startswith(root + "/"):
            return one
    return root if os.path.realpath(place) == root else None


def _below(place: str, root: str) -> str | None:
    """A path relative to the root; None if it is outside, or the root itself."""
    place = os.path.normpath(place)
    return place[len(root) + 1 :] if place.startswith(root + "/") else None


def _of_agents(config: Config, root: str) -> Iterator[tuple[str, str]]:
    for name, agent in config.agents.items():
        why = f"`{name}` is started with it"
        # Variables too: `NODE_OPTIONS = "--require ./hook.js"` or `BASH_ENV` name files that are executed.
        words = [*(agent.command or ()), *agent.args, *(v for v in agent.env.values() if isinstance(v, str))]
        if agent.command:
            path = environment.path_of(agent, os.environ)
            program = programs.for_run(agent.command[0], path, root)
            yield from ((one, why) for one in _program(os.path.join(root, program)))
        for word in words:
            yield from ((one, why) for one in _named(programs.expanded(word, root), root))
        for place, option, value in _pythons(words, root):
            if option == "m":
                yield from ((one, why) for one in _module(value, place))


def _imported_by_agents(config: Config, root: str) -> Iterator[tuple[str, str]]:
    """The files that Python in agents' commands imports before installed packages: beside a script, or in the root with `-m` and `-c`.

    They are the script's own modules, and files with the name of a Python module or of an imported one. Existing packages are not
    guarded: they are what people and agents work on.
    """
    folders: set[str] = set()
    scripts: set[tuple[str, str]] = set()
    for name, agent in config.agents.items():
        why = f"`{name}` is started with it: it imports what lies beside it"
        path = environment.path_of(agent, os.environ)
        for number, word in enumerate((*(agent.command or ()), *agent.args)):
            # The first word may be a script whose first line names Python.
            if programs.is_python(word) or (not number and agent.command):
                python = os.path.join(root, programs.for_run(word, path, root))
                for entry in programs.imported_from(python, root):
                    if (within := _inside(entry, root)) is not None and os.path.isdir(within):
                        yield from ((one, why) for one in _of_python(within, _elsewhere()))
        for folder, script, text in _python_of(agent, root):
            if folder not in folders:
                folders.add(folder)
                yield from ((one, why) for one in _of_python(folder))
            if (folder, script or text) not in scripts:
                scripts.add((folder, script or text))
                yield from ((one, why) for one in _imported(folder, script, text))


def _of_python(folder: str, names: Iterable[str] = _OF_PYTHON) -> Iterator[str]:
    """The files that would be imported in place of Python's own modules."""
    for module in names:
        yield from _files_of(os.path.join(folder, module))


@lru_cache(maxsize=1)
def _elsewhere() -> tuple[str, ...]:
    """Python modules of other operating systems.

    Python tries to import them here as well, and takes one from any folder of its path.
    """
    return tuple(name for name in _OF_PYTHON if importlib.util.find_spec(name) is None)


def _python_of(agent: Agent, root: str) -> Iterator[tuple[str, str, str]]:
    """The folders from which an agent's Python imports first, each with a script, or with a text of code, that imports."""
    words = [*(agent.command or ()), *agent.args]
    path = agent.env.get("PYTHONPATH")
    named = (
        [_inside(os.path.join(root, one), root) for one in programs.expanded(path, root).split(":")]
        if isinstance(path, str)
        else []
    )
    for folder, script, text in _scripts_of(words, root):
        for one in dict.fromkeys((folder, *(place for place in named if place))):
            yield one, script, text


def _scripts_of(words: list[str], root: str) -> Iterator[tuple[str, str, str]]:
    for word in words:
        for one in _named(programs.expanded(word, root), root):
            if one.endswith(".py") or _names_python(one):
                # Python follows a link to a script, and imports from the folder of its target.
                real = os.path.realpath(one)
                yield os.path.dirname(real), real, ""
    for folder, option, value in _pythons(words, root):
        if option == "c":
            yield folder, "", value
        elif option == "m":
            yield from ((folder, one, "") for one in _module(value, folder) if os.path.isfile(one))
        elif (script := _inside(os.path.join(folder, value), root)) and os.path.isfile(script):
            yield os.path.dirname(script), script, ""


def _pythons(words: list[str], root: str) -> Iterator[tuple[str, str, str]]:
    """Each start of Python in a command line, or in a shell line within it.

    Each has the folder, the option (`m`, `c` or "" for a script), its value.
    """
    lines = [words, *(_parts(programs.expanded(word, root)) for word in words if _SPACES.search(word))]
    for line in lines:
        folder = root
        for number, word in enumerate(line):
            rest = line[number + 1 :]
            if number and line[number - 1] in _INTO:
                folder = _inside(os.path.join(folder, word), root) or folder
            if programs.is_python(word):
                yield from ((folder, *found) for found in _program_of_python(rest))
            elif word == "-m" and rest:
                # Other programs start modules as well: `coverage run -m pytest`.
                yield folder, "m", rest[0]


def _program_of_python(words: list[str]) -> Iterator[tuple[str, str]]:
    """The option that makes Python start something (`m`, `c`, or "" for a script) and its value; at most one."""
    given = iter(words)
    for word in given:
        found = _OPTION_OF_PYTHON.fullmatch(word)
        if found is None:
            yield "", word
            return
        if found["last"]:
            value = found["value"] or next(given, "")
            if found["last"] in "mc":
                yield found["last"], value
                return


def _parts(line: str) -> list[str]:
    """The words of a shell line, without operators such as `&&` and `|`; empty if the quotes do not match."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>{}`$")
        lexer.whitespace_split, lexer.commenters = True, ""
        return [word for word in lexer if word.strip("|&;()<>{}`$")]
    except ValueError:
        return []


def _names_python(path: str) -> bool:
    """Whether the first line of a script names Python (`#!`)."""
    try:
        with held.open_regular(path) as file:
            return b"python" in file.readline(200)
    except OSError:
        return False


def _files_of(module: str) -> Iterator[str]:
    """The files by which a module of this path may be imported; without those of a package that exists."""
    yield from (module + ending for ending in _MODULE_FILES)
    if not os.path.isfile(f"{module}/__init__.py"):
        yield from (module + ending for ending in _PACKAGE_FILES)


def _imported(folder: str, script: str, text: str) -> Iterator[str]:
    """The files in `folder` that a script, or a text of code, imports, directly or through modules in that folder."""
    waiting, known, left = [script] if script else [], {""}, MOST_READ_BYTES
    yield from _named_by(text, folder, known, waiting)
    while waiting and left > 0 and len(known) < MOST_NAMES:
        try:
            text = held.read(waiting.pop(), left).decode("utf-8", "replace")
        except OSError:
            continue
        left -= len(text)
        yield from _named_by(text, folder, known, waiting)


def _named_by(text: str, folder: str, known: set[str], waiting: list[str]) -> Iterator[str]:
    names = {
        name.partition(".")[0]
        for match in _IMPORTS.finditer(text.replace("\\\n", " "))
        for name in re.split(r"[,\s]+", match[1] or match[2])
    }
    for name in islice(sorted(names - known), MOST_NAMES):
        known.add(name)
        place = os.path.join(folder, name)
        if os.path.isfile(f"{place}.py"):
            waiting.append(f"{place}.py")
        yield from _files_of(place)


def _program(path: str) -> Iterator[str]:
    """The file of a program and, if it is in a virtual environment, the files that configure this."""
    yield path
    # Python reads pyvenv.cfg above its own folder, and that decides from which packages it imports.
    venv = os.path.dirname(os.path.dirname(path))
    if os.path.isfile(os.path.join(venv, "pyvenv.cfg")):
        yield os.path.join(venv, "pyvenv.cfg")
        yield os.path.dirname(path)


def _named(word: str, root: str) -> Iterator[str]:
    """The files of the tree that a word of a command names, directly or inside a shell line, and that it may execute."""
    # A line with unbalanced quotes is not given up: it is also split at each character that can separate words.
    try:
        parts = shlex.split(word, comments=False)
    except ValueError:
        parts = []
    split = list(dict.fromkeys((word, *parts, *_SEPARATORS.split(word))))
    folders = [root]
    for before, part in pairwise((*parts, *_SEPARATORS.split(word))):
        place = _inside(os.path.join(root, part), root) if part and "\0" not in part else None
        if before in _INTO and place is not None and os.path.isdir(place):
            folders.append(place)
    for folder in dict.fromkeys(folders):
        for part in split:
            yield from (os.path.join(folder, name) for name in _OF_RUNNERS.get(os.path.basename(part), ()))
            place = _inside(os.path.join(folder, part), root) if part and "\0" not in part else None
            if place is None or place == root:
                continue
            if part != word and not _is_started(part, place, word):
                continue  # a shell line also names data, which agents must be able to write
            if os.path.isfile(place):
                yield place
            elif os.path.isdir(place):
                entries = (os.path.join(place, entry) for entry in _ENTRIES)
                yield from (entry for entry in entries if os.path.isfile(entry))
            elif os.path.splitext(part)[1] in _SCRIPTS:
                # The script does not exist yet: an agent that created it would have its code executed.
                yield place


def _is_started(part: str, place: str, line: str) -> bool:
    """Whether a shell line probably executes a file that it names: by its ending, its mode, or its position in the line."""
    if os.path.splitext(part)[1] in _SCRIPTS or os.path.isdir(place) or os.access(place, os.X_OK):
        return True
    return re.search(rf"{_STARTS}[\"']?{re.escape(part)}(?![\w./-])", line) is not None


#: The words and operators before a program or script in a shell line.
_STARTS = (
    r"(?:^|[;&|(`{!\n]|\b(?:then|do|else|if|while|until|sh|bash|dash|zsh|ksh|fish|python[\d.]*|node|deno|bun|ruby|perl|php|lua|Rscript|java"
    r"|source|exec|command|env|time|nice|nohup|xargs|make|just|awk|sed)(?:\s+-\S+)*\s|(?<![\w./])\.\s)\s*"
)
#: Endings of scripts. A file with another ending that does not exist yet is treated as data.
_SCRIPTS = frozenset(
    (".py", ".pyz", ".sh", ".bash", ".js", ".mjs", ".cjs", ".ts", ".rb", ".pl", ".php", ".lua", ".r", ".jar")
)


def _module(name: str, root: str) -> Iterator[str]:
    """The files in the tree that `python -m name` executes or would execute if they existed."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        return
    parts = name.split(".")
    above = [os.path.join(root, *parts[: depth + 1]) for depth in range(len(parts))]
    yield from (os.path.join(folder, "__init__.py") for folder in above)
    yield os.path.join(above[-1], "__main__.py")
    yield above[-1] + ".py"


def _of_ours(root: str) -> Iterator[tuple[str, str]]:
    """The folders from which this process runs, and the files that Python imports at its start.

    The folders are those of its Python, of its virtual environment and of its packages.
    """
    why = "aipass itself runs from it"
    for place in _running_from():
        yield place, why
    # Python imports from these folders at its start, before any line of aipass runs: from PYTHONPATH before its own
    # modules, from the others only modules of other systems. The root counts only if PYTHONPATH names it: `python -m`
    # puts it on the path for a moment in which nothing is imported.
    first = [os.path.join(root, entry) for entry in os.environ.get("PYTHONPATH", "").split(":") if entry]
    later = [entry for entry in isolation.left_out if os.path.realpath(entry) != root]
    for entries, names in ((first, _OF_PYTHON), (later, _elsewhere())):
        for within in filter(None, (_inside(entry, root) for entry in dict.fromkeys(entries))):
            yield from ((one, "Python may import it at its start") for one in _of_python(within, names))


def _running_from() -> list[str]:
    found = [os.path.dirname(sys.executable), sys.prefix]
    if os.path.isfile(os.path.join(sys.prefix, CONFIG_NAME)):
        # If the root is itself a virtual environment, guarding all of it would guard the whole tree: only its parts are.
        found[1:] = [os.path.join(sys.prefix, part) for part in ("bin", "lib", "lib64", "pyvenv.cfg")]
    for package in ("aipass", "aipass_handlers", "aipass_plugins"):
        spec = importlib.util.find_spec(package)
        found += list(spec.submodule_search_locations or ()) if spec is not None else []
    return [os.path.abspath(place) for place in found]


def _of_git(root: Path) -> Iterator[tuple[str, str]]:
    """The files of a repository's git configuration, and the files and folders with commands that it names."""
    found = ask(root, "rev-parse", "--show-toplevel", bare=True, hooks=True)
    top = found[0].removesuffix("\n") if found else str(root)
    said = ask(root, "config", "--list", "-z", "--show-origin", "--includes", bare=True, hooks=True)
    for origin, entry in zip(said[::2], said[1::2], strict=False):
        name, _, value = entry.partition("\n")
        if not origin.startswith("file:"):
            continue  # from our own command line or the environment, which no agent can change
        # Git prints relative paths, relative to the top of the working tree.
        file = os.path.join(top, origin.removeprefix("file:"))
        why = f"git takes its {'hooks' if name == 'core.hookspath' else 'configuration'} from it"
        yield file, why
        # A bare word is a program found by PATH, or no command (`init.defaultBranch`).
        is_word = re.fullmatch(r"[^\s/]*", value) is not None and os.path.splitext(value)[1] not in _SCRIPTS
        if not is_word and not _GIT_DATA.fullmatch(name):
            command = programs.expanded(value, top)
            yield from (
                (one, f"git starts it (`{name}`)") for one in (*_named(command, top), *_read_by(command, top))
            )
        if value and (name in _GIT_PATHS or name.startswith(("include.", "includeif."))):
            base = os.path.dirname(file) if name.startswith("include") else top
            place = os.path.join(base, os.path.expanduser(value))
            yield place, f"{why} (`{name}`)"
            if name == "core.hookspath":
                # An install beside a folder of hooks starts the earlier hooks through links in this second folder.
                yield place.rstrip("/") + hooktext.ASIDE, f"{why} (`{name}`)"
                yield from ((one, f"the hook {hook} is a link to it") for hook, one in hooks.links(place))


def _read_by(command: str, top: str) -> Iterator[str]:
    """The files of the tree that a command in git's settings reads through an option, and the Python modules that it starts."""
    words = _SEPARATORS.split(command)
    for before, word in pairwise(("", *words)):
        if before == "-m":
            yield from _module(word, top)
        # The value of a short option may follow without a space (`-f.hooks/x`).
        for part in (word, word[2:] if word.startswith("-") else ""):
            place = _inside(os.path.join(top, part), top) if part and "\0" not in part else None
            if (
                ("/" in part or before.startswith("-") or part != word)
                and place is not None
                and os.path.isfile(place)
            ):
                yield place


def _hooks(root: Path) -> Iterator[tuple[str, str]]:
    """The folders from which git takes hooks, and the targets of hooks that are links."""
    for place in hooks.places(root):
        yield str(place), "git takes its hooks from it"
        yield from ((one, f"the hook {name} is a link to it") for name, one in hooks.links(place))


def _outside(root: str, config: Config) -> Iterator[str]:
    """Folders outside the tree to close, because `[sandbox] write` or /tmp would open them.

    They are the folders from which aipass itself runs, and those of PATH.
    """
    opened = [os.path.realpath(os.path.expanduser(entry)) for entry in config.sandbox.write]
    on_path = [folder for folder in os.environ.get("PATH", "").split(":") if folder.startswith("/")]
    for place in dict.fromkeys(one for name in (*_running_from(), *on_path) for one in _both(name)):
        within = next((top for top in programs.SHARED_TEMPORARY if place.startswith(top + "/")), None)
        if place == root or place.startswith(root + "/"):
            continue
        if within is not None:
            # The top entry in /tmp: if it does not exist, a run could create it with a program of its own inside.
            top = "/".join(place.split("/")[: within.count("/") + 2])
            yield place if root.startswith(top + "/") else top
        elif any(place == top or place.startswith(top + "/") for top in opened):
            yield place


def _both(place: str) -> tuple[str, str]:
    return os.path.normpath(place), os.path.realpath(place)
