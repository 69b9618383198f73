"""Opening a PR: a commit of what one agent owns and changed, upon the branch that is checked out, which does not move.

Called by whoever holds the git lease. Each of these can be called again after a crash: what was done is found and not done twice.
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

#: Contents beyond this are told apart by their times, and are not searched for secrets.
MAX_HASHED_BYTES, MAX_SEARCHED_BYTES = 50_000_000, 2_000_000
#: A PR is looked through for secrets while others wait for the repository; 1 MB takes half a second, four where it was made to.
SEARCH_S = 30.0
#: So many paths are named in a refusal.
NAMED = 10


class NothingError(AipassError):
    """There is nothing to hand in."""


@dataclass(frozen=True, slots=True)
class WrittenPath:
    """A path that an agent wrote last. `seal` is what it was then (None: not looked at, its run lives); `changed`: somebody
    has changed it since; `now`: it was written by the work that the PR is of, and not by something before; `at`: its ctime in
    nanoseconds when that was found out.
    """

    seal: str | None = None
    changed: bool = False
    now: bool = True
    at: int | None = None


@dataclass(frozen=True, slots=True)
class PrRequest:
    """A PR that is asked for. Paths are relative to the root."""

    root: str
    asked: str
    agent: str
    title: str
    body: str = ""
    dispatch: int | None = None
    plan: str | None = None
    phase: str | None = None
    #: What the agent wrote; None: nobody knows, and `owned` says which of the changed paths are its.
    claims: Mapping[str, WrittenPath] | None = None
    owned: Callable[[str], bool] | None = None
    #: Only these paths, or what lies below them; empty: all.
    only: tuple[str, ...] = ()
    #: Take paths as they are now, whoever has changed them.
    include: bool = False
    #: A commit on the agent's own branch, and no PR yet.
    draft: bool = False
    #: Whether a file is searched for secrets.
    searched: Callable[[str], bool] = lambda _: True


@dataclass(slots=True)
class OpenedPr:
    """What came of it. `left_out`: paths that are not in it, with the reason."""

    pr: Pr | None
    commit: str
    ref: str
    new: bool = True
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def told(self) -> str:
        """For whoever asked."""
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
    """Those of these paths that other programs run code out of, with the program and the reason: who merges them should look."""
    found = ((path, runs_code.listed(path)) for path in paths)
    return [(path, one.entry.what) for path, one in found if one is not None]


def touched(path: Path) -> int:
    """When a file was changed last, in nanoseconds; 0 where there is none: what comes into a folder is no change of it."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return 0 if stat.S_ISDIR(found.st_mode) else found.st_ctime_ns


def seal(path: Path) -> str:
    """What tells whether anybody has changed a file: its content and whether it may be run, or where a link leads."""
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            return "link " + hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()
        if not stat.S_ISREG(found.st_mode):
            return "other"
        runs = "x" if found.st_mode & 0o100 else "-"
        if found.st_size > MAX_HASHED_BYTES:
            return f"{runs} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
        with open_regular(path) as file:
            return f"{runs} " + hashlib.sha256(file.read(MAX_HASHED_BYTES)).hexdigest()
    except OSError:
        return "gone"


class Pulls:
    """Makes PRs in one repository."""

    def __init__(
        self, repo: Repo, records: PrRecords, find_secrets: Callable[[str], Iterable[Secret]] | None
    ) -> None:
        self._repo, self._records, self._find_secrets = repo, records, find_secrets

    def open(self, wish: PrRequest, held: Held) -> OpenedPr:
        """Make it, or go on with the open one of the same agent and title.

        Raises NothingError where the agent has changed nothing, RefusedError naming the paths where somebody else has
        changed what it wrote, or where something looks like a secret; GitError.
        """
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
                raise RefusedError(
                    f"{short} is checked out in {where}, and would move under whoever works there"
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
        # What was drafted may have been taken back since.
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
        """Have its branch stand where its record says, unless a person has it checked out."""
        if (where := self._repo.checked_out().get(pr.ref)) is not None and self._repo.ref(pr.ref) != pr.head:
            raise RefusedError(
                f"PR {pr.id} is made, and {pr.ref.removeprefix('refs/heads/')} is checked out in {where}: "
                f"`git merge refs/aipass/pr/{pr.id}` there brings it on"
            )
        draft = folder_of(pr.agent) + DRAFT
        changes, stands = [], self._repo.ref(pr.ref)
        if stands is None:
            changes.append(f"create {pr.ref} {pr.head}")
        elif stands != pr.head and self._repo.is_ancestor(stands, pr.head):
            changes.append(f"update {pr.ref} {pr.head} {stands}")
        # Else people have gone on there since, or have made another of it: that stays.
        old = self._repo.commit_of(draft)
        if old is not None and draft not in self._repo.checked_out() and self._repo.is_ancestor(old, pr.head):
            changes.append(f"delete {draft} {old}")
        held.check()
        if changes:
            self._repo.move(f"aipass: PR {pr.id}", *changes)
        return OpenedPr(pr, pr.head, pr.ref, new, left_out or [])

    def _open_one(self, wish: PrRequest) -> Pr | None:
        """The agent's open PR of the same title, which it goes on with, as people have left its branch."""
        title = title_of(wish.title).casefold()
        mine = (pr for pr in self._records.open() if pr.agent == wish.agent and pr.title.casefold() == title)
        found = next(mine, None)
        return None if found is None else current(self._repo, found)

    def _free_way(self, agent: str) -> None:
        """Raise RefusedError where a branch stands in the way of the folder of the agent's branches."""
        parts = folder_of(agent).rstrip("/").split("/")
        for depth in (3, 4):
            name = "/".join(parts[:depth])
            if self._repo.ref(name) is not None:
                short = name.removeprefix("refs/heads/")
                raise RefusedError(
                    f"the branch `{short}` stands in the way of `{short}/…`; rename it: `git branch -m {short} OTHER`"
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
        """What the agent wrote, by paths from the top; and what of it no commit can hold."""
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
        # A folder is nothing that git keeps; that a file is gone which stood there is.
        were = tree.at(repo, tip, folders)
        found |= {
            path: folders[path]
            for path, was in were.items()
            if was is not None and was.mode != tree.FOLDER_MODE
        }
        for path, module in tree.in_submodules(repo, tip, found).items():
            del found[path]
            left_out.append((path, f"{module} is a submodule"))
        # Build output and the like is not what anybody asked for.
        for path in tree.ignored(repo, found):
            del found[path]
        return found, left_out

    def _changed(self, wish: PrRequest) -> dict[str, WrittenPath]:
        """Without a fence: whatever differs from HEAD and is the agent's to write."""
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
        """Without what somebody else has changed since: that is refused where it is of the work that the PR is of."""
        refused = []
        kept = {}
        merged = self._merged(wish.agent)
        for path, claim in claims.items():
            changed = claim.changed or (claim.seal is not None and claim.seal != seal(self._repo.top / path))
            # It may have been changed between the asking and now, by nobody knows whom.
            changed = changed or (claim.at is not None and claim.at != touched(self._repo.top / path))
            if there[path] is None and os.path.isfile(self._repo.top / path):
                left_out.append((path, "git takes no file of this name"))
            elif not changed or wish.include:
                kept[path] = claim
            elif there[path] == before[path] and path in merged:
                continue  # it was handed in, and people went on from there
            elif there[path] == before[path]:
                left_out.append((path, f"it is as the branch has it, not as {wish.agent} wrote it"))
            elif claim.now:
                refused.append(path)
            else:
                left_out.append((path, "somebody has changed it since"))
        if refused:
            named = ", ".join(str(printable(path)) for path in refused[:NAMED])
            more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
            raise RefusedError(
                f"changed by somebody else since {wish.agent} wrote it: {named}{more}; look at it, then ask again with "
                "`--include` to take it as it is now, or name the other paths"
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
        """Which open PRs it goes on from, the commit that it is built upon, and the changes upon that."""
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
                if other.agent != wish.agent:
                    left_out.append((path, f"PR {other.id} of {other.agent} has it as it is now"))
            if common != same:
                parent = self._upon(parent, tip, other.head, f"PR {other.id} of {other.agent}")
                on.append(other.id)
                changes = _differing(tree.at(repo, parent, wanted), there, wanted)
        for path in _in_the_way(repo, parent, changes):
            raise RefusedError(
                f"{printable(path)} stands where others have files below or above it; take those away first"
            )
        return sorted(on), parent, changes

    def _standing(self) -> list[Pr]:
        """PRs whose changes are not here yet: open ones, and those that were merged on a forge and not pulled."""
        return [pr for pr in self._records.all() if pr.state == "open" or self._is_elsewhere(pr)]

    def _is_elsewhere(self, pr: Pr) -> bool:
        """Whether it was merged on a forge, and that has not come here yet: by merging, or by other commits of the same."""
        if pr.state != "merged" or pr.merged is not None:
            return False
        repo, tip = self._repo, self._repo.tip().commit
        if not repo.is_ancestor(pr.head, tip) and tree.at(repo, tip, pr.paths) != tree.at(
            repo, pr.head, pr.paths
        ):
            return True
        self._records.put(pr.model_copy(update={"merged": tip}))
        return False

    def _upon(self, parent: str, tip: str, other: str, name: str) -> str:
        """A commit that holds what another holds, and what was built upon so far."""
        repo = self._repo
        if parent == tip or repo.is_ancestor(parent, other):
            return other
        made, conflicts = tree.merged(repo, parent, other)
        if conflicts:
            named = ", ".join(str(printable(path)) for path in conflicts[:NAMED])
            raise RefusedError(f"{name} changes the same lines of {named}; it must be merged or closed first")
        return tree.join(repo, made, (parent, other), f"With {name}")

    # -- secrets ---------------------------------------------------------------------------------------------------

    def _search(self, base: str, changes: Entries, words: str) -> None:
        """Raise RefusedError where a line that is new, or the message, looks like a key or a password."""
        if self._find_secrets is None:
            return
        found = [f"{printable(path)}:{line}: {kind}" for path, line, kind in self._secrets(base, changes)]
        found += [f"the PR's own words: {secret.kind}" for secret in self._find_secrets(words)]
        if found:
            more = f"\nand {len(found) - NAMED} more" if len(found) > NAMED else ""
            raise RefusedError(
                "this looks like a secret, and what is once in a commit is not secret any more:\n"
                + "\n".join(found[:NAMED])
                + more
                + "\ntake it out and ask again; where it is none, a person names the file in `[pr] allow_secrets` of aipass.toml"
            )

    def _secrets(self, base: str, changes: Entries) -> Iterator[tuple[str, int, str]]:
        assert self._find_secrets is not None
        before = tree.at(self._repo, base, changes)
        until = time.monotonic() + SEARCH_S
        for path, entry in changes.items():
            if entry is None or entry.mode not in {"100644", "100755"}:
                continue
            if time.monotonic() > until:
                raise RefusedError(
                    f"the search for secrets took more than {SEARCH_S:.0f} seconds; hand in fewer files at once"
                )
            text = self._text(entry)
            secrets = list(self._find_secrets(text)) if text else []
            if not secrets:
                continue
            old = before[path]
            known = self._text(old) if old is not None and old.mode.startswith("100") else ""
            values = {secret.value for secret in self._find_secrets(known)} if known else set()
            # Of one that has several lines, none is new that was there before.
            lines = {line for value in values if "\n" in value for line in value.splitlines()}
            for secret in secrets:
                if secret.value not in values and not lines.issuperset(secret.value.splitlines()):
                    yield path, secret.line, secret.kind

    def _text(self, entry: TreeEntry) -> str:
        size = int(self._repo.one("cat-file", "-s", entry.sha))
        if size > MAX_SEARCHED_BYTES:
            return ""
        data = self._repo.run("cat-file", "blob", entry.sha)
        return "" if b"\0" in data[:8000] else data.decode("utf-8", "replace")


def _differing(before: Entries, there: Entries, wanted: Iterable[str]) -> Entries:
    return {path: there[path] for path in wanted if there[path] != before[path]}


def _in_the_way(repo: Repo, parent: str, changes: Entries) -> Iterator[str]:
    """Files of others that a file or folder of this one would push out of the tree."""
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
    text = f"{wish.agent} has changed nothing that is not handed in already"
    if not wish.claims and wish.claims is not None:
        text = f"{wish.agent} has written nothing that a PR could hold; `aipass owns PATH` says who may write what"
    if left_out:
        text += "; left out: " + ", ".join(f"{printable(path)} ({why})" for path, why in left_out[:NAMED])
    return text


def _message(wish: PrRequest) -> str:
    """The commit's message: title, body, and where it comes from."""
    title = title_of(wish.title)
    trailers = [
        f"{name}: {value}"
        for name, value in (("Dispatch", wish.dispatch), ("Plan", wish.plan), ("Phase", wish.phase))
        if value is not None
    ]
    parts = [title, _printable(wish.body).strip(), "\n".join(trailers)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def current(repo: Repo, pr: Pr) -> Pr:
    """A PR as its branch has it now: only people can have moved that, and what they committed there is meant to be in it."""
    head = repo.commit_of(pr.ref)
    if head is None or head == pr.head:
        return pr
    paths = {*pr.paths, *tree.between(repo, pr.head, head)}
    return pr.model_copy(update={"head": head, "paths": tuple(sorted(paths))})
