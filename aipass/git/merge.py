"""Merging PRs into the branch that is checked out: the commits first, then branch, index and exactly the PRs' paths, all or none.

What is about to be done stands in a file before it is done, so that after a crash it is finished or undone.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aipass.errors import AipassError, RefusedError
from aipass.event import printable
from aipass.git import indexlock, tree
from aipass.git.pulls import NAMED, seal
from aipass.git.repo import records
from aipass.git.tree import Entry
from aipass.supervisor import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from aipass.git.lease import Held
    from aipass.git.records import Pr, Records
    from aipass.git.repo import Repo, Tip

METHODS = ("merge", "squash", "ff")
FOLDER, INTENT = "merge", "intent.json"
#: In git's own folder: the next index, until it takes its place.
HALF_INDEX = "index.aipass"
NOTHING = "0" * 40


@dataclass(slots=True)
class Prepared:
    """Commits that are made and that nothing points to yet. `refused`: PRs that cannot be among them, and why."""

    tip: Tip
    commit: str
    prs: list[Pr] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)

    def checkout(self, repo: Repo, folder: Path) -> None:
        """Write what it comes to into a folder, whole."""
        folder.mkdir(mode=0o700, parents=True)
        with tree.private_index(repo) as env:
            repo.run("read-tree", self.commit, env=env)
            repo.run(
                "-c",
                "core.sparseCheckout=false",
                "checkout-index",
                "-a",
                "-f",
                f"--prefix={folder}/",
                env=env,
            )


@dataclass(frozen=True, slots=True)
class Intent:
    """What a merge is about to do. `writes`: working files that it replaces, kept under their place in it; `lock`: what the
    index.lock of this merge holds.
    """

    branch: str
    old: str
    new: str
    prs: list[int]
    writes: list[str]
    lock: str


class Merger:
    """Merges in one working tree."""

    def __init__(self, repo: Repo, records: Records) -> None:
        self._repo, self._records = repo, records
        self._folder = repo.scratch / FOLDER

    def prepare(self, prs: Iterable[Pr], method: str, by: str) -> Prepared:
        """The commits of merging these PRs, in this order. Raises RefusedError where the branch cannot take any now."""
        repo, tip = self._repo, self._repo.tip()
        if (what := repo.unfinished()) is not None:
            raise RefusedError(f"{what} is in progress in this working tree; finish it, then ask again")
        if tip.branch is None:
            raise RefusedError(
                "HEAD is on no branch, so there is nothing to merge into; check one out, then ask again"
            )
        done = Prepared(tip, tip.commit)
        for pr in prs:
            why = self._missing(pr, done.prs)
            made, conflicts = ("", []) if why else tree.merged(repo, done.commit, pr.head)
            if conflicts:
                named = ", ".join(str(printable(path)) for path in conflicts[:NAMED])
                why = f"it conflicts with {tip.branch.removeprefix('refs/heads/')} in {named}"
            if why:
                done.refused[pr.id] = why
                continue
            done.commit = self._commit(done.commit, made, pr, method, by)
            done.prs.append(pr)
        return done

    def _missing(self, pr: Pr, before: Sequence[Pr]) -> str | None:
        if pr.state != "open":
            return f"it is {pr.state} already"
        for number in pr.stacked_on:
            state = self._records.get(number).state
            if state == "closed":
                return f"it goes on from PR {number}, which was closed"
            if state == "open" and number not in {one.id for one in before}:
                return f"it goes on from PR {number}, which is not merged; merge both: `aipass pr merge {number} {pr.id}`"
        return None

    def _commit(self, onto: str, made: str, pr: Pr, method: str, by: str) -> str:
        repo = self._repo
        if repo.is_ancestor(pr.head, onto):
            return onto
        if method == "ff" and repo.is_ancestor(onto, pr.head):
            return pr.head
        trailers = [
            f"{name}: {value}"
            for name, value in (("Dispatch", pr.dispatch), ("Plan", pr.plan), ("Phase", pr.phase))
            if value
        ]
        trailers += [f"PR: {pr.id}", f"Merged-by: {by}"]
        title, parents, author = f"Merge PR {pr.id}: {pr.title}", (onto, pr.head), None
        if method == "squash":
            title, parents, author = pr.title, (onto,), f"{pr.agent} <{pr.agent}@aipass>"  # type: ignore[assignment]
        parts = [title, pr.body.strip(), "\n".join(trailers)]
        return tree.join(repo, made, parents, "\n\n".join(part for part in parts if part) + "\n", author)

    # -- applying --------------------------------------------------------------------------------------------------

    def apply(self, ready: Prepared, held: Held, busy: Callable[[str], str | None]) -> None:
        """Have branch, index and working files become what was prepared.

        `busy`: why a path must not be written now. Raises RefusedError, with nothing changed, where the branch has moved, or
        where somebody has changed a path since.
        """
        repo, branch = self._repo, ready.tip.branch
        assert branch is not None
        changes = tree.between(repo, ready.tip.commit, ready.commit)
        hidden = self._not_checked_out(changes)
        there = {path: change for path, change in changes.items() if path not in hidden}
        mark = f"aipass {os.getpid()} {time.time_ns()}"
        intent = Intent(branch, ready.tip.commit, ready.commit, [pr.id for pr in ready.prs], [], mark)
        try:
            self._put(intent)
            with indexlock.taken(repo.own, mark):
                if repo.tip() != ready.tip or repo.unfinished():
                    raise RefusedError(f"{branch.removeprefix('refs/heads/')} has moved meanwhile; ask again")
                seals = {path: seal(repo.top / path) for path in there}
                intent = replace(intent, writes=self._writes(there, busy))
                self._staged(changes)
                self._put(intent)
                self._exchange(intent, changes, hidden, seals, held)
        except BaseException:
            self.recover()
            raise
        self._finish(intent)

    def _put(self, intent: Intent) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        wire.write_atomic(self._folder / INTENT, json.dumps(asdict(intent)))

    def _exchange(
        self,
        intent: Intent,
        changes: dict[str, tuple[Entry | None, Entry | None]],
        hidden: set[str],
        seals: dict[str, str],
        held: Held,
    ) -> None:
        repo = self._repo
        for place, path in enumerate(intent.writes):
            self._move_away(path, self._folder / str(place), seals[path])
        with self._new_index(changes, hidden) as env:
            written = [path for path in intent.writes if changes[path][1] is not None]
            names = b"".join(os.fsencode(path) + b"\0" for path in written)
            if written:
                repo.run("checkout-index", "-f", "-u", "-z", "--stdin", stdin=names, env=env)
            repo.run("update-index", "-q", "--refresh", env=env, fine=(0, 1))
            held.check()
            names_of = ", ".join(f"PR {number}" for number in intent.prs)
            repo.move(f"merge {names_of}", f"update {intent.branch} {intent.new} {intent.old}")

    @contextmanager
    def _new_index(
        self, changes: dict[str, tuple[Entry | None, Entry | None]], hidden: set[str]
    ) -> Iterator[dict[str, str]]:
        """The user's index with these changes, for the time of a block; then it takes the old one's place. The lock is held."""
        index, half = self._repo.own / "index", self._repo.own / HALF_INDEX
        with tree.private_index(self._repo) as env:
            if index.exists():
                shutil.copyfile(index, env["GIT_INDEX_FILE"])
            self._enter(changes, hidden, env)
            yield env
            shutil.copyfile(env["GIT_INDEX_FILE"], half)
        os.replace(half, index)

    def _enter(
        self, changes: dict[str, tuple[Entry | None, Entry | None]], hidden: set[str], env: dict[str, str]
    ) -> None:
        """What the paths are from now on, into an index."""
        lines = []
        # What goes away first: a file may take the place of a folder.
        for path, (_, new) in sorted(changes.items(), key=lambda change: change[1][1] is not None):
            about = f"{new.mode} {new.sha}" if new is not None else f"0 {NOTHING}"
            lines.append(about.encode() + b"\t" + os.fsencode(path) + b"\0")
        self._repo.run("update-index", "-z", "--index-info", stdin=b"".join(lines), env=env)
        still = [path for path in hidden if changes[path][1] is not None]
        if still:
            names = b"".join(os.fsencode(path) + b"\0" for path in still)
            self._repo.run("update-index", "--skip-worktree", "-z", "--stdin", stdin=names, env=env)

    def _not_checked_out(self, paths: Iterable[str]) -> set[str]:
        """Those of the paths that a sparse checkout leaves out."""
        if (
            self._repo.one("config", "--type=bool", "--default=false", "--get", "core.sparseCheckout")
            != "true"
        ):
            return set()
        wanted = set(paths)
        lines = records(self._repo.run("ls-files", "-z", "-t", "--full-name"))
        return {line[2:] for line in lines if line.startswith("S ")} & wanted

    def _writes(
        self, changes: dict[str, tuple[Entry | None, Entry | None]], busy: Callable[[str], str | None]
    ) -> list[str]:
        """The working files that must be replaced, where nobody has changed them. Raises RefusedError."""
        repo = self._repo
        wrong = {path: why for path in changes if (why := tree.unusable(repo, path)) is not None}
        there = tree.now(repo, {path: old for path, (old, _) in changes.items() if path not in wrong})
        # Where a folder is, the file that goes away is gone already.
        there |= {
            path: None for path, why in wrong.items() if why == tree.IS_FOLDER and changes[path][1] is None
        }
        writes, touched = [], []
        for path, (old, new) in changes.items():
            if path not in there or there[path] not in {old, new}:
                touched.append(
                    f"{printable(path)} ({busy(path) or wrong.get(path) or 'changed since, by nobody known'})"
                )
            elif there[path] != new:
                if (why := busy(path)) is not None:
                    touched.append(f"{printable(path)} ({why})")
                writes.append(path)
        if touched:
            more = f" and {len(touched) - NAMED} more" if len(touched) > NAMED else ""
            raise RefusedError(
                f"the working tree is not as the PR has it: {', '.join(touched[:NAMED])}{more}; nothing was changed"
            )
        return writes

    def _staged(self, changes: dict[str, tuple[Entry | None, Entry | None]]) -> None:
        """Raise RefusedError where a person has staged something else for one of the paths."""
        words = records(
            self._repo.run("diff-index", "--cached", "-z", "--no-renames", "--raw", "--no-abbrev", "HEAD")
        )
        for about, path in zip(words[::2], words[1::2], strict=True):
            _, mode, _, sha, _ = about.removeprefix(":").split(" ")
            staged = None if mode == "000000" else Entry(mode, sha)
            if path in changes and staged != changes[path][1]:
                raise RefusedError(
                    f"{printable(path)} is staged otherwise than the PR has it; commit or unstage it; nothing was changed"
                )

    def _move_away(self, path: str, kept: Path, known: str) -> None:
        """Put a working file aside; it must be what was looked at."""
        source = self._repo.top / path
        if not os.path.lexists(source):
            return
        os.rename(source, kept)
        if seal(kept) != known:
            raise RefusedError(
                f"{printable(path)} was changed at this moment; nothing was changed; ask again"
            )

    def recover(self) -> None:
        """Finish a merge that was interrupted, or undo it."""
        try:
            found: Any = json.loads((self._folder / INTENT).read_text("utf-8"))
            intent = Intent(**found)
        except (OSError, ValueError, TypeError):
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        indexlock.drop(self._repo.own, intent.lock)
        (self._repo.own / HALF_INDEX).unlink(missing_ok=True)
        now = self._repo.commit_of(intent.branch)
        if now is not None and self._repo.is_ancestor(intent.new, now):
            self._catch_up(intent)
            self._finish(intent)
            return
        for place, path in enumerate(intent.writes):
            kept, target = self._folder / str(place), self._repo.top / path
            if os.path.lexists(kept):
                os.makedirs(target.parent, exist_ok=True)
                os.replace(kept, target)
        self._drop_new(intent)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _drop_new(self, intent: Intent) -> None:
        """Files that the merge has made where nothing was."""
        changes = tree.between(self._repo, intent.old, intent.new)
        made = {path: None for path in intent.writes if changes[path][0] is None}
        usable = {path: None for path in made if tree.unusable(self._repo, path) is None}
        for path, entry in tree.now(self._repo, dict(usable)).items():
            if entry is not None and entry == changes[path][1]:
                (self._repo.top / path).unlink(missing_ok=True)

    def _catch_up(self, intent: Intent) -> None:
        """The branch has moved, and the index perhaps not: what it has of before becomes what is now."""
        repo = self._repo
        changes = tree.between(repo, intent.old, intent.new)
        hidden = self._not_checked_out(changes)
        staged = tree.staged(repo, changes)
        behind = {
            path: change for path, change in changes.items() if staged.get(path) == change[0] != change[1]
        }
        if behind:
            with (
                indexlock.taken(repo.own, intent.lock),
                self._new_index(behind, hidden & behind.keys()) as env,
            ):
                repo.run("update-index", "-q", "--refresh", env=env, fine=(0, 1))

    def _finish(self, intent: Intent) -> None:
        """The records, the branches that have done their work, and what was kept meanwhile."""
        self._sweep(intent)
        gone = []
        for number in intent.prs:
            pr = self._records.get(number)
            if pr.state == "open":
                self._note(pr, intent.new)
            if (head := self._repo.ref(pr.ref)) is not None and head == pr.head:
                gone.append(f"delete {pr.ref} {head}")
        if gone:
            self._repo.move("aipass: merged", *gone)
        shutil.rmtree(self._folder, ignore_errors=True)

    def note_merged(self, pr: Pr, held: Held) -> None:
        """It was merged elsewhere."""
        held.check()
        self._note(pr, None)
        if (head := self._repo.ref(pr.ref)) is not None:
            self._repo.move("aipass: merged", f"delete {pr.ref} {head}")

    def _note(self, pr: Pr, commit: str | None) -> None:
        merged = {"state": "merged", "merged": commit, "finished": tree.today()}
        self._records.put(pr.model_copy(update=merged))

    def _sweep(self, intent: Intent) -> None:
        """Folders that have become empty, as git leaves none behind."""
        for path in intent.writes:
            folder = self._repo.top.joinpath(path).parent
            while folder != self._repo.top and not os.path.lexists(self._repo.top / path):
                try:
                    folder.rmdir()
                except OSError:
                    break
                folder = folder.parent

    def close(self, pr: Pr, reason: str, held: Held) -> Pr:
        """Close one without merging it; its commits stay under `refs/aipass/pr/`. Raises AipassError where it is not open."""
        if pr.state != "open":
            raise AipassError(f"PR {pr.id} is {pr.state} already")
        held.check()
        closed = pr.model_copy(update={"state": "closed", "reason": reason, "finished": tree.today()})
        self._records.put(closed)
        if (head := self._repo.ref(pr.ref)) is not None:
            self._repo.move("aipass: closed", f"delete {pr.ref} {head}")
        return closed
