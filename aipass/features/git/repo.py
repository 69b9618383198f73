"""One git repository, used through git's plumbing commands; never changes a person's HEAD, index or working tree.

Paths are relative to the top of the working tree, with `/`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from subprocess import SubprocessError
from typing import TYPE_CHECKING

from aipass import programs
from aipass.errors import AipassError, ConfigError, RefusedError
from aipass.git import filters
from aipass.git.query import QUIET, ask, no_repository

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

#: A filter such as Git LFS may download files; a command that takes longer is taken for one that hangs.
TIMEOUT_S = 600.0
#: Settings for our private indexes: no split, sparse or cached index, also where the user's configuration has one.
#: A part of a split index is a file beside the user's index, so a private one would depend on it.
PLAIN = (
    "-c",
    "core.splitIndex=false",
    "-c",
    "index.sparse=false",
    "-c",
    "core.untrackedCache=false",
    "-c",
    "core.quotePath=false",
)
#: Bytes of arguments in one command; far below the limit of every system that we support.
MAX_WORDS = 60_000
#: Files and folders in git's own folder that exist while an operation of several steps is unfinished.
UNFINISHED = {
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase, or `git am`,",
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "BISECT_LOG": "a bisect",
}


class GitError(AipassError):
    """A git command failed; the message contains the command and git's own error text."""


@dataclass(frozen=True, slots=True)
class Tip:
    """The branch that is checked out (None: HEAD is detached), and its newest commit."""

    branch: str | None
    commit: str


class Repo:
    """The git repository around an aipass root. Thread-safe: each call is one git process."""

    def __init__(self, root: Path, scratch: Path) -> None:
        """Raises ConfigError where `root` is in no repository. `scratch`: a folder of aipass for private indexes and stages."""
        words = ("rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir", "--show-toplevel")
        found = ask(root, *words)
        lines = found[0].removesuffix("\n").split("\n") if found else []
        if len(lines) != 3:
            raise ConfigError(f"{root}: {no_repository(root)}")
        self.root = root
        self.own, self.common, self.top = (Path(line) for line in lines)
        relative = os.path.relpath(os.path.realpath(root), os.path.realpath(self.top))
        #: The root's path below the top, with a closing slash; "" where the root is the top.
        self.prefix = "" if relative == "." else relative + "/"
        self.shared = self.common / "aipass"
        self.scratch = scratch
        #: Environment that keeps git from starting a filter or merge driver that an agent could have written.
        self._defused: dict[str, str] = {}
        #: The same for a program that starts git in this repository by itself, such as the CLI of a forge.
        self.environment: dict[str, str] = {}
        #: The disabled filters and merge drivers, each with the reason.
        self.unsafe: dict[str, str] = {}
        self.look_again()

    def look_again(self, trusted: Collection[str] = ()) -> None:
        """Read the configured filters and merge drivers again, and disable those that could run code from the tree.

        Call it before each job: the configuration may have changed. A command that needs a disabled one fails with its name.
        `trusted`: the names that a person lists in `[pr] filters`.
        """
        # Git runs filters outside the sandbox with the user's rights, so a script in the tree would give every agent
        # that may write it those rights. Without our own overrides, which would hide the configured commands:
        said = self.run(*filters.WORDS, fine=(0, 1), env={"GIT_CONFIG_COUNT": "0"})
        found = filters.judged(records(said), self.root, self.top, trusted)
        # In one assignment, never emptied first: another thread may start git at any moment.
        self._defused, self.unsafe, self.environment = found.refusing(), found.unsafe, found.refusing_all()

    def run(
        self,
        *words: str,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        fine: tuple[int, ...] = (0,),
        top: Path | None = None,
        timeout: float = TIMEOUT_S,
    ) -> bytes:
        """Run git and return its output. Raises GitError where it cannot run or its exit status is not in `fine`.

        `timeout` is in seconds; `top` replaces the top of the working tree as the current folder.
        """
        # No optional locks: a query must never make a person's git command fail. No prompt: no person would see it.
        more = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        command = ["git", *QUIET, *PLAIN, *words]
        try:
            # Empty input instead of ours, else a git that reads would wait for the engine's terminal.
            done = programs.run(
                self.root,
                command,
                cwd=top or self.top,
                env={**more, **self._defused, **(env or {})},
                capture_output=True,
                timeout=timeout,
                input=b"" if stdin is None else stdin,
            )
        except (OSError, SubprocessError) as exc:
            raise GitError(f"`git {words[0]}` could not be run: {exc}") from exc
        if done.returncode not in fine:
            said = os.fsdecode(done.stderr).strip() or os.fsdecode(done.stdout).strip()[:500]
            if self.unsafe:
                said += "".join(f"; {driver} {why}" for driver, why in sorted(self.unsafe.items()))
            raise GitError(
                f"`git {words[0]}` ended with exit status {done.returncode}: {said or 'no message'}"
            )
        return bytes(done.stdout)

    def one(self, *words: str) -> str:
        """Git's output as one line of text. Raises GitError."""
        return os.fsdecode(self.run(*words)).removesuffix("\n")

    def commit_of(self, name: str) -> str | None:
        """The id of the commit that a ref, tag or id names; None where there is none."""
        said = self.run(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", fine=(0, 1, 128)
        )
        return said.decode().strip() or None

    def tip(self) -> Tip:
        """The branch that is checked out or being rebased, and its newest commit.

        Raises ConfigError in a repository without commits.
        """
        branch = os.fsdecode(self.run("symbolic-ref", "--quiet", "HEAD", fine=(0, 1))).strip() or None
        for folder in ("rebase-merge", "rebase-apply"):
            try:
                # During a rebase HEAD is detached and moves; the branch stays at its old commit until the rebase ends.
                branch = branch or os.fsdecode((self.own / folder / "head-name").read_bytes()).strip() or None
            except OSError:
                continue
        branch = branch if branch and branch.startswith("refs/heads/") else None
        commit = self.commit_of(branch or "HEAD")
        if commit is None:
            raise ConfigError("this repository has no commit yet; make the first commit, then ask again")
        return Tip(branch, commit)

    def unfinished(self) -> str | None:
        """The operation of several steps that is unfinished in this working tree, such as "a merge"; None without one."""
        return next((what for name, what in UNFINISHED.items() if (self.own / name).exists()), None)

    def is_ancestor(self, old: str, new: str) -> bool:
        """Whether the history of `new` contains `old`. A commit counts as its own ancestor."""
        return old == new or self.run("merge-base", old, new, fine=(0, 1)).decode().strip() == old

    def ref(self, name: str) -> str | None:
        """The object id that a ref points to; None where there is no such ref. Does not look inside a tag."""
        return (
            self.run("rev-parse", "--verify", "--quiet", "--end-of-options", name, fine=(0, 1, 128))
            .decode()
            .strip()
            or None
        )

    def move(self, reason: str, *changes: str) -> None:
        """Change refs atomically; `changes` are lines of `git update-ref --stdin`. Raises RefusedError where one cannot be changed.

        A line with the expected old value makes it a compare-and-swap, so a commit of a person is never overwritten.
        """
        lines = "".join(f"{one}\n" for one in changes)
        try:
            self.run("update-ref", "-m", reason, "--create-reflog", "--stdin", stdin=lines.encode())
        except GitError as exc:
            raise RefusedError(f"a branch cannot be moved: {exc}; nothing was changed") from exc

    def checked_out(self) -> dict[str, str]:
        """The branches that are checked out in any worktree, each with the worktree's folder."""
        found = {}
        where = ""
        for line in records(self.run("worktree", "list", "--porcelain", "-z")):
            name, _, value = line.partition(" ")
            if name == "worktree":
                where = value
            elif name == "branch":
                found[value] = where
        return found

    def signer(self) -> str:
        """The committer of aipass's commits, as `Name <address>`: the user's git identity, else a neutral one."""
        said = os.fsdecode(self.run("var", "GIT_COMMITTER_IDENT", fine=(0, 1, 128))).strip()
        name, mark, _ = said.rpartition(">")
        return name + mark if mark else "aipass <aipass@localhost>"


def batches(words: Iterable[str]) -> Iterator[list[str]]:
    """Split arguments into groups, each short enough for one command line (`MAX_WORDS`)."""
    batch: list[str] = []
    size = 0
    for word in words:
        batch.append(word)
        # The kernel counts the pointer to each argument (8 bytes) towards its limit as well.
        size += len(os.fsencode(word)) + 8
        if size >= MAX_WORDS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def records(data: bytes) -> list[str]:
    """The parts of output that git separates with NUL (`-z`), without empty ones."""
    return [os.fsdecode(entry) for entry in data.split(b"\0") if entry]
