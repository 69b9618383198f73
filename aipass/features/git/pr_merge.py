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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from aipass.errors import AipassError, RefusedError
from aipass.event import printable
from aipass.features.git import indexlock, tree
from aipass.features.git.lease import Ticket
from aipass.features.git.pr_open import NAMED, current, seal
from aipass.features.git.repo import batches, records
from aipass.features.git.tree import TreeEntry
from aipass.files import exchange
from aipass.supervisor import held
from aipass.supervisor.hold import born

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from aipass.features.git.lease import Held
    from aipass.features.git.pr_records import Pr, PrRecords
    from aipass.features.git.repo import Repo, Tip

logger = structlog.get_logger("aipass")

FOLDER, INTENT = "merge", "merge.json"
#: In git's own folder: the next index, until it takes its place.
HALF_INDEX = "index.aipass"
#: What is being merged is held by it, so that git does not take it for garbage.
HELD = "refs/aipass/merge"
Changes = dict[str, tuple[TreeEntry | None, TreeEntry | None]]
Place = tuple[int, str]


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
    """What a merge is about to do. `lock` is what its index.lock holds; the process that does it is `pid`, `born` in `boot`.

    `writes`: working files that it replaces, with the seal that each had; what takes their place lies in `stage`, and what was
    there lies there afterwards.
    """

    branch: str
    old: str
    new: str
    prs: list[int]
    lock: str
    stage: str
    writes: dict[str, str]
    pid: int
    born: int
    boot: str
    #: Whether all that takes a place lies in the stage: what is not there any more has taken it.
    staged: bool = False


class StaleError(RefusedError):
    """What was tested is not what would be merged: the branch has moved, or a PR has changed."""


#: Merges of this process that are in the middle of it.
_ACTIVE: set[str] = set()


class Merger:
    """Merges in one working tree."""

    def __init__(self, repo: Repo, records: PrRecords) -> None:
        self._repo, self._records = repo, records
        # Beside the index: one for each working tree, whichever root of it asks.
        self._intent = repo.own / "aipass" / INTENT

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
        for one in prs:
            pr = current(repo, one)
            why = self._missing(pr, done.prs, tip)
            made, conflicts = ("", []) if why else tree.merged(repo, done.commit, pr.head)
            if conflicts:
                named = ", ".join(str(printable(path)) for path in conflicts[:NAMED])
                why = (
                    f"it conflicts with {tip.branch.removeprefix('refs/heads/')} in {named}; "
                    f"commit a merge of both on {pr.ref.removeprefix('refs/heads/')}, or close it and have it opened anew with another title"
                )
            if why:
                done.refused[pr.id] = why
                continue
            done.commit = self._commit(done.commit, made, pr, method, by)
            done.prs.append(pr)
        return done

    def _missing(self, pr: Pr, before: Sequence[Pr], tip: Tip) -> str | None:
        if pr.state != "open":
            return f"it is {pr.state} already"
        if pr.branch not in {None, tip.branch} and self._repo.ref(str(pr.branch)) is not None:
            meant, here = (str(name).removeprefix("refs/heads/") for name in (pr.branch, tip.branch))
            return f"it was made for {meant}, and {here} is checked out here"
        for number in pr.stacked_on:
            try:
                state = self._records.get(number).state
            except AipassError as exc:
                return f"it goes on from PR {number}: {exc}"
            if state == "closed":
                return f"it goes on from PR {number}, which was closed; close it as well, and have it opened anew with another title"
            if state == "open" and number not in {one.id for one in before}:
                return f"it goes on from PR {number}, which is not merged; that one comes first, or with it: `aipass pr merge {number} {pr.id}`"
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
        stage = repo.scratch / f"{FOLDER}-{time.time_ns()}"
        who = Ticket.of("", "")
        numbers = [pr.id for pr in ready.prs]
        intent = Intent(
            branch, ready.tip.commit, ready.commit, numbers, mark, str(stage), {}, who.pid, who.born, who.boot
        )
        _ACTIVE.add(mark)
        try:
            repo.move("aipass: is being merged", f"update {HELD} {ready.commit}")
            self._put(intent)
            with indexlock.taken(repo.own, mark):
                self._still(ready, branch)
                seals = {path: seal(repo.top / path) for path in there}
                intent = replace(intent, writes={path: seals[path] for path in self._writes(there, busy)})
                self._staged(changes)
                self._put(intent)
                self._exchange(intent, changes, hidden, held)
        except BaseException:
            _ACTIVE.discard(mark)
            self.recover()
            raise
        finally:
            _ACTIVE.discard(mark)
        self._finish(intent)

    def _still(self, ready: Prepared, branch: str) -> None:
        """Raise StaleError where the branch or one of the PRs is not what it was when the merge was prepared."""
        if self._repo.tip() != ready.tip or self._repo.unfinished():
            raise StaleError(f"{branch.removeprefix('refs/heads/')} has moved meanwhile; ask again")
        for pr in ready.prs:
            now = current(self._repo, self._records.get(pr.id))
            if now.state != "open" or now.head != pr.head:
                raise StaleError(
                    f"PR {pr.id} was {'changed' if now.state == 'open' else now.state} meanwhile; ask again"
                )

    def _put(self, intent: Intent) -> None:
        self._intent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        held.write_atomic(self._intent, json.dumps(asdict(intent)))

    def _exchange(self, intent: Intent, changes: Changes, hidden: set[str], held: Held) -> None:
        repo, stage = self._repo, Path(intent.stage)
        with self._new_index(changes, hidden) as env:
            written = [path for path in intent.writes if changes[path][1] is not None]
            if written:
                # Whole and filtered before anything in the tree is touched.
                names = b"".join(os.fsencode(path) + b"\0" for path in written)
                stage.mkdir(mode=0o700, parents=True)
                repo.run("checkout-index", "-f", f"--prefix={stage}/", "-z", "--stdin", stdin=names, env=env)
            self._put(replace(intent, staged=True))
            # What goes away first: a file may take the place of a folder.
            for path in sorted(intent.writes, key=lambda path: changes[path][1] is not None):
                self._replace(path, stage / path, intent.writes[path], is_new=changes[path][1] is not None)
            repo.run("update-index", "-q", "--refresh", env=env, fine=(0, 1))
            held.check()
            names_of = ", ".join(f"PR {number}" for number in intent.prs)
            repo.move(f"merge {names_of}", f"update {intent.branch} {intent.new} {intent.old}")

    def _replace(self, path: str, staged: Path, known: str, *, is_new: bool) -> None:
        """Have a working file become what is staged, or go away; what was there must be what was looked at."""
        staged.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with self._places(path, staged, make=is_new and known == "gone") as (target, kept):
                if not is_new:
                    exchange.move(*target, *kept)
                elif known == "gone":
                    exchange.move(*kept, *target)
                    return
                else:
                    exchange.exchange(*kept, *target)
                if seal(staged) == known:
                    return
                if is_new:
                    exchange.exchange(*kept, *target)
                else:
                    exchange.move(*kept, *target)
        except OSError as exc:
            raise RefusedError(f"{printable(path)}: {exc.strerror}; nothing was changed") from exc
        raise RefusedError(f"{printable(path)} was changed at this moment; nothing was changed; ask again")

    @contextmanager
    def _places(self, path: str, staged: Path, *, make: bool) -> Iterator[tuple[Place, Place]]:
        """A working file and what lies in the stage, each as the folder that holds it and its name; never through a link."""
        *above, name = path.split("/")
        kept = held.open_at(staged.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with held.folder(self._repo.top, above, make=make, mode=0o777) as folder:
                yield (folder, name), (kept, staged.name)
        finally:
            os.close(kept)

    @contextmanager
    def _new_index(self, changes: Changes, hidden: set[str]) -> Iterator[dict[str, str]]:
        """The user's index with these changes, for the time of a block; then it takes the old one's place. The lock is held."""
        index, half = self._repo.own / "index", self._repo.own / HALF_INDEX
        with tree.private_index(self._repo) as env:
            if index.exists():
                shutil.copyfile(index, env["GIT_INDEX_FILE"])
            self._enter(changes, hidden, env)
            yield env
            shutil.copyfile(env["GIT_INDEX_FILE"], half)
        os.replace(half, index)

    def _enter(self, changes: Changes, hidden: set[str], env: dict[str, str]) -> None:
        """What the paths are from now on, into an index."""
        lines = []
        # What goes away first: a file may take the place of a folder.
        for path, (old, new) in sorted(changes.items(), key=lambda change: change[1][1] is not None):
            about = f"{new.mode} {new.sha}" if new is not None else f"0 {'0' * len(old.sha if old else '')}"
            lines.append(about.encode() + b"\t" + os.fsencode(path) + b"\0")
        self._repo.run("update-index", "-z", "--index-info", stdin=b"".join(lines), env=env)
        still = [path for path in hidden if changes[path][1] is not None]
        if still:
            names = b"".join(os.fsencode(path) + b"\0" for path in still)
            self._repo.run("update-index", "--skip-worktree", "-z", "--stdin", stdin=names, env=env)

    def _not_checked_out(self, paths: Iterable[str]) -> set[str]:
        """Those of the paths that a sparse checkout, or the user, leaves out of the working tree."""
        found: set[str] = set()
        for batch in batches(sorted(paths)):
            words = ("--literal-pathspecs", "ls-files", "-z", "-t", "--full-name", "--", *batch)
            found |= {line[2:] for line in records(self._repo.run(*words)) if line.startswith("S ")}
        return found & set(paths)

    def _writes(self, changes: Changes, busy: Callable[[str], str | None]) -> list[str]:
        """The working files that must be replaced, where nobody has changed them. Raises RefusedError."""
        repo = self._repo
        wrong = {path: why for path in changes if (why := tree.unusable(repo, path)) is not None}
        for path, (_, new) in changes.items():
            if (
                new is not None
                and path not in wrong
                and (above := self._file_above(path, changes)) is not None
            ):
                wrong[path] = f"{above} is no folder here"
        there = tree.now(repo, {path: old for path, (old, _) in changes.items() if path not in wrong})
        # Where a folder is, the file that goes away is gone already.
        there |= {
            path: None for path, why in wrong.items() if why == tree.IS_FOLDER and changes[path][1] is None
        }
        writes, touched = [], []
        for path, (old, new) in changes.items():
            if path not in there or there[path] not in {old, new}:
                why = (
                    busy(path)
                    or wrong.get(path)
                    or "changed since, by a person or a program that is no agent of aipass"
                )
                touched.append(f"{printable(path)} ({why})")
            elif there[path] != new:
                if (writer := busy(path)) is not None:
                    touched.append(f"{printable(path)} ({writer})")
                writes.append(path)
        if touched:
            more = f" and {len(touched) - NAMED} more" if len(touched) > NAMED else ""
            raise RefusedError(
                f"the working tree is not as the PR has it: {', '.join(touched[:NAMED])}{more}; nothing was changed. "
                "Hand in again what is there now (`aipass pr open`), or bring back what the PR has (`aipass pr diff` shows it)"
            )
        return writes

    def _file_above(self, path: str, changes: Changes) -> str | None:
        """Something that is no folder where a path needs one, and that the merge does not take away."""
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            place = self._repo.top / above
            if (
                os.path.lexists(place)
                and not place.is_dir()
                and changes.get(above, (None, path))[1] is not None
            ):
                return str(printable(above))
        return None

    def _staged(self, changes: Changes) -> None:
        """Raise RefusedError where a person has staged something else for one of the paths, or above or below it."""
        words = records(
            self._repo.run("diff-index", "--cached", "-z", "--no-renames", "--raw", "--no-abbrev", "HEAD")
        )
        above = {
            "/".join(path.split("/")[:depth]) for path in changes for depth in range(1, path.count("/") + 1)
        }
        for about, path in zip(words[::2], words[1::2], strict=True):
            _, mode, _, sha, _ = about.removeprefix(":").split(" ")
            staged = None if mode == "000000" else TreeEntry(mode, sha)
            folders = ("/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 1))
            clashes = path in above or any(changes.get(one, (None, None))[1] is not None for one in folders)
            if (path in changes and staged != changes[path][1]) or (
                path not in changes and staged and clashes
            ):
                raise RefusedError(
                    f"{printable(path)} is staged otherwise than the PR has it; commit or unstage it; nothing was changed"
                )

    # -- after a crash ---------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Finish a merge that was interrupted, or undo it. What anybody has written since stays.

        Raises RefusedError where its process is in the middle of it.
        """
        try:
            found: Any = json.loads(self._intent.read_text("utf-8"))
            intent = Intent(**found)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError):
            os.replace(self._intent, self._intent.with_name(f"{INTENT}.unusable"))
            return
        ours = intent.pid == os.getpid() and intent.born == born(intent.pid)
        if intent.lock in _ACTIVE or (
            not ours and Ticket("", "", 0.0, intent.pid, intent.born, intent.boot).is_alive()
        ):
            raise RefusedError(f"process {intent.pid} is in the middle of a merge; ask again when it is done")
        indexlock.drop(self._repo.own, intent.lock)
        (self._repo.own / HALF_INDEX).unlink(missing_ok=True)
        now = self._repo.commit_of(intent.branch)
        if self._repo.commit_of(intent.new) is None:
            # Git has thrown it away since, so it never came to the branch. What was replaced, if anything was, is kept.
            kept = self._intent.with_name(f"kept-{time.time_ns()}")
            if os.path.isdir(intent.stage):
                shutil.move(intent.stage, kept)
                logger.error(
                    "a merge that was interrupted cannot be undone; what it replaced is kept",
                    folder=str(kept),
                )
            self._drop(intent)
            return
        if now is not None and self._repo.is_ancestor(intent.new, now):
            self._catch_up(intent)
            self._finish(intent)
            return
        self._undo(intent, now)
        self._drop(intent)

    def _undo(self, intent: Intent, now: str | None) -> None:
        """Put back what was there, where the merge's own file stands, or nothing. `now`: where the branch stands."""
        repo, stage = self._repo, Path(intent.stage)
        changes = tree.between(repo, intent.old, intent.new)
        usable = {path: None for path in intent.writes if tree.unusable(repo, path) is None}
        there = tree.now(repo, dict(usable))
        is_there = now == intent.old
        wanted = tree.at(repo, now, intent.writes) if now is not None else {}
        for path, known in intent.writes.items():
            target, kept = repo.top / path, stage / path
            aside = kept.with_name(kept.name + exchange.ASIDE)
            if os.path.lexists(aside):
                os.replace(aside, kept)  # it was killed in the middle of an exchange, which was no exchange
            is_ours = path in there and changes[path][1] is not None and there[path] == changes[path][1]
            try:
                if known == "gone":
                    # It was made where nothing was; still staged, it never came there.
                    if intent.staged and is_ours and is_there and not os.path.lexists(kept):
                        with held.folder(repo.top, path.split("/")[:-1], make=False) as folder:
                            os.unlink(target.name, dir_fd=folder)
                elif seal(kept) == known and not os.path.lexists(target) and wanted.get(path) is not None:
                    with self._places(path, kept, make=True) as (there_, here):
                        exchange.move(*here, *there_)
                elif seal(kept) == known and is_ours and is_there:
                    with self._places(path, kept, make=False) as (there_, here):
                        exchange.exchange(*here, *there_)
            except OSError as exc:
                logger.error(
                    "a file of a merge that was interrupted stays as it is", path=path, error=str(exc)
                )

    def _drop(self, intent: Intent) -> None:
        held.try_remove_at(intent.stage)
        self._intent.unlink(missing_ok=True)
        if (kept := self._repo.ref(HELD)) is not None:
            self._repo.move("aipass: is merged", f"delete {HELD} {kept}")

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
        for number in intent.prs:
            try:
                pr = self._records.get(number)
            except AipassError as exc:
                logger.error("a PR is merged, and its record cannot be used", pr=number, error=str(exc))
                continue
            if pr.state == "open":
                self._note(pr, intent.new)
            self._drop_branch(pr, intent.new)
        self._drop(intent)

    def _drop_branch(self, pr: Pr, merged: str | None = None) -> None:
        """A PR's branch goes once it has done its work; not where a person works on it, or has committed more."""
        head = self._repo.ref(pr.ref)
        if head is None or pr.ref in self._repo.checked_out():
            return
        if head == pr.head or (merged is not None and self._repo.is_ancestor(head, merged)):
            self._repo.move("aipass: has done its work", f"delete {pr.ref} {head}")

    def note_merged(self, pr: Pr, held: Held) -> None:
        """It was merged elsewhere."""
        held.check()
        self._note(pr, None)
        self._drop_branch(pr)

    def _note(self, pr: Pr, commit: str | None) -> None:
        merged = {"state": "merged", "merged": commit, "finished": tree.today()}
        self._records.put(pr.model_copy(update=merged))

    def _sweep(self, intent: Intent) -> None:
        """Folders that have become empty, as git leaves none behind."""
        for path in intent.writes:
            folder = self._repo.top.joinpath(path).parent
            while folder != self._repo.top and not os.path.lexists(self._repo.top / path):
                try:
                    *above, name = folder.relative_to(self._repo.top).parts
                    with held.folder(self._repo.top, above, make=False) as handle:
                        os.rmdir(name, dir_fd=handle)
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
        self._drop_branch(pr)
        return closed
