"""What git did, each thing once: the logs that git keeps of its refs, compared with how far the ledger knows them.

Hooks, a folder that is watched, and a start of the engine all end here, so it does not matter which of them saw a change, or
whether all did. Called inside the transaction that records the facts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aipass.event import Fact
from aipass.supervisor.held import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from aipass.ledger import Ledger

SOURCE = "git"
HEAD, HEADS, REMOTES, TAGS = "HEAD", "refs/heads/", "refs/remotes/", "refs/tags/"
#: Where git keeps what belongs to a worktree: `worktrees/<name>/HEAD`.
WORKTREES = "worktrees"
#: Refs of ours, which nobody's rules are about.
OURS = "refs/heads/aipass/"
_LINE = re.compile(rb"([0-9a-f]{40,64}) ([0-9a-f]{40,64}) .*> (\d+) [-+]\d{4}(?:\t(.*))?")
_MOVING = re.compile(r"checkout: moving from (.*) to (.*)")
_NEW_COMMIT = re.compile(r"(commit|cherry-pick|revert|am)\b")
#: What git itself says in a log of what it did. A program with a git of its own may say anything else, GitPython a commit's message.
_BY_GIT = re.compile(
    r"([Bb]ranch|checkout|reset|rebase|pull|fetch|push|clone|merge|update by push|stash|WIP on|bisect|worktree)\b"
)
#: A commit that such a program tells of was made at most so many seconds before.
JUST_S = 10.0
_TAKEN_OVER = re.compile(r"[Bb]ranch: (renamed|copied) ")
#: The end of a rebase, of a pull as well, in a branch's own log, with the commit that it went onto.
REBASED = re.compile(r"(?:rebase|pull)\b[^()]*\(finish\): refs/heads/.* onto ([0-9a-f]{40,64})")
#: On the way of a pull that rebases: nothing has come by it yet.
_STEP = re.compile(r"pull\b[^()]*\((?!finish\))")
#: A line of a log that is longer is cut off by none but a broken program.
MAX_LINE_BYTES = 8_000_000
#: So many refs that moved in one and the same way are told one by one; more are one event.
MANY, NAMED = 50, 1000


@dataclass(frozen=True, slots=True)
class ReflogEntry:
    """One line of a ref's log: from which commit to which, when (seconds since the epoch), and by what."""

    old: str
    new: str
    time: float
    message: str

    @classmethod
    def of(cls, line: bytes) -> ReflogEntry | None:
        """From a line of the log's file; None for what is none."""
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        old, new, time, message = match.groups()
        return cls(old.decode(), new.decode(), float(time), os.fsdecode(message or b""))

    @property
    def mark(self) -> str:
        """What tells it from every other."""
        return f"{self.old} {self.new} {self.time:.0f} {self.message}"

    @property
    def makes_commit(self) -> bool:
        """Whether a commit was made by it, and not only moved to."""
        return _NEW_COMMIT.match(self.message) is not None

    @property
    def is_unknown(self) -> bool:
        """Whether git has no such word: then the commit itself says whether it was just made."""
        return not self.makes_commit and _BY_GIT.match(self.message) is None

    @property
    def is_merge(self) -> bool:
        """Whether another's commits came by it."""
        return self.message.startswith(("merge ", "pull")) and _STEP.match(self.message) is None


@dataclass(frozen=True, slots=True)
class About:
    """A commit: who made it, its first line, the paths that it changed; its first parent, and when it was made."""

    author: str
    subject: str
    paths: tuple[str, ...]
    parent: str = ""
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class GitSeen:
    """Logs of refs as they are now, oldest entry first, the tags, and what is known of the newer commits.

    `detached`: which HEADs are on no branch, so that their own logs are the only ones to tell of commits. `rebased`: by the new tip of a branch
    that was rebased the commits that it was rebased to, oldest first, where somebody wants each. `now` in seconds since the epoch.
    """

    logs: Mapping[str, tuple[ReflogEntry, ...]]
    tags: Mapping[str, str] | None = None
    about: Mapping[str, About] = field(default_factory=dict)
    detached: frozenset[str] = frozenset()
    rebased: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    now: float = float("inf")


def read_log(path: Path, tail: int) -> tuple[ReflogEntry, ...]:
    """The entries at the end of a ref's log, oldest first: those of its last `tail` bytes, and at least the last one."""
    try:
        # An agent's program outside the fence may have put a pipe there, or something endless.
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            while True:
                file.seek(max(0, size - tail))
                lines = file.read(tail).split(b"\n")
                # The last line ends the file, and the one before it may begin before what was read.
                if len(lines) > 2 or tail >= min(size, MAX_LINE_BYTES):
                    break
                tail *= 4
    except OSError:
        return ()
    return tuple(entry for line in lines if (entry := ReflogEntry.of(line)) is not None)


def _marks(entries: tuple[ReflogEntry, ...]) -> list[str]:
    """What each entry is known by. The same move made twice within a second is told apart by its number."""
    seen: dict[str, int] = {}
    found = []
    for entry in entries:
        number = seen[entry.mark] = seen.get(entry.mark, 0) + 1
        found.append(entry.mark if number == 1 else f"{entry.mark} {number}")
    return found


def _is_head(ref: str) -> bool:
    """Whether it is the HEAD of a worktree, of this one or of another."""
    return ref == HEAD or ref.startswith(f"{WORKTREES}/")


def _on_ours(entries: tuple[ReflogEntry, ...]) -> set[int]:
    """Which entries of a HEAD's log were made on a branch of ours, by their ids."""
    on, found = "", set()
    for entry in entries:
        if (moved := _MOVING.fullmatch(entry.message)) is not None:
            on = moved[2]
        elif f"refs/heads/{on}/".startswith(OURS):
            found.add(id(entry))
    return found


class RefTracker:
    """How far the ledger knows the logs, and the rules by which entries become facts."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def settle(self, seen: GitSeen) -> list[Fact]:
        """The facts that were not known yet. What was there when git was first looked at is no news."""
        is_first = self._ledger.meta("git.baseline") is None
        facts: list[Fact] = []
        for ref in sorted(seen.logs, key=_is_head):
            entries = seen.logs[ref]
            ours = _on_ours(entries) if _is_head(ref) else set()
            for entry in self._new(ref, entries):
                if id(entry) in ours:
                    continue
                if not is_first:
                    facts += self._facts(ref, entry, seen, is_past=entry is not entries[-1])
                elif entry.makes_commit:
                    self._is_new_commit(entry.new)
            if entries:
                # A date that lies ahead must not hide what comes before it.
                self._know(ref, _marks(entries)[-1], min(entries[-1].time, seen.now))
        if seen.tags is not None:
            tags = list(self._tags(seen.tags))
            facts += [] if is_first else tags
        if is_first:
            self._ledger.run("set_meta", {"key": "git.baseline", "value": "1"})
        return _folded(facts)

    def _new(self, ref: str, entries: tuple[ReflogEntry, ...]) -> list[ReflogEntry]:
        row = self._ledger.one("git_ref", {"ref": ref})
        if row is None:
            # With another's name came its log: of what lies before, commits may be news; they are known by themselves.
            taken = max((at for at, one in enumerate(entries) if _TAKEN_OVER.match(one.message)), default=0)
            return [one for at, one in enumerate(entries) if at >= taken or one.makes_commit]
        marks = _marks(entries)
        for at in range(len(entries) - 1, -1, -1):
            if marks[at] == row["known"]:
                return list(entries[at + 1 :])
        # The log was cut, or the branch was made anew.
        then = row["time"]
        return [one for one in entries if one.time > then or (one.makes_commit and one.time >= then)]

    def _know(self, ref: str, known: str, time: float) -> None:
        self._ledger.run("set_git_ref", {"ref": ref, "known": known, "time": time})

    def _is_new_commit(self, sha: str) -> bool:
        """Whether a commit is told for the first time, on whatever branch."""
        if self._ledger.one("git_commit", {"sha": sha}) is not None:
            return False
        self._ledger.run("insert_git_commit", {"sha": sha})
        return True

    def _facts(self, ref: str, entry: ReflogEntry, seen: GitSeen, *, is_past: bool) -> Iterator[Fact]:
        """`is_past`: more has been done since, so a branch's own log, which is read later, has what was done on it."""
        about = seen.about.get(entry.new)
        detail: dict[str, object] = {"sha": entry.new, "old": entry.old, "branch": None}
        if about is not None:
            detail |= {"author": about.author, "subject": about.subject}
        if _is_head(ref):
            is_only_here = ref in seen.detached or is_past
            if ref == HEAD and (moved := _MOVING.fullmatch(entry.message)) is not None:
                detail |= {"from": moved[1], "branch": moved[2]}
                yield Fact("git.checkout", SOURCE, ref=entry.new, detail=detail)
            elif is_only_here and _makes_commit(entry, about) and self._is_new_commit(entry.new):
                yield Fact("git.commit", SOURCE, ref=entry.new, detail=detail | _made(entry, about))
        elif ref.startswith(HEADS):
            detail["branch"] = ref.removeprefix(HEADS)
            if _makes_commit(entry, about):
                if self._is_new_commit(entry.new):
                    yield Fact("git.commit", SOURCE, ref=entry.new, detail=detail | _made(entry, about))
            elif entry.is_merge:
                yield Fact("git.merge", SOURCE, ref=entry.new, detail=detail | _made(entry, about))
                yield from self._rebased(entry, seen, detail["branch"])
            else:
                yield Fact("git.ref", SOURCE, ref=ref, detail=detail | {"reason": entry.message})
                yield from self._rebased(entry, seen, detail["branch"])
        elif entry.message == "update by push":
            remote, _, branch = ref.removeprefix(REMOTES).partition("/")
            detail |= {"remote": remote, "branch": branch}
            yield Fact("git.push", SOURCE, ref=entry.new, detail=detail)
        else:
            yield Fact("git.ref", SOURCE, ref=ref, detail=detail | {"reason": entry.message})

    def _rebased(self, entry: ReflogEntry, seen: GitSeen, branch: object) -> Iterator[Fact]:
        """Each commit that a rebase has made, where somebody wants to know."""
        for sha in seen.rebased.get(entry.new, ()):
            if self._is_new_commit(sha):
                detail: dict[str, object] = {"sha": sha, "old": None, "branch": branch, "rebased": True}
                about = seen.about.get(sha)
                if about is not None:
                    detail |= {"author": about.author, "subject": about.subject}
                made = ReflogEntry("", sha, entry.time, "commit: by a rebase")
                yield Fact("git.commit", SOURCE, ref=sha, detail=detail | _made(made, about))

    def _tags(self, tags: Mapping[str, str]) -> Iterator[Fact]:
        known = {row["ref"]: row["known"] for row in self._ledger.all("git_tags")}
        for ref, sha in tags.items():
            if known.get(ref) != sha:
                self._know(ref, sha, 0.0)
                detail = {
                    "sha": sha,
                    "old": known.get(ref),
                    "branch": None,
                    "tag": ref.removeprefix(TAGS),
                    "reason": "tag",
                }
                yield Fact("git.ref", SOURCE, ref=ref, detail=detail)


def _makes_commit(entry: ReflogEntry, about: About | None) -> bool:
    if entry.makes_commit or about is None or not entry.is_unknown:
        return entry.makes_commit
    old = entry.old if entry.old.strip("0") else ""
    return about.parent == old and abs(entry.time - about.time) <= JUST_S


def _made(entry: ReflogEntry, about: About | None) -> dict[str, object]:
    return {"paths": list(about.paths) if about is not None else [], "amend": "(amend)" in entry.message}


def _folded(facts: list[Fact]) -> list[Fact]:
    """With many refs that moved in the same way as one fact, in the place of the first."""
    alike: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.kind == "git.ref":
            alike.setdefault(_way(fact), []).append(fact)
    told = []
    for fact in facts:
        group = alike.get(_way(fact), []) if fact.kind == "git.ref" else []
        if len(group) <= MANY:
            told.append(fact)
        elif fact is group[0]:
            refs = [one.ref for one in group]
            detail = {**fact.detail, "branch": None, "count": len(refs), "refs": refs[:NAMED]}
            told.append(Fact("git.ref", SOURCE, ref=None, detail=detail))
    return told


def _way(fact: Fact) -> str:
    return "tag" if "tag" in fact.detail else str(fact.detail.get("reason")).partition(":")[0]
