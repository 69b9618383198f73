"""Merging PRs into the branch that is checked out: first the commits, then branch, index and the PRs' files, as one transaction.

A file records the transaction before it begins (write-ahead), so that `recover` can finish or undo it after a crash.
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
#: The new index in git's folder, until a rename makes it the index.
HALF_INDEX = "index.aipass"
#: Keeps the new commits from git's garbage collection while no branch contains them.
HELD = "refs/aipass/merge"
#: Paths with their entries before and after the merge.
Changes = dict[str, tuple[TreeEntry | None, TreeEntry | None]]
#: A file as the descriptor of its open folder and its name, so that a link cannot replace the folder on the way.
Place = tuple[int, str]


@dataclass(slots=True)
class Prepared:
    """A prepared merge: commits that no ref contains yet. `prs`: the merged PRs; `refused`: the others, with the reason."""

    tip: Tip
    commit: str
    prs: list[Pr] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)

    def checkout(self, repo: Repo, folder: Path) -> None:
        """Write all files of the merge's result into a new folder, for the checks."""
        folder.mkdir(mode=0o700, parents=True)
        with tree.private_index(repo) as env:
            repo.run("read-tree", self.commit, env=env)
            # Without sparse checkout: the checks must see every file, also those that the user has not checked out.
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
    """The write-ahead record of a merge. `lock` is the mark in its index.lock; `pid`, `born` and `boot` identify its process.

    `writes`: working files that the merge replaces, each with its fingerprint before. `stage`: a folder with the new files;
    after the exchange it contains the old ones.
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
    #: Whether the stage is complete. From then on, a file that is missing in it is in the working tree.
    staged: bool = False


class StaleError(RefusedError):
    """The branch has moved or a PR has changed since the merge was prepared, so the tested result is out of date."""


#: Marks of the merges that this process is applying: a record of this process that is not here is left from a failure.
_ACTIVE: set[str] = set()


class Merger:
    """Prepares, applies and recovers merges in one working tree. The caller holds the git lease."""

    def __init__(self, repo: Repo, records: PrRecords) -> None:
        self._repo, self._records = repo, records
        # In the working tree's git folder and not in aipass's state: several roots may share the tree, and each must
        # recover what another left.
        self._intent = repo.own / "aipass" / INTENT

    def prepare(self, prs: Iterable[Pr], method: str, by: str) -> Prepared:
        """Make the commits that merge these PRs in this order; moves no ref. PRs that cannot be merged are in `refused`.

        Raises RefusedError where no merge is possible now: an unfinished git operation, or a detached HEAD.
        """
        repo, tip = self._repo, self._repo.tip()
        if (what := repo.unfinished()) is not None:
            raise RefusedError(f"{what} is in progress in this working tree; finish it, then ask again")
        if tip.branch is None:
            raise RefusedError(
                "HEAD is on no branch (detached), so there is nothing to merge into; check out a branch, then ask again"
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
                    f"resolve the conflict in a merge commit on {pr.ref.removeprefix('refs/heads/')}, or close the PR and open it again with another title"
                )
            if why:
                done.refused[pr.id] = why
                continue
            done.commit = self._commit(done.commit, made, pr, method, by)
            done.prs.append(pr)
        return done

    def _missing(self, pr: Pr, before: Sequence[Pr], tip: Tip) -> str | None:
        """The reason why a PR cannot be merged after the PRs `before`; None where it can. Conflicts are found later."""
        if pr.state != "open":
            return f"it is {pr.state} already"
        if pr.branch not in {None, tip.branch} and self._repo.ref(str(pr.branch)) is not None:
            meant, here = (str(name).removeprefix("refs/heads/") for name in (pr.branch, tip.branch))
            return f"it was made for {meant}, but {here} is checked out here"
        for number in pr.stacked_on:
            try:
                state = self._records.get(number).state
            except AipassError as exc:
                return f"it is based on PR {number}: {exc}"
            if state == "closed":
                return f"it is based on PR {number}, which was closed; close this one as well, and open it again with another title"
            if state == "open" and number not in {one.id for one in before}:
                return f"it is based on PR {number}, which is not merged; merge both: `aipass pr merge {number} {pr.id}`"
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
        """Move branch, index and working files to the prepared result, all or nothing, also through a crash.

        `busy` returns the live run that writes a path. Raises StaleError where the branch or a PR has changed since `prepare`, and
        RefusedError where a path was changed, is being written, or another git holds the index; then nothing is changed.
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
            # The order matters. The lock keeps people's git commands out, then every condition is checked once more,
            # and only then is anything written.
            with indexlock.taken(repo.own, mark):
                self._still(ready, branch)
                seals = {path: seal(repo.top / path) for path in there}
                intent = replace(intent, writes={path: seals[path] for path in self._writes(there, busy)})
                self._staged(changes)
                self._put(intent)
                self._exchange(intent, changes, hidden, held)
        except BaseException:
            # Also on KeyboardInterrupt and SystemExit: the working tree may be half exchanged.
            _ACTIVE.discard(mark)
            self.recover()
            raise
        finally:
            _ACTIVE.discard(mark)
        self._finish(intent)

    def _still(self, ready: Prepared, branch: str) -> None:
        """Raise StaleError where the branch or one of the PRs has changed since the merge was prepared."""
        if self._repo.tip() != ready.tip or self._repo.unfinished():
            raise StaleError(
                f"{branch.removeprefix('refs/heads/')} has moved since the merge was prepared; ask again"
            )
        for pr in ready.prs:
            now = current(self._repo, self._records.get(pr.id))
            if now.state != "open" or now.head != pr.head:
                raise StaleError(
                    f"PR {pr.id} was {'changed' if now.state == 'open' else now.state} since the merge was prepared; ask again"
                )

    def _put(self, intent: Intent) -> None:
        self._intent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        held.write_atomic(self._intent, json.dumps(asdict(intent)))

    def _exchange(self, intent: Intent, changes: Changes, hidden: set[str], held: Held) -> None:
        repo, stage = self._repo, Path(intent.stage)
        with self._new_index(changes, hidden) as env:
            written = [path for path in intent.writes if changes[path][1] is not None]
            if written:
                # All new files are complete, with filters applied, before the first working file changes: a filter that
                # fails must not leave half a merge.
                names = b"".join(os.fsencode(path) + b"\0" for path in written)
                stage.mkdir(mode=0o700, parents=True)
                repo.run("checkout-index", "-f", f"--prefix={stage}/", "-z", "--stdin", stdin=names, env=env)
            self._put(replace(intent, staged=True))
            # Deletions come first, because a file may take the place of a deleted folder.
            for path in sorted(intent.writes, key=lambda path: changes[path][1] is not None):
                self._replace(path, stage / path, intent.writes[path], is_new=changes[path][1] is not None)
            repo.run("update-index", "-q", "--refresh", env=env, fine=(0, 1))
            # The branch moves last: until then `recover` undoes the merge, from then on it finishes the merge.
            held.check()
            names_of = ", ".join(f"PR {number}" for number in intent.prs)
            repo.move(f"merge {names_of}", f"update {intent.branch} {intent.new} {intent.old}")

    def _replace(self, path: str, staged: Path, known: str, *, is_new: bool) -> None:
        """Exchange a working file with its staged version, or move it away. Its fingerprint before must be `known`.

        Raises RefusedError where the file was changed; the exchange is then undone.
        """
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
                # The check comes after the exchange: the file that a person saved until that moment is in the stage now,
                # complete. A check before the write would lose a save in between.
                if seal(staged) == known:
                    return
                if is_new:
                    exchange.exchange(*kept, *target)
                else:
                    exchange.move(*kept, *target)
        except OSError as exc:
            raise RefusedError(f"{printable(path)}: {exc.strerror}; the merge was undone") from exc
        raise RefusedError(f"{printable(path)} was changed during the merge; the merge was undone; ask again")

    @contextmanager
    def _places(self, path: str, staged: Path, *, make: bool) -> Iterator[tuple[Place, Place]]:
        """A working file and its staged version, each as an open folder and a name; never through a symbolic link.

        `make`: make missing folders above the working file.
        """
        *above, name = path.split("/")
        kept = held.open_at(staged.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with held.folder(self._repo.top, above, make=make, mode=0o777) as folder:
                yield (folder, name), (kept, staged.name)
        finally:
            os.close(kept)

    @contextmanager
    def _new_index(self, changes: Changes, hidden: set[str]) -> Iterator[dict[str, str]]:
        """A private copy of the user's index with these changes; it replaces the user's index when the block ends without error.

        The caller holds index.lock.
        """
        index, half = self._repo.own / "index", self._repo.own / HALF_INDEX
        with tree.private_index(self._repo) as env:
            if index.exists():
                shutil.copyfile(index, env["GIT_INDEX_FILE"])
            self._enter(changes, hidden, env)
            yield env
            # The private index may be on another disk, where a rename is not possible.
            shutil.copyfile(env["GIT_INDEX_FILE"], half)
        os.replace(half, index)

    def _enter(self, changes: Changes, hidden: set[str], env: dict[str, str]) -> None:
        """Write the new entries of the paths into an index."""
        lines = []
        # Deletions come first, because a file may take the place of a deleted folder.
        for path, (old, new) in sorted(changes.items(), key=lambda change: change[1][1] is not None):
            about = f"{new.mode} {new.sha}" if new is not None else f"0 {'0' * len(old.sha if old else '')}"
            lines.append(about.encode() + b"\t" + os.fsencode(path) + b"\0")
        self._repo.run("update-index", "-z", "--index-info", stdin=b"".join(lines), env=env)
        # `--index-info` clears the flag of sparse checkouts; without it git would report these files as deleted.
        still = [path for path in hidden if changes[path][1] is not None]
        if still:
            names = b"".join(os.fsencode(path) + b"\0" for path in still)
            self._repo.run("update-index", "--skip-worktree", "-z", "--stdin", stdin=names, env=env)

    def _not_checked_out(self, paths: Iterable[str]) -> set[str]:
        """The paths that are not in the working tree because of a sparse checkout, or because the user skips them."""
        found: set[str] = set()
        for batch in batches(sorted(paths)):
            words = ("--literal-pathspecs", "ls-files", "-z", "-t", "--full-name", "--", *batch)
            found |= {line[2:] for line in records(self._repo.run(*words)) if line.startswith("S ")}
        return found & set(paths)

    def _writes(self, changes: Changes, busy: Callable[[str], str | None]) -> list[str]:
        """The working files that the merge must write; most have the new contents already.

        Raises RefusedError with the paths that are neither as before nor as the PR has them, or that a live run writes.
        """
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
        # Where there is a folder, the file that the merge deletes does not exist any more.
        there |= {
            path: None for path, why in wrong.items() if why == tree.IS_FOLDER and changes[path][1] is None
        }
        writes, touched = [], []
        for path, (old, new) in changes.items():
            if path not in there or there[path] not in {old, new}:
                why = (
                    busy(path)
                    or wrong.get(path)
                    or "changed since by a person, or by a program that is not an agent"
                )
                touched.append(f"{printable(path)} ({why})")
            elif there[path] != new:
                if (writer := busy(path)) is not None:
                    touched.append(f"{printable(path)} ({writer})")
                writes.append(path)
        if touched:
            more = f" and {len(touched) - NAMED} more" if len(touched) > NAMED else ""
            raise RefusedError(
                f"the working tree differs from the PR: {', '.join(touched[:NAMED])}{more}; nothing was changed. "
                "Add the present contents to the PR (`aipass pr open`), or restore the PR's contents (`aipass pr diff` shows them)"
            )
        return writes

    def _file_above(self, path: str, changes: Changes) -> str | None:
        """A file where the path needs a folder, and that the merge does not delete; None without one."""
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
        """Raise RefusedError where a person has staged another version of one of the paths, or a path above or below it."""
        # The merge replaces the index entries of its paths, and a staged version may exist nowhere else.
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
                    f"{printable(path)} is staged with other contents than the PR has; nothing was changed; commit or unstage it"
                )

    # -- after a crash ---------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Finish an interrupted merge where the branch has moved, else undo it. Keeps what was written since. Idempotent.

        Raises RefusedError where a living process is applying the merge now.
        """
        try:
            found: Any = json.loads(self._intent.read_text("utf-8"))
            intent = Intent(**found)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError):
            # Kept for a person, under another name: it must not block every later merge.
            os.replace(self._intent, self._intent.with_name(f"{INTENT}.unusable"))
            return
        ours = intent.pid == os.getpid() and intent.born == born(intent.pid)
        if intent.lock in _ACTIVE or (
            not ours and Ticket("", "", 0.0, intent.pid, intent.born, intent.boot).is_alive()
        ):
            raise RefusedError(
                f"process {intent.pid} is in the middle of a merge; ask again when it has ended"
            )
        indexlock.drop(self._repo.own, intent.lock)
        (self._repo.own / HALF_INDEX).unlink(missing_ok=True)
        now = self._repo.commit_of(intent.branch)
        if self._repo.commit_of(intent.new) is None:
            # Git's garbage collection has removed the commit, so no branch ever had it. Without the commit it is not
            # known which files are the merge's, so the replaced ones are kept instead of put back.
            kept = self._intent.with_name(f"kept-{time.time_ns()}")
            if os.path.isdir(intent.stage):
                shutil.move(intent.stage, kept)
                logger.error(
                    "an interrupted merge cannot be undone; the files that it replaced are kept",
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
        """Put the old files back, but only over the merge's own files or where there is no file. `now`: the branch's commit."""
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
                # Killed on a file system without an atomic exchange, where `exchange` takes three renames.
                os.replace(aside, kept)
            is_ours = path in there and changes[path][1] is not None and there[path] == changes[path][1]
            try:
                if known == "gone":
                    # A new file. Still in the stage it never reached the working tree, and the file there is a person's.
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
                logger.error("a file of an interrupted merge cannot be restored", path=path, error=str(exc))

    def _drop(self, intent: Intent) -> None:
        held.try_remove_at(intent.stage)
        self._intent.unlink(missing_ok=True)
        if (kept := self._repo.ref(HELD)) is not None:
            self._repo.move("aipass: is merged", f"delete {HELD} {kept}")

    def _catch_up(self, intent: Intent) -> None:
        """Update the index entries that are still as before the merge; for a crash after the branch moved."""
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
        """Mark the PRs as merged, and remove their branches, empty folders, the stage and the write-ahead record. Idempotent."""
        self._sweep(intent)
        for number in intent.prs:
            try:
                pr = self._records.get(number)
            except AipassError as exc:
                logger.error("a PR is merged, but its record cannot be used", pr=number, error=str(exc))
                continue
            if pr.state == "open":
                self._note(pr, intent.new)
            self._drop_branch(pr, intent.new)
        self._drop(intent)

    def _drop_branch(self, pr: Pr, merged: str | None = None) -> None:
        """Delete a PR's branch, unless a person has checked it out or has committed more to it."""
        head = self._repo.ref(pr.ref)
        if head is None or pr.ref in self._repo.checked_out():
            return
        if head == pr.head or (merged is not None and self._repo.is_ancestor(head, merged)):
            self._repo.move("aipass: has done its work", f"delete {pr.ref} {head}")

    def note_merged(self, pr: Pr, held: Held) -> None:
        """Record that a forge has merged the PR, and delete its branch. Raises RefusedError where the lease is lost."""
        held.check()
        self._note(pr, None)
        self._drop_branch(pr)

    def _note(self, pr: Pr, commit: str | None) -> None:
        merged = {"state": "merged", "merged": commit, "finished": tree.today()}
        self._records.put(pr.model_copy(update=merged))

    def _sweep(self, intent: Intent) -> None:
        """Remove folders that the merge has emptied, as git does."""
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
        """Close a PR without a merge; its commits stay under `refs/aipass/pr/`. Raises AipassError where it is not open."""
        if pr.state != "open":
            raise AipassError(f"PR {pr.id} is {pr.state} already")
        held.check()
        closed = pr.model_copy(update={"state": "closed", "reason": reason, "finished": tree.today()})
        self._records.put(closed)
        self._drop_branch(pr)
        return closed
