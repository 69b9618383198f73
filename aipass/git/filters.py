"""Filters and merge drivers that people configured: which of them our git starts.

What git starts for us runs outside every fence. So it starts only programs that are known to take no code from the working tree,
where agents write, and those that the person names in `[pr] filters`; none whose words name a file of the tree.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aipass import programs
from aipass.git.query import QUIET_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

#: What asks git for them, to be given to `judged`.
WORDS = (
    "config", "-z", "--get-regexp",
    r"^((filter|merge)\..*\.(clean|smudge|process|driver)|lfs\.(extension|customtransfer)\..*\.(clean|smudge|path|args))$",
)  # fmt: skip

#: Programs that do with their input what their words say, run no code that they find in the current folder, and take no words that are
#: code: https://git-scm.com/docs/gitattributes, https://github.com/topics/git-filter. Left out for what they take from there: make, npx, uv,
#: prettier (its configuration is a program), jupytext (likewise), rustfmt (rust-toolchain.toml names a folder of programs), sops (.sops.yaml),
#: `python -m` (a module of the current folder comes first), nbstripout and whatever else is a script (its interpreter may find modules
#: in many places), awk, perl, gpg, openssl (files of options, libraries), sort (a compressor).
_KNOWN = frozenset(
    (
        "git-lfs", "git-annex", "git-crypt", "cat", "tr", "head", "tail", "rev", "uniq", "cut", "expand", "unexpand",
        "fold", "fmt", "nl", "tac", "wc", "jq", "base64", "iconv", "dos2unix", "unix2dos", "gzip", "gunzip", "zcat", "bzip2", "bunzip2",
        "xz", "unxz", "zstd", "gofmt", "clang-format", "echo", "printf", "true", "false", "mergiraf",
    )
)  # fmt: skip
#: One replacement of sed's, which neither runs nor reads anything; and its options that say no more than how.
_REPLACEMENT = re.compile(r"s([^\w\s\\])(?:\\.|(?!\1)[^\\])*\1(?:\\.|(?!\1)[^\\])*\1[gpiI\d]*")
_OPTION_OF_SED = re.compile(r"-[Enru]+|--regexp-extended|--quiet|--unbuffered")
_OTHERS_OF_GIT = frozenset(("lfs", "annex", "crypt"))
_KNOWN_OF_GIT = _OTHERS_OF_GIT | {"merge-file"}
_SHELLS = frozenset(("sh", "bash", "dash"))
#: What git puts the name of a file for, quoted for a shell: as a word of its own it stays one; within other quotes it would not.
_PLACE = re.compile(r"(?<!\S)%[fAOBLPSXY](?!\S)")
#: What a shell does with more than words: expansions, redirections, groups, patterns, comments.
_SHELLISH = re.compile(r"[$`\\\n<>(){}*?\[~!#]")
_BETWEEN = frozenset(("|", "||", "&&", ";"))
#: What a shell does elsewhere, or to words that nobody can read beforehand.
_ELSEWHERE = frozenset(("cd", "pushd", "eval"))
#: The output of a command as a word, or a folder named by a variable that has no value here.
_UNREADABLE = re.compile(r"`|\$\(|\$\{?[A-Za-z_]\w*\}?/")

_IN_TREE = "is a program in the working tree, or takes what it imports from there, where agents write, and is not started"
_UNKNOWN = "may take what it runs from the working tree, where agents write, and is not started; `[pr] filters` in aipass.toml names those that you trust (one in Python is best installed by itself: `pipx install`)"


@dataclass(frozen=True, slots=True)
class Judged:
    """`unsafe`: drivers that must not be started (`filter.NAME`, `merge.NAME`), with the reason; `fields`: their settings."""

    unsafe: dict[str, str]
    fields: dict[str, tuple[str, ...]]

    def refusing(self) -> dict[str, str]:
        """The environment in which what needs one of them fails."""
        return as_environment(self._refused())

    def _refused(self) -> dict[str, str]:
        settings: dict[str, str] = {}
        for driver, names in self.fields.items():
            settings |= {f"{driver}.{name}": "false" for name in names}
            settings |= {f"{driver}.required": "true"} if driver.startswith("filter.") else {}
        return settings

    def refusing_all(self) -> dict[str, str]:
        """The same for a program that starts git itself, with all that keeps a git of ours from starting anything else."""
        return as_environment(QUIET_SETTINGS | self._refused())

    def passing(self) -> dict[str, str]:
        """The environment in which files go past them unchanged; for looking only."""
        settings: dict[str, str] = {}
        for driver, names in self.fields.items():
            # Git LFS goes past as a whole, where a program of its own may not be started.
            passed, known = (
                ("filter.lfs", ("clean", "smudge", "process"))
                if driver.startswith("lfs.")
                else (driver, names)
            )
            settings |= {f"{passed}.{name}": "" for name in known} | {f"{passed}.required": "false"}
        return as_environment(settings)


def judged(entries: Iterable[str], root: Path, top: Path, trusted: Collection[str] = ()) -> Judged:
    """What is to be thought of the drivers that `git *WORDS` told. `trusted`: names of filters and drivers, by the person."""
    commands: dict[str, dict[str, str]] = {}
    for entry in entries:
        name, _, command = entry.partition("\n")
        driver, _, field = name.rpartition(".")
        commands.setdefault(driver, {})[field] = command
    for driver, fields in commands.items():
        if driver.startswith("lfs.customtransfer."):
            # The words behind a program are no program.
            fields["path"] = f"{fields.get('path', '')} {fields.pop('args', '')}".strip()
    unsafe: dict[str, str] = {}
    for driver, fields in commands.items():
        if any(_is_in_tree(command, root, top) for command in fields.values()):
            unsafe[driver] = _IN_TREE
        elif _name_of(driver) not in trusted and any(_is_unknown(one, root) for one in fields.values()):
            unsafe[driver] = _UNKNOWN
    return Judged(unsafe, {driver: tuple(commands[driver]) for driver in unsafe})


def is_known(command: str) -> bool:
    """Whether a shell's line starts nothing but programs that take no code from the current folder. Programs are named by their names
    alone, or by a path from `/`.
    """
    return _programs_of(command) is not None


def _programs_of(command: str) -> list[str] | None:
    """The programs that a shell's line starts; None where it is not known to start none but harmless ones."""
    unquoted = re.sub(r"'[^']*'", "''", command)
    bare = _PLACE.sub("", re.sub(r'"[^"]*"', '""', unquoted))
    if _SHELLISH.search(unquoted) or "%" in bare or command.count("%") > len(_PLACE.findall(unquoted)):
        return None
    words = _words(command)
    if words is None:
        return None
    parts: list[list[str]] = [[]]
    for word in words:
        if word in _BETWEEN:
            parts.append([])
        elif set(word) <= set(";|&"):
            return None
        else:
            parts[-1].append(word)
    found: list[str] = []
    for part in parts if words else ():
        started = _programs_of_one(part)
        if started is None:
            return None
        found += started
    return found


def _words(command: str) -> list[str] | None:
    """A line's words as a shell takes it apart; None where it has no end."""
    try:
        lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True  # as a shell does
        lexer.commenters = ""
        return list(lexer)
    except ValueError:
        return None


def _programs_of_one(words: list[str]) -> list[str] | None:
    if not words or ("/" in words[0] and not words[0].startswith("/")):
        return None  # whatever lies there when git starts it
    name, given = os.path.basename(words[0]), words[1:]
    if name in _KNOWN:
        return [words[0]]
    if name == "git" and given and given[0] in _KNOWN_OF_GIT:
        # Its own part is its own; of the others it starts a program of that name.
        return [words[0], *([f"git-{given[0]}"] if given[0] in _OTHERS_OF_GIT else [])]
    if name in _SHELLS and len(given) >= 2 and given[0] == "-c":
        inner = _programs_of(given[1])
        return None if inner is None else [words[0], *inner]
    if name == "sed":
        scripts = [word for word in given if word != "-e" and not _OPTION_OF_SED.fullmatch(word)]
        return [words[0]] if scripts and all(map(_REPLACEMENT.fullmatch, scripts)) else None
    return None


def _name_of(driver: str) -> str:
    """The name that a person has given it: `x` of `filter.x`, of `merge.x`, and of `lfs.extension.x`."""
    return driver.split(".", 2 if driver.startswith("lfs.") else 1)[-1]


def _program(word: str, root: Path) -> str | None:
    return word if word.startswith("/") else programs.of(root).find(word) if "/" not in word else None


def _is_unknown(command: str, root: Path) -> bool:
    """Whether nobody can say what a command starts: also where a program of a known name is a script, a shim or a wrapper."""
    started = _programs_of(command)
    if started is None:
        return True
    found = [_program(word, root) for word in started]
    return any(one is not None and not programs.is_plain(one) for one in found)


def _is_in_tree(command: str, root: Path, top: Path) -> bool:
    """Whether a command names a program or a script that lies in the working tree, or nobody can say what it names."""
    real = os.path.realpath(top)
    found_by = programs.of(root)
    command = programs.expanded(command, str(top))
    if _UNREADABLE.search(command):
        return True
    for word in (*re.findall(r"[^\s;|&<>()'\"`=]+", command), *(_words(command) or ())):
        if word in _ELSEWHERE:
            return True
        if word.startswith("/") and _is_agents(word, str(root)):
            return True
        # A word may happen to be a file's name; a script is named by a path, or with its ending.
        place = top / word
        is_script = ("/" in word and place.parent.is_dir()) or ("." in word and place.is_file())
        found = str(place) if is_script else found_by.hidden(word)
        if found is not None and os.path.realpath(found).startswith(real + "/"):
            return True
        started = _program(word, root)
        if started is None:
            continue
        read = (*programs.imported_from(started, root), *programs.pythons_of(started, root))
        if any(os.path.isabs(one) and _is_agents(one, str(root)) for one in read):
            return True
    return False


def _is_agents(path: str, root: str) -> bool:
    """Whether agents may write what a path names, by its name or by where it leads."""
    real = os.path.realpath(root)
    return any(programs.is_agents(one, real) for one in (os.path.normpath(path), os.path.realpath(path)))


def as_environment(settings: dict[str, str]) -> dict[str, str]:
    """Settings of git as its environment says them."""
    env = {"GIT_CONFIG_COUNT": str(len(settings))} if settings else {}
    for place, (name, value) in enumerate(settings.items()):
        env |= {f"GIT_CONFIG_KEY_{place}": name, f"GIT_CONFIG_VALUE_{place}": value}
    return env
