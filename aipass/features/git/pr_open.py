"""Opening a PR: a commit of one agent's changes on top of the branch that is checked out. That branch does not move.

The caller holds the git lease. Every function is idempotent: after a crash the same call finds what was done and does the rest.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aipass.errors import AipassError, RefusedError
from aipass.event import printable
from aipass.features.git import tree
from aipass.features.git.pr_records import DRAFT, KEPT, Pr, folder_of, slug, title_of
from aipass.features.git.repo import records
from aipass.supervisor.fence import runs_code
from aipass.supervisor.held import open_regular
from aipass.text.units import count
from aipass.workspace.layout import STATE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from aipass.features.git.lease import Held
    from aipass.features.git.pr_records import PrRecords
    from aipass.features.git.repo import Repo
    from aipass.features.git.tree import Entries, TreeEntry
    from aipass.text.secret import Secret

#: The fingerprint of a larger file uses its size and times instead of its contents; and a larger file is not searched
#: for secrets.
MAX_HASHED_BYTES, MAX_SEARCHED_BYTES = 50_000_000, 2_000_000
#: Limit of the search for secrets, because other PRs wait for the lease at that time. 1 MB takes half a second; text
#: that was written to be slow takes four.
SEARCH_S = 30.0
#: Paths that one message names.
NAMED = 10


class NothingError(AipassError):
    """The agent has no changes that are not in a PR or in the branch already."""


@dataclass(frozen=True, slots=True)
class WrittenPath:
    """A path that the PR's agent was the last agent to write."""

    #: The fingerprint at the end of the run that wrote it; None: that run is still alive.
    seal: str | None = None
    #: Another author has changed it since.
    changed: bool = False
    #: The PR's own dispatch or phase wrote it, not an earlier one.
    now: bool = True
    #: Its ctime in nanoseconds when the request was accepted.
    at: int | None = None


@dataclass(frozen=True, slots=True)
class PrRequest:
    """A request for a PR. Paths are relative to aipass's root. `root` and `asked` together are the idempotency key."""

    root: str
    asked: str
    agent: str
    title: str
    body: str = ""
    dispatch: int | None = None
    plan: str | None = None
    phase: str | None = None
    #: The paths that the agent wrote. None: no fence, so it is not known, and `owned` selects among all changed paths.
    claims: Mapping[str, WrittenPath] | None = None
    owned: Callable[[str], bool] | None = None
    #: Only these paths and everything below them; empty: all.
    only: tuple[str, ...] = ()
    #: Take the present contents also where another author has changed a path.
    include: bool = False
    #: Commit to the agent's draft branch, without a PR.
    draft: bool = False
    #: Whether to search a file for secrets; false for the files of `[pr] allow_secrets`.
    searched: Callable[[str], bool] = lambda _: True


@dataclass(slots=True)
class OpenedPr:
    """The result of a request. `pr` is None for a draft; `left_out`: paths that are not in the commit, with the reason."""

    pr: Pr | None
    commit: str
    ref: str
    new: bool = True
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def told(self) -> str:
        """The answer to the asking command: the PR, the files that run code, and the paths that were left out."""
        if self.pr is None:
            text = f"committed as {self.commit[:10]} on {self.ref.removeprefix('refs/heads/')}"
        else:
            done = "opened" if self.new else "updated"
            text = f"PR {self.pr.id} is {done}: {count(len(self.pr.paths), 'path')}, {self.ref.removeprefix('refs/heads/')}"
            if self.pr.stacked_on:
                text += f", on top of PR {', '.join(map(str, self.pr.stacked_on))}"
        runs = started_by_others(self.pr.paths) if self.pr is not None else []
        more = f"\nand {len(runs) - NAMED} more of that kind" if len(runs) > NAMED else ""
        text += "".join(f"\nruns code: {printable(path)}: {why}" for path, why in runs[:NAMED]) + more
        return text + "".join(f"\nleft out: {printable(path)}: {why}" for path, why in self.left_out[:NAMED])


def started_by_others(paths: Iterable[str]) -> list[tuple[str, str]]:
    """The paths from which other programs run code, such as CI or an editor, each with the reason; a reviewer should read them."""
    found = ((path, runs_code.listed(path)) for path in paths)
    return [(path, one.entry.what) for path, one in found if one is not None]


def touched(path: Path) -> int:
    """A file's ctime in nanoseconds; 0 for a folder, or where there is no file."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    # A folder's ctime changes with every file in it, which is no change of the path itself.
    return 0 if stat.S_ISDIR(found.st_mode) else found.st_ctime_ns


def seal(path: Path) -> str:
    """The fingerprint (seal) of a file: changes with its contents, its executable bit or its link target. Never raises.

    Returns `gone` where there is no readable file, and `other` for folders, pipes and devices.
    """
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            return "link " + hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()
        if not stat.S_ISREG(found.st_mode):
            return "other"
        runs = "x" if found.st_mode & 0o100 else "-"
        if found.st_size > MAX_HASHED_BYTES:
            return f"{runs} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
        # Safe against a race: an agent may put a pipe there after `lstat`, on which a plain `open` would hang.
        with open_regular(path) as file:
            return f"{runs} " + hashlib.sha256(file.read(MAX_HASHED_BYTES)).hexdigest()
    except OSError:
        return "gone"


class Pulls:
    """Makes PRs in one repository. `find_secrets` is None where `[pr] secrets` turns the search off."""

    def __init__(
        self, repo: Repo, records: PrRecords, find_secrets: Callable[[str], Iterable[Secret]] | None
    ) -> None:
        self._repo, self._records, self._find_secrets = repo, records, find_secrets

    def open(self, wish: PrRequest, held: Held) -> OpenedPr:
        """Make a PR, or update the open PR of the same agent and title. Nothing outside aipass's own refs and records changes.

        Raises NothingError where there is nothing to commit; RefusedError with the paths where another author has changed
        the agent's work or a line looks like a secret; GitError.
        """
        # The record is written after the commit and before the branch: where it exists only the branch may be missing.
        if not wish.draft and (made := self._records.of_request(wish.root, wish.asked)) is not None:
            if made.state != "open":
                return OpenedPr(made, made.head, made.ref, made.updated is None)
            return self._finish(made, made.updated is None, held)
        repo, tip = self._repo, self._repo.tip()
        self._free_way(wish.agent)
        claims, left_out = self._claims(wish, tip.commit)
        before = tree.at(repo, tip.commit, claims)
        there = tree.now(repo, before, tree.MOST_BYTES)
        claims = self._unchanged(wish, claims, before, there, left_out)
        mine = None if wish.draft else self._open_one(wish)
        start = tip.commit if mine is None else mine.head
        draft = repo.commit_of(folder_of(wish.agent) + DRAFT)
        drafted = draft is not None and not repo.is_ancestor(draft, start)
        parent = self._upon(start, tip.commit, draft, "the draft") if draft is not None and drafted else start
        stacked, base, changes = self._stack(wish, claims, there, parent, tip.commit, left_out, mine)
        if not changes and (wish.draft or not drafted):
            raise NothingError(_nothing(wish, left_out))
        searched = {
            path: entry for path, entry in changes.items() if wish.searched(path.removeprefix(repo.prefix))
        }
        self._search(base, searched, f"{wish.title}\n{wish.body}")
        held.check()
        if wish.draft:
            ref = folder_of(wish.agent) + DRAFT
            if (where := repo.checked_out().get(ref)) is not None:
                short = ref.removeprefix("refs/heads/")
                # A branch that moves under a working tree shows all its files as changed there.
                raise RefusedError(
                    f"{short} is checked out in {where}, and aipass does not move a checked-out branch; switch to another branch there"
                )
            return OpenedPr(None, self._commit(ref, base, changes, wish), ref, left_out=left_out)
        number = mine.id if mine is not None else self._next()
        pr = mine or self._record(wish, number, tip.branch)
        fork = (
            base
            if stacked or base == tip.commit or mine is not None
            else repo.one("merge-base", tip.commit, base)
        )
        drafts = tree.between(repo, fork, base) if drafted else {}
        # The agent may have undone its drafted changes: then the PR would be empty.
        after: Entries = {path: change[1] for path, change in drafts.items()} | changes
        if mine is None and tree.at(repo, fork, after) == after:
            raise NothingError(_nothing(wish, left_out))
        kept = f"{KEPT}{number}"
        pr = pr.model_copy(
            update={
                "head": self._commit(kept, base, changes, wish) if changes else base,
                "base": pr.base if mine is not None else fork,
                "paths": tuple(sorted({*pr.paths, *after})),
                "stacked_on": tuple(dict.fromkeys((*pr.stacked_on, *stacked))),
                "updated": tree.today() if mine is not None else None,
                "root": wish.root,
                "asked": wish.asked,
            }
        )
        if not changes:
            repo.move("aipass: handed in", f"update {kept} {pr.head}")
        self._records.put(pr)
        return self._finish(pr, mine is None, held, left_out)

    def _commit(self, ref: str, base: str, changes: Entries, wish: PrRequest) -> str:
        author = f"{wish.agent} <{wish.agent}@aipass>"
        return tree.commit(self._repo, ref, [base], changes, _message(wish), author)

    def _finish(
        self, pr: Pr, new: bool, held: Held, left_out: list[tuple[str, str]] | None = None
    ) -> OpenedPr:
        """Move the PR's branch to the commit in its record, and remove the draft branch that is part of it."""
        if (where := self._repo.checked_out().get(pr.ref)) is not None and self._repo.ref(pr.ref) != pr.head:
            raise RefusedError(
                f"PR {pr.id} is made, but {pr.ref.removeprefix('refs/heads/')} is checked out in {where} and was not moved; "
                f"run `git merge refs/aipass/pr/{pr.id}` there to update it"
            )
        draft = folder_of(pr.agent) + DRAFT
        changes, stands = [], self._repo.ref(pr.ref)
        if stands is None:
            changes.append(f"create {pr.ref} {pr.head}")
        elif stands != pr.head and self._repo.is_ancestor(stands, pr.head):
            changes.append(f"update {pr.ref} {pr.head} {stands}")
        # Otherwise a person has committed to the branch or replaced it, and it stays as it is.
        old = self._repo.commit_of(draft)
        if old is not None and draft not in self._repo.checked_out() and self._repo.is_ancestor(old, pr.head):
            changes.append(f"delete {draft} {old}")
        held.check()
        if changes:
            self._repo.move(f"aipass: PR {pr.id}", *changes)
        return OpenedPr(pr, pr.head, pr.ref, new, left_out or [])

    def _open_one(self, wish: PrRequest) -> Pr | None:
        """The agent's open PR of the same title, with the commits that people have added to its branch; None without one."""
        title = title_of(wish.title).casefold()
        mine = (pr for pr in self._records.open() if pr.agent == wish.agent and pr.title.casefold() == title)
        found = next(mine, None)
        return None if found is None else current(self._repo, found)

    def _free_way(self, agent: str) -> None:
        """Raise RefusedError where an existing branch has the name of the folder of the agent's branches."""
        # Git keeps refs as files: beside a branch `aipass` there cannot be a branch `aipass/api/x`.
        parts = folder_of(agent).rstrip("/").split("/")
        for depth in (3, 4):
            name = "/".join(parts[:depth])
            if self._repo.ref(name) is not None:
                short = name.removeprefix("refs/heads/")
                raise RefusedError(
                    f"the branch `{short}` prevents branches named `{short}/…`; rename it: `git branch -m {short} OTHER`"
                )

    def _record(self, wish: PrRequest, number: int, branch: str | None) -> Pr:
        return Pr(
            id=number,
            agent=wish.agent,
            ref=self._free_name(folder_of(wish.agent) + slug(wish.title)),
            base="",
            head="",
            state="open",
            title=title_of(wish.title),
            body=_printable(wish.body),
            created=tree.today(),
            dispatch=wish.dispatch,
            plan=wish.plan,
            phase=wish.phase,
            branch=branch,
        )

    def _next(self) -> int:
        # The refs count as well as the records: a person may have removed a record, and its number must not come twice.
        kept = self._repo.run("for-each-ref", "--format=%(refname)", KEPT).decode().split()
        numbers = [int(tail) for ref in kept if (tail := ref.removeprefix(KEPT)).isdecimal()]
        return 1 + max(self._records.last(), max(numbers, default=0))

    def _free_name(self, wanted: str) -> str:
        name, number = wanted, 1
        while self._repo.ref(name) is not None:
            number += 1
            name = f"{wanted}-{number}"
        return name

    # -- which paths -----------------------------------------------------------------------------------------------

    def _claims(self, wish: PrRequest, tip: str) -> tuple[dict[str, WrittenPath], list[tuple[str, str]]]:
        """The agent's paths, relative to the top; and the paths that a commit cannot contain, with the reasons."""
        repo, left_out = self._repo, []
        claims = self._changed(wish) if wish.claims is None else dict(wish.claims)
        if wish.only:
            only = frozenset(map(_normal, wish.only))
            claims = {path: claim for path, claim in claims.items() if _is_below(path, only)}
            there = {one for path in claims for one in _upward(path)}
            unknown = (path for path in wish.only if _normal(path) not in there)
            left_out += [(path, f"{wish.agent} has not written it") for path in unknown]
        found: dict[str, WrittenPath] = {}
        folders: dict[str, WrittenPath] = {}
        for path, claim in sorted(claims.items()):
            if path.partition("/")[0] == STATE_NAME:
                continue
            why = tree.unusable(repo, repo.prefix + path)
            if why is None:
                found[repo.prefix + path] = claim
            elif why == tree.IS_FOLDER:
                folders[repo.prefix + path] = claim
            else:
                left_out.append((path, why))
        # Git keeps no folders. Where a folder has replaced a file, the removal of that file is a change.
        were = tree.at(repo, tip, folders)
        found |= {
            path: folders[path]
            for path, was in were.items()
            if was is not None and was.mode != tree.FOLDER_MODE
        }
        for path, module in tree.in_submodules(repo, tip, found).items():
            del found[path]
            left_out.append((path, f"{module} is a submodule"))
        # Ignored files are mostly build output, which no PR should contain.
        for path in tree.ignored(repo, found):
            del found[path]
        return found, left_out

    def _changed(self, wish: PrRequest) -> dict[str, WrittenPath]:
        """The replacement for write attribution without a fence: paths that differ from HEAD and that the agent may write."""
        words = (
            "status",
            "--porcelain=v1",
            "-z",
            "--no-renames",
            "--untracked-files=all",
            "--ignore-submodules=all",
        )
        found = (line[3:] for line in records(self._repo.run(*words)))
        inside = (
            path.removeprefix(self._repo.prefix) for path in found if path.startswith(self._repo.prefix)
        )
        return {path: WrittenPath() for path in inside if wish.owned is not None and wish.owned(path)}

    def _unchanged(
        self,
        wish: PrRequest,
        claims: dict[str, WrittenPath],
        before: Entries,
        there: Entries,
        left_out: list[tuple[str, str]],
    ) -> dict[str, WrittenPath]:
        """The claims without the paths that another author has changed since.

        Raises RefusedError where such a path belongs to the PR's own dispatch; one of an earlier dispatch is left out.
        """
        refused = []
        kept = {}
        merged = self._merged(wish.agent)
        for path, claim in claims.items():
            changed = claim.changed or (claim.seal is not None and claim.seal != seal(self._repo.top / path))
            # Race: the path may have been changed between the request and now, by an unknown author.
            changed = changed or (claim.at is not None and claim.at != touched(self._repo.top / path))
            if there[path] is None and os.path.isfile(self._repo.top / path):
                # Git skips names such as `git~1`, which Windows takes for `.git`.
                left_out.append((path, "git does not accept a file of this name"))
            elif not changed or wish.include:
                kept[path] = claim
            elif there[path] == before[path] and path in merged:
                continue  # merged by an earlier PR and changed by people since: nothing to report
            elif there[path] == before[path]:
                left_out.append((path, f"it is as the branch has it, not as {wish.agent} wrote it"))
            elif claim.now:
                refused.append(path)
            else:
                left_out.append((path, "another author has changed it since"))
        if refused:
            named = ", ".join(str(printable(path)) for path in refused[:NAMED])
            more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
            raise RefusedError(
                f"changed by another author since {wish.agent} wrote it: {named}{more}; review the change, then ask again with "
                "`--include` to take the present contents, or name the other paths"
            )
        return kept

    def _merged(self, agent: str) -> set[str]:
        """Paths of the agent's PRs that were merged."""
        mine = (pr for pr in self._records.all() if pr.agent == agent and pr.state == "merged")
        return {path for pr in mine for path in pr.paths}

    def _stack(
        self,
        wish: PrRequest,
        claims: Mapping[str, WrittenPath],
        there: Entries,
        parent: str,
        tip: str,
        left_out: list[tuple[str, str]],
        mine: Pr | None,
    ) -> tuple[list[int], str, Entries]:
        """The PRs that this one is based on, its base commit, and its changes relative to that base.

        Where another open PR changes the same path, this one is stacked on it, so that the two do not conflict.
        """
        repo = self._repo
        wanted = dict.fromkeys(claims)
        changes = _differing(tree.at(repo, parent, wanted), there, wanted)
        on: list[int] = []
        for one in reversed(self._standing()):
            other = current(repo, one)
            common = changes.keys() & set(other.paths)
            if (
                not common
                or (mine is not None and other.id == mine.id)
                or repo.is_ancestor(other.head, parent)
            ):
                continue
            theirs = tree.at(repo, other.head, common)
            same = {path for path in common if theirs[path] == there[path]}
            for path in sorted(same):
                del changes[path]
                wanted.pop(path, None)
                # The other PR contains the same content already: in both it would be merged twice.
                if other.agent != wish.agent:
                    left_out.append((path, f"PR {other.id} of {other.agent} has the same contents"))
            if common != same:
                parent = self._upon(parent, tip, other.head, f"PR {other.id} of {other.agent}")
                on.append(other.id)
                changes = _differing(tree.at(repo, parent, wanted), there, wanted)
        for path in _in_the_way(repo, parent, changes):
            raise RefusedError(
                f"{printable(path)} has the path of another author's folder, or is below another author's file; remove those first"
            )
        return sorted(on), parent, changes

    def _standing(self) -> list[Pr]:
        """PRs whose changes are not in this branch yet: open ones, and those that were merged on a forge and not pulled."""
        return [pr for pr in self._records.all() if pr.state == "open" or self._is_elsewhere(pr)]

    def _is_elsewhere(self, pr: Pr) -> bool:
        """Whether a PR was merged on a forge and its changes were not pulled yet. Records the present tip once they are here."""
        if pr.state != "merged" or pr.merged is not None:
            return False
        repo, tip = self._repo, self._repo.tip().commit
        # A forge may squash or rebase: then the PR's own commit never arrives, and only the contents can be compared.
        if not repo.is_ancestor(pr.head, tip) and tree.at(repo, tip, pr.paths) != tree.at(
            repo, pr.head, pr.paths
        ):
            return True
        self._records.put(pr.model_copy(update={"merged": tip}))
        return False

    def _upon(self, parent: str, tip: str, other: str, name: str) -> str:
        """A base with the changes of `other` and of the present base `parent`: one of the two, or a merge of both.

        Raises RefusedError where they conflict.
        """
        repo = self._repo
        if parent == tip or repo.is_ancestor(parent, other):
            return other
        made, conflicts = tree.merged(repo, parent, other)
        if conflicts:
            named = ", ".join(str(printable(path)) for path in conflicts[:NAMED])
            raise RefusedError(f"{name} changes the same lines of {named}; merge or close it first")
        return tree.join(repo, made, (parent, other), f"With {name}")

    # -- secrets ---------------------------------------------------------------------------------------------------

    def _search(self, base: str, changes: Entries, words: str) -> None:
        """Raise RefusedError where a new line, the title or the body looks like a key or a password."""
        if self._find_secrets is None:
            return
        found = [f"{printable(path)}:{line}: {kind}" for path, line, kind in self._secrets(base, changes)]
        found += [f"the PR's title or body: {secret.kind}" for secret in self._find_secrets(words)]
        # The message names the kind and the place, never the value: it goes into the ledger, which agents may read.
        if found:
            more = f"\nand {len(found) - NAMED} more" if len(found) > NAMED else ""
            raise RefusedError(
                "this looks like a secret, and a commit would publish it:\n"
                + "\n".join(found[:NAMED])
                + more
                + "\nremove it and ask again; if it is no secret, a person can list the file in `[pr] allow_secrets` of aipass.toml"
            )

    def _secrets(self, base: str, changes: Entries) -> Iterator[tuple[str, int, str]]:
        assert self._find_secrets is not None
        before = tree.at(self._repo, base, changes)
        until = time.monotonic() + SEARCH_S
        for path, entry in changes.items():
            if entry is None or entry.mode not in {"100644", "100755"}:
                continue
            if time.monotonic() > until:
                # Refused, not skipped: otherwise an agent could hide a secret behind files that are slow to search.
                raise RefusedError(
                    f"the search for secrets took more than {SEARCH_S:.0f} seconds; open a PR with fewer files"
                )
            text = self._text(entry)
            secrets = list(self._find_secrets(text)) if text else []
            if not secrets:
                continue
            old = before[path]
            known = self._text(old) if old is not None and old.mode.startswith("100") else ""
            values = {secret.value for secret in self._find_secrets(known)} if known else set()
            # A secret of several lines (a private key) may be found at another line than before: it is new only where
            # one of its lines is new.
            lines = {line for value in values if "\n" in value for line in value.splitlines()}
            for secret in secrets:
                if secret.value not in values and not lines.issuperset(secret.value.splitlines()):
                    yield path, secret.line, secret.kind

    def _text(self, entry: TreeEntry) -> str:
        size = int(self._repo.one("cat-file", "-s", entry.sha))
        if size > MAX_SEARCHED_BYTES:
            return ""
        data = self._repo.run("cat-file", "blob", entry.sha)
        # Git's own test for a binary file: a NUL within the first 8000 bytes.
        return "" if b"\0" in data[:8000] else data.decode("utf-8", "replace")


def _differing(before: Entries, there: Entries, wanted: Iterable[str]) -> Entries:
    return {path: there[path] for path in wanted if there[path] != before[path]}


def _in_the_way(repo: Repo, parent: str, changes: Entries) -> Iterator[str]:
    """The PR's paths that would remove other authors' files from the tree: a file over a folder, or a folder over a file."""
    made = [path for path, entry in changes.items() if entry is not None]
    above = {"/".join(path.split("/")[:depth]) for path in made for depth in range(1, path.count("/") + 1)}
    for path, entry in tree.at(repo, parent, {*made, *above}).items():
        if entry is None:
            continue
        if path in above and entry.mode != tree.FOLDER_MODE and changes.get(path, entry) is not None:
            yield path
        elif path not in above and entry.mode == tree.FOLDER_MODE:
            inside = records(
                repo.run(
                    "--literal-pathspecs",
                    "ls-tree",
                    "-r",
                    "-z",
                    "--full-tree",
                    "--name-only",
                    parent,
                    "--",
                    f"{path}/",
                )
            )
            if any(below not in changes for below in inside):
                yield path


def _normal(top: str) -> str:
    return "" if top in {".", "./"} else top.rstrip("/")


def _upward(path: str) -> Iterator[str]:
    """A path, every folder above it, and the root ("")."""
    yield path
    while path:
        path = path.rpartition("/")[0]
        yield path


def _is_below(path: str, tops: frozenset[str]) -> bool:
    return any(one in tops for one in _upward(path))


def _nothing(wish: PrRequest, left_out: list[tuple[str, str]]) -> str:
    text = f"{wish.agent} has no changes that are not in a PR or in the branch already"
    if not wish.claims and wish.claims is not None:
        text = f"{wish.agent} has written nothing that a PR could contain; `aipass owns PATH` shows who may write a path"
    if left_out:
        text += "; left out: " + ", ".join(f"{printable(path)} ({why})" for path, why in left_out[:NAMED])
    return text


def _message(wish: PrRequest) -> str:
    """The commit message: title, body, and trailers with the origin (`Dispatch:`, `Plan:`, `Phase:`)."""
    title = title_of(wish.title)
    trailers = [
        f"{name}: {value}"
        for name, value in (("Dispatch", wish.dispatch), ("Plan", wish.plan), ("Phase", wish.phase))
        if value is not None
    ]
    parts = [title, _printable(wish.body).strip(), "\n".join(trailers)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _printable(text: str) -> str:
    # An agent writes this text, and people read it in a terminal, which obeys escape sequences.
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def current(repo: Repo, pr: Pr) -> Pr:
    """The PR with the present commit of its branch, and the paths that were added there."""
    # Agents cannot write refs, so a person has moved the branch, and wants those commits in the PR.
    head = repo.commit_of(pr.ref)
    if head is None or head == pr.head:
        return pr
    paths = {*pr.paths, *tree.between(repo, pr.head, head)}
    return pr.model_copy(update={"head": head, "paths": tuple(sorted(paths))})
