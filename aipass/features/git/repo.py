"""One repository as aipass works on it: git's own plumbing, never HEAD, index or working tree of people.

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

#: Filters (LFS, say) may fetch something on the way; what takes longer hangs.
TIMEOUT_S = 600.0
#: An index of ours is whole, whatever the user's index is.
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
#: Bytes of arguments in one command; far below every system's limit.
MAX_WORDS = 60_000
#: Folders in git's own that say that somebody is in the middle of something.
UNFINISHED = {
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase, or `git am`,",
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "BISECT_LOG": "a bisect",
}


class GitError(AipassError):
    """Git said no: the command and its own words."""


@dataclass(frozen=True, slots=True)
class Tip:
    """Where the branch stands that is checked out. `branch` None: HEAD is on none."""

    branch: str | None
    commit: str


class Repo:
    """The git repository that holds a root."""

    def __init__(self, root: Path, scratch: Path) -> None:
        """`scratch` is a folder of ours for private indexes and the like; raises ConfigError where there is no repository."""
        words = ("rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir", "--show-toplevel")
        found = ask(root, *words)
        lines = found[0].removesuffix("\n").split("\n") if found else []
        if len(lines) != 3:
            raise ConfigError(f"{root}: {no_repository(root)}")
        self.root = root
        self.own, self.common, self.top = (Path(line) for line in lines)
        relative = os.path.relpath(os.path.realpath(root), os.path.realpath(self.top))
        #: The root's place below the top, with a closing slash; "" where it is the top itself.
        self.prefix = "" if relative == "." else relative + "/"
        self.shared = self.common / "aipass"
        self.scratch = scratch
        #: What keeps git from starting what agents could have written, as its environment says it.
        self._defused: dict[str, str] = {}
        #: The environment for a program that starts git in this repository by itself, such as the CLI of a forge.
        self.environment: dict[str, str] = {}
        self.unsafe: dict[str, str] = {}
        self.look_again()

    def look_again(self, trusted: Collection[str] = ()) -> None:
        """Read anew which filters and merge drivers are configured, before something is done: those that could run what agents
        wrote must not be started. What needs one fails, and says so. `trusted`: by the person, in `[pr] filters`.
        """
        # As it is configured, not as the last look has covered it.
        said = self.run(*filters.WORDS, fine=(0, 1), env={"GIT_CONFIG_COUNT": "0"})
        found = filters.judged(records(said), self.root, self.top, trusted)
        # At once: another thread may start git at any moment.
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
        """What git says to these words. Raises GitError where it ends with another status than those that are fine."""
        more = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        command = ["git", *QUIET, *PLAIN, *words]
        try:
            # Without anything to say it reads nothing, not what a terminal may say.
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
            raise GitError(f"`git {words[0]}` ended with {done.returncode}: {said or 'it does not say why'}")
        return bytes(done.stdout)

    def one(self, *words: str) -> str:
        """The one line that git says."""
        return os.fsdecode(self.run(*words)).removesuffix("\n")

    def commit_of(self, name: str) -> str | None:
        """The commit that a name means; None where there is none."""
        said = self.run(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", fine=(0, 1, 128)
        )
        return said.decode().strip() or None

    def tip(self) -> Tip:
        """The branch that is checked out, or that is being rebased, and its commit.

        Raises ConfigError where there is no commit yet.
        """
        branch = os.fsdecode(self.run("symbolic-ref", "--quiet", "HEAD", fine=(0, 1))).strip() or None
        for folder in ("rebase-merge", "rebase-apply"):
            try:
                # Until it is finished HEAD is on its way; the branch stands where it stood.
                branch = branch or os.fsdecode((self.own / folder / "head-name").read_bytes()).strip() or None
            except OSError:
                continue
        branch = branch if branch and branch.startswith("refs/heads/") else None
        commit = self.commit_of(branch or "HEAD")
        if commit is None:
            raise ConfigError("this repository has no commit yet; make the first one, then ask again")
        return Tip(branch, commit)

    def unfinished(self) -> str | None:
        """What somebody is in the middle of."""
        return next((what for name, what in UNFINISHED.items() if (self.own / name).exists()), None)

    def is_ancestor(self, old: str, new: str) -> bool:
        """Whether `new` holds all that `old` holds."""
        return old == new or self.run("merge-base", old, new, fine=(0, 1)).decode().strip() == old

    def ref(self, name: str) -> str | None:
        """What a ref points to."""
        return (
            self.run("rev-parse", "--verify", "--quiet", "--end-of-options", name, fine=(0, 1, 128))
            .decode()
            .strip()
            or None
        )

    def move(self, reason: str, *changes: str) -> None:
        """Change refs, all or none: lines of `git update-ref --stdin`. Raises RefusedError where one cannot be moved."""
        lines = "".join(f"{one}\n" for one in changes)
        try:
            self.run("update-ref", "-m", reason, "--create-reflog", "--stdin", stdin=lines.encode())
        except GitError as exc:
            raise RefusedError(f"a branch cannot be moved: {exc}; nothing was changed") from exc

    def checked_out(self) -> dict[str, str]:
        """Branches that are checked out in some worktree, with its folder."""
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
        """Who the user is to git, for commits that aipass makes for them: `Name <address>`."""
        said = os.fsdecode(self.run("var", "GIT_COMMITTER_IDENT", fine=(0, 1, 128))).strip()
        name, mark, _ = said.rpartition(">")
        return name + mark if mark else "aipass <aipass@localhost>"


def batches(words: Iterable[str]) -> Iterator[list[str]]:
    """Arguments in as many commands as they need."""
    batch: list[str] = []
    size = 0
    for word in words:
        batch.append(word)
        size += len(os.fsencode(word)) + 8
        if size >= MAX_WORDS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def records(data: bytes) -> list[str]:
    """What git separates by NUL."""
    return [os.fsdecode(entry) for entry in data.split(b"\0") if entry]
