"""The safety check of configured git filters and merge drivers: it decides which of them aipass's own git may start.

A program that git starts for aipass runs outside every fence (sandbox). So git may start only programs that take no code from the working
tree, where agents write, and those that the user names in `[pr] filters`; never one whose command names a file of the tree.
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

#: The git command that lists the drivers; its output goes to `judged`.
WORDS = (
    "config", "-z", "--get-regexp",
    r"^((filter|merge)\..*\.(clean|smudge|process|driver)|lfs\.(extension|customtransfer)\..*\.(clean|smudge|path|args))$",
)  # fmt: skip

#: Programs that run no code from the current folder and whose arguments are no code: https://git-scm.com/docs/gitattributes,
#: https://github.com/topics/git-filter. Left out, because they run or load something from there: make, npx, uv, prettier and jupytext (their
#: configuration is a program), rustfmt (rust-toolchain.toml names a folder of programs), sops (.sops.yaml), `python -m` (a module of the
#: current folder comes first), nbstripout and all other scripts (the interpreter may find modules in many places), awk, perl, gpg, openssl
#: (files of options, libraries), sort (its option for a compressor).
_KNOWN = frozenset(
    (
        "git-lfs", "git-annex", "git-crypt", "cat", "tr", "head", "tail", "rev", "uniq", "cut", "expand", "unexpand",
        "fold", "fmt", "nl", "tac", "wc", "jq", "base64", "iconv", "dos2unix", "unix2dos", "gzip", "gunzip", "zcat", "bzip2", "bunzip2",
        "xz", "unxz", "zstd", "gofmt", "clang-format", "echo", "printf", "true", "false", "mergiraf",
    )
)  # fmt: skip
#: A single `s` command of sed without the flags `e` (runs a program) and `w` (writes a file); and sed's options that name no file.
_REPLACEMENT = re.compile(r"s([^\w\s\\])(?:\\.|(?!\1)[^\\])*\1(?:\\.|(?!\1)[^\\])*\1[gpiI\d]*")
_OPTION_OF_SED = re.compile(r"-[Enru]+|--regexp-extended|--quiet|--unbuffered")
_OTHERS_OF_GIT = frozenset(("lfs", "annex", "crypt"))
_KNOWN_OF_GIT = _OTHERS_OF_GIT | {"merge-file"}
_SHELLS = frozenset(("sh", "bash", "dash"))
#: git's placeholders for file names. git quotes the name for a shell: safe as a separate word, but not within other quotes.
_PLACE = re.compile(r"(?<!\S)%[fAOBLPSXY](?!\S)")
#: Shell syntax beyond plain words: expansions, redirections, groups, patterns, comments.
_SHELLISH = re.compile(r"[$`\\\n<>(){}*?\[~!#]")
_BETWEEN = frozenset(("|", "||", "&&", ";"))
#: Shell commands that change the folder, or run words that cannot be read before.
_ELSEWHERE = frozenset(("cd", "pushd", "eval"))
#: A command substitution, or a folder named by a variable without a value here.
_UNREADABLE = re.compile(r"`|\$\(|\$\{?[A-Za-z_]\w*\}?/")

_IN_TREE = (
    "is a program in the working tree, where agents write, or imports from there; aipass does not start it"
)
_UNKNOWN = "may run code from the working tree, where agents write, so aipass does not start it; if you trust it, name it in `[pr] filters` in aipass.toml (install a Python program by itself: `pipx install`)"


@dataclass(frozen=True, slots=True)
class Judged:
    """The result of the check. `unsafe`: drivers that git must not start (`filter.NAME`, `merge.NAME`), with the reason; `fields`: their settings."""

    unsafe: dict[str, str]
    fields: dict[str, tuple[str, ...]]

    def refusing(self) -> dict[str, str]:
        """Return environment variables with which git fails when it needs an unsafe driver."""
        return as_environment(self._refused())

    def _refused(self) -> dict[str, str]:
        settings: dict[str, str] = {}
        for driver, names in self.fields.items():
            settings |= {f"{driver}.{name}": "false" for name in names}
            # Without `required`, git would take the unfiltered content when the filter fails.
            settings |= {f"{driver}.required": "true"} if driver.startswith("filter.") else {}
        return settings

    def refusing_all(self) -> dict[str, str]:
        """The same for a program that starts git itself, with all settings of `query.QUIET`."""
        return as_environment(QUIET_SETTINGS | self._refused())

    def passing(self) -> dict[str, str]:
        """Return environment variables with which unsafe drivers leave files unchanged; only for git commands that write nothing."""
        settings: dict[str, str] = {}
        for driver, names in self.fields.items():
            # Git LFS starts its extensions itself, so an unsafe extension disables LFS as a whole.
            passed, known = (
                ("filter.lfs", ("clean", "smudge", "process"))
                if driver.startswith("lfs.")
                else (driver, names)
            )
            settings |= {f"{passed}.{name}": "" for name in known} | {f"{passed}.required": "false"}
        return as_environment(settings)


def judged(entries: Iterable[str], root: Path, top: Path, trusted: Collection[str] = ()) -> Judged:
    """Return which drivers in the output of `git *WORDS` are unsafe, and why. `trusted`: the names in `[pr] filters`.

    Even a trusted driver is unsafe if its command names a file of the tree.
    """
    commands: dict[str, dict[str, str]] = {}
    for entry in entries:
        name, _, command = entry.partition("\n")
        driver, _, field = name.rpartition(".")
        commands.setdefault(driver, {})[field] = command
    for driver, fields in commands.items():
        if driver.startswith("lfs.customtransfer."):
            # Arguments in a field of their own are no program: they belong to the command in `path`.
            fields["path"] = f"{fields.get('path', '')} {fields.pop('args', '')}".strip()
    unsafe: dict[str, str] = {}
    for driver, fields in commands.items():
        if any(_is_in_tree(command, root, top) for command in fields.values()):
            unsafe[driver] = _IN_TREE
        elif _name_of(driver) not in trusted and any(_is_unknown(one, root) for one in fields.values()):
            unsafe[driver] = _UNKNOWN
    return Judged(unsafe, {driver: tuple(commands[driver]) for driver in unsafe})


def is_known(command: str) -> bool:
    """Return whether a shell command starts only programs that take no code from the current folder.

    The command must name them without a folder, or by an absolute path.
    """
    return _programs_of(command) is not None


def _programs_of(command: str) -> list[str] | None:
    """The programs that a shell command starts; None if any of them is not known as harmless."""
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
    """The words of a shell command; None where a quote is not closed."""
    try:
        lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True  # otherwise shlex splits at characters that a shell keeps in words
        lexer.commenters = ""
        return list(lexer)
    except ValueError:
        return None


def _programs_of_one(words: list[str]) -> list[str] | None:
    if not words or ("/" in words[0] and not words[0].startswith("/")):
        return None  # a relative path: an agent may replace that file before git starts it
    name, given = os.path.basename(words[0]), words[1:]
    if name in _KNOWN:
        return [words[0]]
    if name == "git" and given and given[0] in _KNOWN_OF_GIT:
        # `git merge-file` is part of git; for `git lfs` and the others git starts a program `git-lfs` from the PATH.
        return [words[0], *([f"git-{given[0]}"] if given[0] in _OTHERS_OF_GIT else [])]
    if name in _SHELLS and len(given) >= 2 and given[0] == "-c":
        inner = _programs_of(given[1])
        return None if inner is None else [words[0], *inner]
    if name == "sed":
        scripts = [word for word in given if word != "-e" and not _OPTION_OF_SED.fullmatch(word)]
        return [words[0]] if scripts and all(map(_REPLACEMENT.fullmatch, scripts)) else None
    return None


def _name_of(driver: str) -> str:
    """The name that the user has given it: `x` of `filter.x`, of `merge.x`, and of `lfs.extension.x`."""
    return driver.split(".", 2 if driver.startswith("lfs.") else 1)[-1]


def _program(word: str, root: Path) -> str | None:
    return word if word.startswith("/") else programs.of(root).find(word) if "/" not in word else None


def _is_unknown(command: str, root: Path) -> bool:
    """Whether a command starts an unknown program, or a known name is in fact a script, a shim or a wrapper."""
    started = _programs_of(command)
    if started is None:
        return True
    found = [_program(word, root) for word in started]
    return any(one is not None and not programs.is_plain(one) for one in found)


def _is_in_tree(command: str, root: Path, top: Path) -> bool:
    """Whether a command names a program or a script in the working tree, or cannot be read for certain."""
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
        # An argument may by chance be the name of a file. Only a path, or a name with an ending, counts as a script.
        place = top / word
        is_script = ("/" in word and place.parent.is_dir()) or ("." in word and place.is_file())
        found = str(place) if is_script else found_by.hidden(word)
        if found is not None and os.path.realpath(found).startswith(real + "/"):
            return True
        started = _program(word, root)
        if started is None:
            continue
        # A program outside the tree is unsafe as well if its interpreter imports modules from the tree.
        read = (*programs.imported_from(started, root), *programs.pythons_of(started, root))
        if any(os.path.isabs(one) and _is_agents(one, str(root)) for one in read):
            return True
    return False


def _is_agents(path: str, root: str) -> bool:
    """Whether agents may write the file at `path`, or the file that its symbolic links lead to."""
    real = os.path.realpath(root)
    return any(programs.is_agents(one, real) for one in (os.path.normpath(path), os.path.realpath(path)))


def as_environment(settings: dict[str, str]) -> dict[str, str]:
    """Return git settings as environment variables (GIT_CONFIG_COUNT and so on)."""
    env = {"GIT_CONFIG_COUNT": str(len(settings))} if settings else {}
    for place, (name, value) in enumerate(settings.items()):
        env |= {f"GIT_CONFIG_KEY_{place}": name, f"GIT_CONFIG_VALUE_{place}": value}
    return env
