"""The comparison of git's reflogs with the ledger: it turns new entries into facts, each once.

Hooks, the watched git folder and a start of the engine all end here, so a change that several of them saw is recorded once (idempotence).
The engine calls it inside the transaction that records the facts.
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
#: The folder with the HEAD of each linked worktree: `worktrees/<name>/HEAD`.
WORKTREES = "worktrees"
#: aipass's own refs; commits on them cause no events, so no rule reacts to the engine's own work.
OURS = "refs/heads/aipass/"
_LINE = re.compile(rb"([0-9a-f]{40,64}) ([0-9a-f]{40,64}) .*> (\d+) [-+]\d{4}(?:\t(.*))?")
_MOVING = re.compile(r"checkout: moving from (.*) to (.*)")
_NEW_COMMIT = re.compile(r"(commit|cherry-pick|revert|am)\b")
#: The first words of git's own log messages. A program with its own implementation of git may write others: GitPython writes the commit message.
_BY_GIT = re.compile(
    r"([Bb]ranch|checkout|reset|rebase|pull|fetch|push|clone|merge|update by push|stash|WIP on|bisect|worktree)\b"
)
#: An entry of such a program is a new commit only if that commit is at most this much older.
JUST_S = 10.0
_TAKEN_OVER = re.compile(r"[Bb]ranch: (renamed|copied) ")
#: The end of a rebase (also of a pull) in the branch's own log; the group is the commit that it was rebased onto.
REBASED = re.compile(r"(?:rebase|pull)\b[^()]*\(finish\): refs/heads/.* onto ([0-9a-f]{40,64})")
#: A step in the middle of a pull that rebases: the branch has no new commits by it yet.
_STEP = re.compile(r"pull\b[^()]*\((?!finish\))")
#: No working program writes a longer line into a log.
MAX_LINE_BYTES = 8_000_000
#: If more than MANY refs moved in the same way, one event names them all, up to NAMED (a fetch can move thousands).
MANY, NAMED = 50, 1000


@dataclass(frozen=True, slots=True)
class ReflogEntry:
    """One line of a reflog: the commits before and after, the time (seconds since the epoch), and git's message."""

    old: str
    new: str
    time: float
    message: str

    @classmethod
    def of(cls, line: bytes) -> ReflogEntry | None:
        """Parse a line of the log; None for a line that is no entry."""
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        old, new, time, message = match.groups()
        return cls(old.decode(), new.decode(), float(time), os.fsdecode(message or b""))

    @property
    def mark(self) -> str:
        """The text that identifies the entry in its log."""
        return f"{self.old} {self.new} {self.time:.0f} {self.message}"

    @property
    def makes_commit(self) -> bool:
        """Whether the operation made a commit, and did not only move to one."""
        return _NEW_COMMIT.match(self.message) is not None

    @property
    def is_unknown(self) -> bool:
        """Whether git itself has no such message; then the commit's own date decides whether it is new."""
        return not self.makes_commit and _BY_GIT.match(self.message) is None

    @property
    def is_merge(self) -> bool:
        """Whether the operation brought commits of another branch."""
        return self.message.startswith(("merge ", "pull")) and _STEP.match(self.message) is None


@dataclass(frozen=True, slots=True)
class About:
    """A commit: author, subject, changed paths, first parent, and time (seconds since the epoch)."""

    author: str
    subject: str
    paths: tuple[str, ...]
    parent: str = ""
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class GitSeen:
    """The current reflogs, oldest entry first, the tags, and details of the newer commits.

    `detached`: HEADs on no branch; only their own logs name their commits. `rebased`: by the new tip of a rebased branch, the new commits,
    oldest first; only where a rule needs each of them. `now`: seconds since the epoch.
    """

    logs: Mapping[str, tuple[ReflogEntry, ...]]
    tags: Mapping[str, str] | None = None
    about: Mapping[str, About] = field(default_factory=dict)
    detached: frozenset[str] = frozenset()
    rebased: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    now: float = float("inf")


def read_log(path: Path, tail: int) -> tuple[ReflogEntry, ...]:
    """Return the entries in the last `tail` bytes of a log, oldest first, and at least the last entry; empty where it cannot be read."""
    try:
        # Security: a program of an agent outside the fence may have put a pipe there, or an endless device.
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            while True:
                file.seek(max(0, size - tail))
                lines = file.read(tail).split(b"\n")
                # The last item is empty (the file ends with a newline), and the first may be cut off at its beginning.
                if len(lines) > 2 or tail >= min(size, MAX_LINE_BYTES):
                    break
                tail *= 4
    except OSError:
        return ()
    return tuple(entry for line in lines if (entry := ReflogEntry.of(line)) is not None)


def _marks(entries: tuple[ReflogEntry, ...]) -> list[str]:
    """The identity of each entry in its log."""
    # Logs have whole seconds: the same move made twice within one gets a number.
    seen: dict[str, int] = {}
    found = []
    for entry in entries:
        number = seen[entry.mark] = seen.get(entry.mark, 0) + 1
        found.append(entry.mark if number == 1 else f"{entry.mark} {number}")
    return found


def _is_head(ref: str) -> bool:
    """Whether a ref is the HEAD of this worktree or of another one."""
    return ref == HEAD or ref.startswith(f"{WORKTREES}/")


def _on_ours(entries: tuple[ReflogEntry, ...]) -> set[int]:
    """The entries of a HEAD's log that were made on a branch of aipass, as `id()` of each."""
    on, found = "", set()
    for entry in entries:
        if (moved := _MOVING.fullmatch(entry.message)) is not None:
            on = moved[2]
        elif f"refs/heads/{on}/".startswith(OURS):
            found.add(id(entry))
    return found


class RefTracker:
    """Owns the tables of known refs and commits. Used in the engine's thread, inside a transaction."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def settle(self, seen: GitSeen) -> list[Fact]:
        """Return the facts of new entries and record them as known. The first call for a ledger records everything and returns no facts."""
        is_first = self._ledger.meta("git.baseline") is None
        facts: list[Fact] = []
        # Branches first: a commit that is in both logs gets its branch's name.
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
                # A date in the future must not make later entries look old.
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
            # A renamed or copied branch brings the other's log. Older entries count only for commits, which are known by their ids.
            taken = max((at for at, one in enumerate(entries) if _TAKEN_OVER.match(one.message)), default=0)
            return [one for at, one in enumerate(entries) if at >= taken or one.makes_commit]
        marks = _marks(entries)
        for at in range(len(entries) - 1, -1, -1):
            if marks[at] == row["known"]:
                return list(entries[at + 1 :])
        # The known entry is gone: git shortened the log (`git gc`), or the branch was deleted and created again.
        then = row["time"]
        return [one for one in entries if one.time > then or (one.makes_commit and one.time >= then)]

    def _know(self, ref: str, known: str, time: float) -> None:
        self._ledger.run("set_git_ref", {"ref": ref, "known": known, "time": time})

    def _is_new_commit(self, sha: str) -> bool:
        """Record a commit; returns whether it was unknown, on any branch."""
        if self._ledger.one("git_commit", {"sha": sha}) is not None:
            return False
        self._ledger.run("insert_git_commit", {"sha": sha})
        return True

    def _facts(self, ref: str, entry: ReflogEntry, seen: GitSeen, *, is_past: bool) -> Iterator[Fact]:
        """The facts of one entry. `is_past`: the log has a later entry."""
        about = seen.about.get(entry.new)
        detail: dict[str, object] = {"sha": entry.new, "old": entry.old, "branch": None}
        if about is not None:
            detail |= {"author": about.author, "subject": about.subject}
        if _is_head(ref):
            # The source reads the logs of branches after HEAD's: if none of them has the commit of an older entry, it is on no branch.
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
        """A fact for each commit that a rebase has made, where a rule needs them."""
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
    """The facts, with one for more than MANY refs that moved in the same way, at the place of the first."""
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
