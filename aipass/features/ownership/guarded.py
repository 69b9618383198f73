"""What is nobody's to write because it is started: the programs and scripts of agents, what aipass and git run from.

An agent that could write it would act as another agent, or as the engine, outside every fence. An `owns` that names such a path
literally gives it all the same. Of scripts it reads what they import; of nothing else more than the name.
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

#: What runners take their commands from, in the folder that they are started in.
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
#: What a folder is started by, where a command names only the folder (Python, Node, npm).
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
#: Before the name of a folder that what follows is started in.
_INTO = frozenset(
    ("cd", "pushd", "-C", "--directory", "--prefix", "--cwd", "--chdir", "-f", "--file", "--makefile")
)
#: Settings of git that name files which it takes commands or attributes from, as git lists them.
_GIT_PATHS = frozenset(("core.hookspath", "core.attributesfile", "init.templatedir"))
#: Settings of git that name data, or places that are no commands. All others are taken for what they are in some version of git or in a
#: tool beside it, commands: a filter, a helper, `difftool.*.cmd`, `trailer.*.command`, an alias.
_GIT_DATA = re.compile(
    r"remote\..*\.(?:url|pushurl|fetch|push|mirror|tagopt)|url\..*|branch\..*|submodule\..*\.(?:url|path|branch|active)|user\..*|author\..*"
    r"|committer\..*|core\.(?:worktree|excludesfile|bare|filemode|autocrlf|eol)|color\..*|safe\.directory|commit\.template|diff\.orderfile"
    r"|blame\.ignorerevsfile|mailmap\..*|http\..*|gpg\.ssh\.(?:allowedsignersfile|revocationfile)|lfs\.(?!extension\.|customtransfer\.).*|include(?:if)?\..*"
)
#: An option of Python's: flags, and one that takes a value, which may be joined to it.
_OPTION_OF_PYTHON = re.compile(r"-(?:-\S+|[bBdEiIOPqsSuvVhx?]*(?:(?P<last>[mcWX])(?P<value>.*))?)", re.DOTALL)
_SPACES = re.compile(r"\s")
#: So many worktrees and repositories inside the tree are asked for what they start.
MOST_INNER = 32
#: Names by which a file beside a script is imported in the place of what is meant; `test.py` people call their own as well.
#: (`copy` asks for `org`, which only Jython has.)
_OF_PYTHON = sorted(sys.stdlib_module_names - set(sys.builtin_module_names) - {"test"} | {"org"})
_IMPORTS = re.compile(
    r"(?:^|[;:])[ \t]*(?:from[ \t]+(\w[\w.]*)[ \t]+import\b|import[ \t]+(\w[\w., \t]*))", re.MULTILINE
)
#: What a module may be called by, in the order in which Python looks; beside a script all come before what is installed.
_PACKAGE_FILES = ("/__init__.py", "/__init__.pyc", *(f"/__init__{ending}" for ending in EXTENSION_SUFFIXES))
_MODULE_FILES = (*EXTENSION_SUFFIXES, ".py", ".pyc")
#: Where the ledger keeps which folders are repositories.
INNER = "git.inner"
#: The kernel follows no more in one path.
MOST_LINKS = 40
#: So many names that a script and its modules import are looked for, and so much of them is read.
MOST_NAMES, MOST_READ_BYTES = 1_000, 500_000
_SEPARATORS = re.compile(r"[\s;|&<>()`\"'$=]+")


@dataclass(frozen=True, slots=True)
class Guarded:
    """`tree`: paths below the root, files or folders, with the reason. `outside`: absolute folders elsewhere."""

    tree: dict[str, str]
    outside: tuple[str, ...]


def of(layout: Layout, config: Config, inner: Iterable[str] = ()) -> Guarded:
    """All that is guarded with this configuration on this machine, now. `inner`: folders below the root that are repositories."""
    root = os.path.realpath(layout.root)
    tree: dict[str, str] = {}
    for place, why in (
        *_of_agents(config, root),
        *_of_ours(root),
        *_of_git(layout.root),
        *_hooks(layout.root),
        *(one for top in _inner(layout.root, root, inner) for one in _of_git(top)),
    ):
        for one in _way(place):
            if (relative := _below(one, root)) is not None:
                tree.setdefault(relative, why)
    for place, why in _imported_by_agents(config, root):
        if (relative := _below(place, root)) is not None:
            tree.setdefault(relative, why)
    return Guarded(tree, tuple(dict.fromkeys(_outside(root, config))))


def inner(ledger: Ledger) -> list[str]:
    """The repositories inside the tree, as the engine saw them last."""
    said = ledger.meta(INNER)
    return [str(one) for one in json.loads(said)] if said else []


def warnings(layout: Layout, config: Config, *, fenced: bool) -> list[str]:
    """What a person should know before agents are started: started things that agents can write all the same. A sentence each."""
    root = os.path.realpath(layout.root)
    found: list[str] = []
    owners = {name: Globs(agent.owns) for name, agent in config.agents.items() if agent.owns}
    for path, why in of(layout, config).tree.items():
        place = os.path.join(root, path)
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
            found.append(f"{path} lies where agents write, and {why}; without a fence nothing guards it")
    if not ask(layout.root, "rev-parse", "--git-dir") and has_repository(layout.root):
        found.append(f"{no_repository(layout.root)}; until then no rule on git fires here")
    named_by_path = (entry for entry in os.environ.get("PYTHONPATH", "").split(":") if entry)
    return found + [
        f"PYTHONPATH names {entry}, where agents may write: every Python that you start looks there first; `unset PYTHONPATH` ends that (aipass imports nothing from there, and keeps agents from the names of Python's own modules)"
        for entry in named_by_path
        if programs.is_agents(os.path.realpath(entry), root)
    ]


def leave_out(root: str) -> None:
    """Import nothing more from where agents of this root may write, but from what aipass itself runs from.

    What lies below any `aipass.toml` was left out when this process began.
    """
    sys.path[:] = [entry for entry in sys.path if not _is_foreign(entry, root)]


def code_of_agents(module: str, root: str) -> str | None:
    """The folder of a module's package where agents of this root may write it; None where they may not."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None  # importing it says what is wrong
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
    """A place by its name, every link on the way from there, and where that ends: who may change one of them decides what is found."""
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
        try:
            leads = os.readlink(done)
        except OSError:
            break
        left[:0] = leads.split("/")
        done = "/" if leads.startswith("/") else here
    yield os.path.realpath(place)


def _inner(root: Path, real: str, inner: Iterable[str]) -> list[Path]:
    """The worktrees and the repositories that lie below the root."""
    said = ask(root, "worktree", "list", "--porcelain", "-z", bare=True, hooks=True)
    trees = (entry.removeprefix("worktree ") for entry in said if entry.startswith("worktree "))
    found = dict.fromkeys((*trees, *(os.path.join(real, one) for one in inner)))
    return [root.__class__(one) for one in found if os.path.realpath(one).startswith(real + "/")][:MOST_INNER]


def _inside(place: str, root: str) -> str | None:
    """A place below the root, by the root's real name, however it was named: through links above it, or from elsewhere into it."""
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
    """A place of the tree as a path below the root; None where it is none, or is the root itself."""
    place = os.path.normpath(place)
    return place[len(root) + 1 :] if place.startswith(root + "/") else None


def _of_agents(config: Config, root: str) -> Iterator[tuple[str, str]]:
    for name, agent in config.agents.items():
        why = f"`{name}` is started with it"
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
    """What the Python of agents' commands imports before what is installed: beside a script, or from the root with `-m` and `-c`.

    Modules of its own, and whatever is called as one of Python's or as one that it imports. Packages that are there are what people work on.
    """
    folders: set[str] = set()
    scripts: set[tuple[str, str]] = set()
    for name, agent in config.agents.items():
        why = f"`{name}` is started with it: it imports what lies beside it"
        path = environment.path_of(agent, os.environ)
        for number, word in enumerate((*(agent.command or ()), *agent.args)):
            # A program that Python reads, too.
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
    """Files that would be imported in the place of Python's own modules."""
    for module in names:
        yield from _files_of(os.path.join(folder, module))


@lru_cache(maxsize=1)
def _elsewhere() -> tuple[str, ...]:
    """Python's own modules of other systems: it asks for them here as well, and takes whatever comes last on its path."""
    return tuple(name for name in _OF_PYTHON if importlib.util.find_spec(name) is None)


def _python_of(agent: Agent, root: str) -> Iterator[tuple[str, str, str]]:
    """A folder from which Python imports first, and a script, or a text, that imports."""
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
                # It looks beside where a link to a script leads.
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
    """Where Python is started by a command line, or by a line for a shell within it: the folder, `m`, `c` or "", and the module, text or script."""
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
                yield folder, "m", rest[0]  # another program that starts a module: `coverage run -m`


def _program_of_python(words: list[str]) -> Iterator[tuple[str, str]]:
    """What Python makes of its words: at most one of `m`, `c` or "", with its value."""
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
    """The words of a line for a shell, without what stands between commands."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>{}`$")
        lexer.whitespace_split, lexer.commenters = True, ""
        return [word for word in lexer if word.strip("|&;()<>{}`$")]
    except ValueError:
        return []


def _names_python(path: str) -> bool:
    """Whether a program's first line names Python."""
    try:
        with held.open_regular(path) as file:
            return b"python" in file.readline(200)
    except OSError:
        return False


def _files_of(module: str) -> Iterator[str]:
    """Files by which a module of this path may be imported; none of a package's own where people have one."""
    yield from (module + ending for ending in _MODULE_FILES)
    if not os.path.isfile(f"{module}/__init__.py"):
        yield from (module + ending for ending in _PACKAGE_FILES)


def _imported(folder: str, script: str, text: str) -> Iterator[str]:
    """Files in `folder` that a script, or a text, and what of it lies there, import."""
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
    """A program by its name and by where it leads, and the virtual environment that it belongs to."""
    yield path
    venv = os.path.dirname(os.path.dirname(path))
    if os.path.isfile(os.path.join(venv, "pyvenv.cfg")):
        yield os.path.join(venv, "pyvenv.cfg")
        yield os.path.dirname(path)


def _named(word: str, root: str) -> Iterator[str]:
    """The files of the tree that a word names, alone or in a line for a shell."""
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
                continue  # a line for a shell names its data as well
            if os.path.isfile(place):
                yield place
            elif os.path.isdir(place):
                entries = (os.path.join(place, entry) for entry in _ENTRIES)
                yield from (entry for entry in entries if os.path.isfile(entry))
            elif os.path.splitext(part)[1] in _SCRIPTS:
                yield place  # it is not there yet, and whoever makes it is started


def _is_started(part: str, place: str, line: str) -> bool:
    """Whether a line for a shell looks as if it started the file that it names: by its ending, its mode, or its place in the line."""
    if os.path.splitext(part)[1] in _SCRIPTS or os.path.isdir(place) or os.access(place, os.X_OK):
        return True
    return re.search(rf"{_STARTS}[\"']?{re.escape(part)}(?![\w./-])", line) is not None


#: What stands before something that a shell starts.
_STARTS = (
    r"(?:^|[;&|(`{!\n]|\b(?:then|do|else|if|while|until|sh|bash|dash|zsh|ksh|fish|python[\d.]*|node|deno|bun|ruby|perl|php|lua|Rscript|java"
    r"|source|exec|command|env|time|nice|nohup|xargs|make|just|awk|sed)(?:\s+-\S+)*\s|(?<![\w./])\.\s)\s*"
)
#: Endings of what interpreters start; a file of another ending that does not exist yet is taken for data.
_SCRIPTS = frozenset(
    (".py", ".pyz", ".sh", ".bash", ".js", ".mjs", ".cjs", ".ts", ".rb", ".pl", ".php", ".lua", ".r", ".jar")
)


def _module(name: str, root: str) -> Iterator[str]:
    """The files of `python -m name`, as far as they are, or could be, the tree's."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        return
    parts = name.split(".")
    above = [os.path.join(root, *parts[: depth + 1]) for depth in range(len(parts))]
    yield from (os.path.join(folder, "__init__.py") for folder in above)
    yield os.path.join(above[-1], "__main__.py")
    yield above[-1] + ".py"


def _of_ours(root: str) -> Iterator[tuple[str, str]]:
    """What this very process runs from: its Python, its virtual environment, its packages."""
    why = "aipass itself runs from it"
    for place in _running_from():
        yield place, why
    # Python looks there at its start, before any line of ours is run: first of all, or for what another system would have. (At the
    # root itself it does so only where PYTHONPATH says so: `-m` puts it first for a moment, and nothing is imported then.)
    first = [os.path.join(root, entry) for entry in os.environ.get("PYTHONPATH", "").split(":") if entry]
    later = [entry for entry in isolation.left_out if os.path.realpath(entry) != root]
    for entries, names in ((first, _OF_PYTHON), (later, _elsewhere())):
        for within in filter(None, (_inside(entry, root) for entry in dict.fromkeys(entries))):
            yield from ((one, "Python may import it at its start") for one in _of_python(within, names))


def _running_from() -> list[str]:
    found = [os.path.dirname(sys.executable), sys.prefix]
    if os.path.isfile(os.path.join(sys.prefix, CONFIG_NAME)):
        # A virtual environment that lies at the root is the root; its parts are ours.
        found[1:] = [os.path.join(sys.prefix, part) for part in ("bin", "lib", "lib64", "pyvenv.cfg")]
    for package in ("aipass", "aipass_handlers", "aipass_plugins"):
        spec = importlib.util.find_spec(package)
        found += list(spec.submodule_search_locations or ()) if spec is not None else []
    return [os.path.abspath(place) for place in found]


def _of_git(root: Path) -> Iterator[tuple[str, str]]:
    """Files and folders that a repository's configuration consists of, or names, wherever git would look for them."""
    found = ask(root, "rev-parse", "--show-toplevel", bare=True, hooks=True)
    top = found[0].removesuffix("\n") if found else str(root)
    said = ask(root, "config", "--list", "-z", "--show-origin", "--includes", bare=True, hooks=True)
    for origin, entry in zip(said[::2], said[1::2], strict=False):
        name, _, value = entry.partition("\n")
        if not origin.startswith("file:"):
            continue  # what we said ourselves, or the environment
        # Git tells relative paths as from the top of the working tree.
        file = os.path.join(top, origin.removeprefix("file:"))
        why = f"git takes its {'hooks' if name == 'core.hookspath' else 'configuration'} from it"
        yield file, why
        # A bare word is a program of PATH's, or no command at all (`init.defaultBranch`).
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
                # Beside a folder of hooks ours has links by which it starts those that were there before.
                yield place.rstrip("/") + hooktext.ASIDE, f"{why} (`{name}`)"
                yield from ((one, f"the hook {hook} is a link to it") for hook, one in hooks.links(place))


def _read_by(command: str, top: str) -> Iterator[str]:
    """Files of the tree that a command of git's reads, by whatever option, and modules that it starts."""
    words = _SEPARATORS.split(command)
    for before, word in pairwise(("", *words)):
        if before == "-m":
            yield from _module(word, top)
        # An option's value may be joined to it.
        for part in (word, word[2:] if word.startswith("-") else ""):
            place = _inside(os.path.join(top, part), top) if part and "\0" not in part else None
            if (
                ("/" in part or before.startswith("-") or part != word)
                and place is not None
                and os.path.isfile(place)
            ):
                yield place


def _hooks(root: Path) -> Iterator[tuple[str, str]]:
    """The folders that git takes hooks from, where they lead, and what the hooks there are links to."""
    for place in hooks.places(root):
        yield str(place), "git takes its hooks from it"
        yield from ((one, f"the hook {name} is a link to it") for name, one in hooks.links(place))


def _outside(root: str, config: Config) -> Iterator[str]:
    """Folders outside the tree that a run could write, were it not for this: what runs us, and folders of programs."""
    opened = [os.path.realpath(os.path.expanduser(entry)) for entry in config.sandbox.write]
    on_path = [folder for folder in os.environ.get("PATH", "").split(":") if folder.startswith("/")]
    for place in dict.fromkeys(one for name in (*_running_from(), *on_path) for one in _both(name)):
        within = next((top for top in programs.SHARED_TEMPORARY if place.startswith(top + "/")), None)
        if place == root or place.startswith(root + "/"):
            continue
        if within is not None:
            # The whole entry of /tmp, so that nobody makes one of that name where there is none.
            top = "/".join(place.split("/")[: within.count("/") + 2])
            yield place if root.startswith(top + "/") else top
        elif any(place == top or place.startswith(top + "/") for top in opened):
            yield place


def _both(place: str) -> tuple[str, str]:
    return os.path.normpath(place), os.path.realpath(place)
