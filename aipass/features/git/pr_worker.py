"""The pull request worker: two threads beside the engine, one that opens and closes PRs and one that merges them.

Each thread does its jobs in the order of the requests. A request is a pending action in the ledger, which the engine sends again
after a crash, so every job is idempotent. Results go back through the engine's queue.
"""
# Two threads, because a merge waits for its checks for minutes; opening a PR must not wait for that.

from __future__ import annotations

import os
import queue
import textwrap
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass import programs
from aipass.config.model import LOCAL
from aipass.errors import EXIT_FAILED, AipassError, RefusedError
from aipass.event import Fact, printable
from aipass.features.dispatch.results import INTERRUPTED
from aipass.features.git import merge_checks
from aipass.features.git.fair_share import FairShare
from aipass.features.git.lease import EndingError, Lease
from aipass.features.git.pr_merge import Merger, StaleError
from aipass.features.git.pr_open import NothingError, Pulls, seal
from aipass.features.git.pr_records import PrRecords
from aipass.features.git.repo import Repo
from aipass.supervisor import wire
from aipass.workspace.crash_report import write_report
from aipass.workspace.layout import MERGES
from aipass.workspace.removal import Remover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from aipass.config.model import Pulling
    from aipass.features.git.forge import Forge
    from aipass.features.git.lease import Held
    from aipass.features.git.pr_merge import Prepared
    from aipass.features.git.pr_open import OpenedPr, PrRequest
    from aipass.features.git.pr_records import Pr
    from aipass.text.secret import Secret
    from aipass.workspace.layout import Layout

logger = structlog.get_logger("aipass")

#: Attempts of a merge whose branch moves while the checks run; each attempt runs the checks again.
MOST_TRIES = 3
#: Retries of a check that cannot be started: the pause, their number, and how long a busy supervisor costs none of them.
START_PAUSE_S, START_TRIES, BUSY_WAIT_S = 0.5, 20, 60.0
#: How long `stop` waits for each thread before it ends the programs that they started.
STOP_WAIT_S = 10.0
#: Characters of a check's command in a message.
NAMED_CHARS = 60


@dataclass(frozen=True, slots=True)
class Sealed:
    """A report: the paths that an ended run wrote, each with its fingerprint; None where the file has changed since the end."""

    run: int
    seals: Mapping[str, str | None]
    #: The run ended while no engine followed it, so the order of its writes and those of later runs is unknown.
    late: bool = False


@dataclass(frozen=True, slots=True)
class GitDone:
    """A report: the result of a request. `code` and `text` are the asking command's exit status and output."""

    action: int
    request: str | None
    code: int
    text: str
    #: Events to record.
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckAsked:
    """A report: a merge needs these commands run in the sandbox, on a checkout of its result in `folder`."""

    run: int
    folder: str
    commands: tuple[str, ...]


#: Time slice for the fingerprints of one run's files, before the next job of the thread has its turn.
SEALING_S = 0.3
#: Rate limit: seconds per minute that the thread spends on PRs of one agent's runs, because all agents share the thread.
PR_SHARE_S = 5.0


@dataclass(frozen=True, slots=True)
class PrJob:
    """One request. `who` is its author in words, `by` the asking run (None: a person), and `cause` the event of the request."""

    do: str
    action: int
    request: str | None
    who: str
    by: int | None
    cause: int | None
    settings: Pulling
    wish: PrRequest | None = None
    ids: tuple[int, ...] = ()
    method: str = ""
    reason: str = ""
    #: The reason why the engine has refused the request already; else empty.
    refused: str = ""


@dataclass(slots=True)
class _Merge:
    """One PR to be merged, and the request that asked for it."""

    pr: Pr
    job: PrJob
    #: Why the PR is not merged; None: it is merged, or not decided yet.
    failed: str | None = None
    code: int = EXIT_FAILED


class PullRequestWorker:
    """An event source that makes, merges and closes PRs. `ask`, `seal` and `took` are called by the engine's thread and return
    immediately.
    """

    name = "pulls"
    urgent = True

    def __init__(
        self,
        layout: Layout,
        find_secrets: Callable[[str], Iterable[Secret]] | None,
        forges: Mapping[str, Forge],
        busy: Callable[[], Mapping[str, str]],
        trusted: Sequence[str] = (),
    ) -> None:
        """`busy` returns the paths that live runs have written. `trusted`: `[pr] filters`, for the recovery at the start.

        `find_secrets` is None without a plugin for secrets.
        """
        self._trusted = trusted
        self._layout, self._find_secrets, self._forges, self._busy = layout, find_secrets, forges, busy
        self._remover = Remover(layout)
        self._tell: Callable[[list[Any]], None] = lambda _: None
        self._jobs: queue.SimpleQueue[PrJob | Callable[[], None] | None] = queue.SimpleQueue()
        self._merges: queue.SimpleQueue[PrJob | None] = queue.SimpleQueue()
        self._checked: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open = 0
        self._lock = threading.Lock()
        self._ending = False
        self._tidied = threading.Event()
        self._repo: Repo | None = None
        #: The time that each agent's PRs have used.
        self._shares = FairShare()
        #: The run number of the check that a merge waits for.
        self._checking: int | None = None

    # -- the engine's side -----------------------------------------------------------------------------------------

    def start(self, tell: Callable[[list[Any]], None]) -> None:
        """Start the threads; their first job finishes or undoes the merge that the previous engine left."""
        self._tell = tell
        for work in (self._run, self._run_merges):
            thread = threading.Thread(target=work, name=self.name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._put(self._jobs, self._tidy)

    def stop(self) -> None:
        """Stop the threads; the wait is limited. The next engine repeats unfinished jobs."""
        self._ending = True
        # The merge thread may still wait for the first job, which is now skipped.
        self._tidied.set()
        for waiting in (self._jobs, self._merges, self._checked):
            waiting.put(None)
        self._remover.stop()
        for thread in self._threads:
            # A filter of the user may run for minutes. It can be ended: the next engine repeats its job.
            thread.join(STOP_WAIT_S)
        if any(thread.is_alive() for thread in self._threads):
            programs.end_all()

    def is_settled(self) -> bool:
        """Whether no job waits or runs."""
        with self._lock:
            return self._open == 0

    def ask(self, job: PrJob) -> None:
        """Queue a request for its thread."""
        self._put(self._merges if job.do == "merge" else self._jobs, job)

    def seal(self, run: int, finished: float, paths: Sequence[str], *, late: bool = False) -> None:
        """Queue the fingerprints of the paths that an ended run wrote; the result is a `Sealed` report.

        `finished`: the run's end, in seconds since the epoch. A path that was changed later gets no fingerprint.
        `late`: the run ended while no engine followed it.
        """
        self._put(self._jobs, partial(self._seal_more, run, finished, iter(paths), {}, late))

    def _seal_more(
        self, run: int, finished: float, left: Iterator[str], seals: dict[str, str | None], late: bool
    ) -> None:
        """Make fingerprints for `SEALING_S`, then queue the rest behind the other jobs."""
        # A run decides how many files it writes, and must not block the PRs of other agents by that.
        until = time.monotonic() + SEALING_S
        for path, found in self._seals(finished, left):
            seals[path] = found
            if time.monotonic() > until:
                self._put(self._jobs, partial(self._seal_more, run, finished, left, seals, late))
                return
        self._tell([Sealed(run, seals, late)])

    def took(self, message: dict[str, Any]) -> None:
        """Receive a supervisor's message about a check, for the merge thread that waits for it."""
        if message["tell"] in {"ended", "unknown", "busy"}:
            self._checked.put(message)

    def checking(self) -> int | None:
        """The run number of the check that a merge waits for; None without one."""
        return self._checking

    def _put(self, waiting: queue.SimpleQueue[Any], job: PrJob | Callable[[], None]) -> None:
        with self._lock:
            self._open += 1
        waiting.put(job)

    def _seals(self, finished: float, paths: Iterable[str]) -> Iterator[tuple[str, str | None]]:
        for path in paths:
            place = self._layout.root / path
            found = seal(place)
            try:
                # ctime and not mtime, because a program can set the mtime of a file.
                known = place.lstat().st_ctime <= finished
            except OSError:
                known = True
            if found != "other":
                yield path, found if known else None

    # -- opening and closing ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._ending:
                if isinstance(job, PrJob):
                    self._answer(job, self._open_one if job.do == "open" else self._close)
                else:
                    self._quietly(job)
            self._done(1)

    def _done(self, number: int) -> None:
        with self._lock:
            self._open -= number

    def _quietly(self, work: Callable[[], None]) -> None:
        try:
            work()
        except EndingError:
            return  # the next engine repeats it
        except Exception as exc:
            # The thread must live: all later requests depend on it.
            logger.exception("a job of the pull request worker failed", error=str(exc))

    def _answer(self, job: PrJob, work: Callable[[PrJob], GitDone]) -> None:
        try:
            done = work(job)
        except EndingError:
            return  # without a result the action stays pending, and the next engine sends it again
        except (AipassError, OSError) as exc:
            code = exc.exit_code if isinstance(exc, AipassError) else EXIT_FAILED
            done = GitDone(job.action, job.request, code, str(exc), self._failed(job, str(exc), exc))
        except Exception as exc:  # noqa: BLE001 - a bug becomes a report, and the asking command gets an answer
            report = write_report(self._layout.crashes, exc, f"pull requests, {job!r:.500}")
            text = f"a bug in aipass: {type(exc).__name__}: {exc}; the crash report is {report}"
            done = GitDone(job.action, job.request, EXIT_FAILED, text, self._failed(job, text, exc))
        self._tell([done])

    def _failed(self, job: PrJob, reason: str, exc: Exception) -> tuple[Fact, ...]:
        wish = job.wish
        detail: dict[str, Any] = {"reason": reason, "do": job.do, "pr": None, "prs": list(job.ids)}
        if wish is not None:
            detail |= {
                "agent": wish.agent,
                "dispatch": wish.dispatch,
                "plan": wish.plan,
                "phase": wish.phase,
                "title": wish.title,
            }
        detail["nothing"] = isinstance(exc, NothingError)
        return (Fact("pr.failed", "git", ref=None, by=job.by, cause=job.cause, detail=detail),)

    def _open_one(self, job: PrJob) -> GitDone:
        if job.refused:
            raise RefusedError(job.refused)
        assert job.wish is not None
        begun = time.monotonic()
        if job.by is not None and (taken := self._shares.taken(job.wish.agent, begun)) > PR_SHARE_S:
            raise RefusedError(
                f"PRs and commits of {job.wish.agent} have taken {taken:.0f} s within a minute, and other agents are waiting; ask again in a minute, with fewer files"
            )
        try:
            return self._made(job)
        finally:
            now = time.monotonic()
            self._shares.spend(job.wish.agent, now, now - begun)

    def _made(self, job: PrJob) -> GitDone:
        assert job.wish is not None
        repo = self._repository(job.settings.filters)
        records = PrRecords(repo.shared)
        pulls = Pulls(repo, records, self._find_secrets if job.settings.secrets else None)
        what = "commit" if job.wish.draft else "PR"
        with self._lease(repo, job, f"{what} of {job.wish.agent}: {job.wish.title}") as held:
            opened = pulls.open(job.wish, held)
        if opened.pr is None:
            return GitDone(job.action, job.request, 0, opened.told())
        told = opened.told() + self._show(repo, records, job, opened)
        kind = "pr.opened" if opened.new else "pr.updated"
        return GitDone(job.action, job.request, 0, told, (_fact(kind, job, records.get(opened.pr.id)),))

    def _show(self, repo: Repo, records: PrRecords, job: PrJob, opened: OpenedPr) -> str:
        """Publish the PR on the forge, and record its URL. A failure there does not undo the PR; returns lines for the answer."""
        try:
            forge = self._forge(job)
            if forge is None or opened.pr is None:
                return ""
            url = forge.open(repo, opened.pr, job.settings.remote)
        except AipassError as exc:
            return f"\nit could not be published on {job.settings.forge}: {exc}"
        # Not under the lease before: the network may be slow, and all other PRs would wait for it.
        with self._lease(repo, job, f"record the address of PR {opened.pr.id}"):
            records.put(records.get(opened.pr.id).model_copy(update={"url": url}))
        return f"\n{url}" if url else ""

    def _forge(self, job: PrJob) -> Forge | None:
        name = job.settings.forge
        if name == LOCAL:
            return None
        if name not in self._forges:
            raise AipassError(
                f"there is no driver for the forge `{name}`; installed are: {', '.join(sorted(self._forges))}"
            )
        return self._forges[name]

    def _close(self, job: PrJob) -> GitDone:
        repo = self._repository(job.settings.filters)
        records = PrRecords(repo.shared)
        done, facts, code = [], [], 0
        for number in job.ids:
            try:
                pr = records.get(number)
                if pr.state == "closed":
                    done.append(f"PR {number} is closed already")
                    facts.append(_fact("pr.closed", job, pr, reason=pr.reason))
                    continue
                done += self._close_one(repo, records, job, pr)
                facts.append(_fact("pr.closed", job, records.get(number), reason=job.reason))
            except AipassError as exc:
                code = max(code, exc.exit_code)
                done.append(f"PR {number} is not closed: {exc}")
        if code and not facts:
            raise AipassError("\n".join(done))
        return GitDone(job.action, job.request, code, "\n".join(done), tuple(facts))

    def _close_one(self, repo: Repo, records: PrRecords, job: PrJob, pr: Pr) -> list[str]:
        forge = self._forge(job)
        if forge is not None and pr.url is not None and pr.state == "open":
            forge.close(repo, pr, job.settings.remote, job.reason)
        with self._lease(repo, job, f"close PR {pr.id}") as held:
            pr = Merger(repo, records).close(records.get(pr.id), job.reason, held)
        done = [f"PR {pr.id} is closed; its commits stay as {pr.head[:10]}, refs/aipass/pr/{pr.id}"]
        above = [str(other.id) for other in records.open() if pr.id in other.stacked_on]
        if above:
            done.append(f"PR {', '.join(above)} is based on it and cannot be merged without it")
        return done

    # -- merging ---------------------------------------------------------------------------------------------------

    def _run_merges(self) -> None:
        self._tidied.wait()
        while (job := self._merges.get()) is not None:
            jobs = [job]
            # All waiting merges are tested together: one run of the checks instead of one per PR.
            while True:
                try:
                    more = self._merges.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    return
                jobs.append(more)
            if not self._ending:
                self._merge_all(jobs)
            self._done(len(jobs))

    def _merge_all(self, jobs: list[PrJob]) -> None:
        """Merge the PRs of these requests and answer each request, in their order. PRs of one method are tested together."""
        wanted: dict[int, _Merge] = {}
        answered: list[PrJob] = []
        for job in jobs:
            try:
                records = PrRecords(self._repository(job.settings.filters).shared)
                found = {number: _Merge(records.get(number), job) for number in job.ids}
                for number, one in found.items():
                    wanted.setdefault(number, one)
                answered.append(job)
            except (AipassError, OSError) as exc:
                code = exc.exit_code if isinstance(exc, AipassError) else EXIT_FAILED
                self._tell(
                    [GitDone(job.action, job.request, code, str(exc), self._failed(job, str(exc), exc))]
                )
        for like in _alike(list(wanted.values())):
            try:
                self._merge(like)
            except EndingError:
                return
            except (AipassError, OSError) as exc:
                for one in like:
                    one.failed = one.failed or str(exc)
                    one.code = exc.exit_code if isinstance(exc, AipassError) else EXIT_FAILED
            except Exception as exc:  # noqa: BLE001 - a bug becomes a report, and the asking command gets an answer
                report = write_report(self._layout.crashes, exc, f"pull requests, {jobs!r:.500}")
                for one in like:
                    one.failed = (
                        one.failed
                        or f"a bug in aipass: {type(exc).__name__}: {exc}; the crash report is {report}"
                    )
        for job in answered:
            mine = [wanted[number] for number in dict.fromkeys(job.ids)]
            self._answer(job, partial(self._merged, mine))

    def _merged(self, mine: list[_Merge], job: PrJob) -> GitDone:
        records, failed, lines, facts = PrRecords(self._repository(job.settings.filters).shared), [], [], []
        for one in mine:
            pr = records.get(one.pr.id)
            if one.failed is None:
                where = (
                    "on the forge; run `git pull` to get it" if pr.merged is None else f"as {pr.merged[:10]}"
                )
                if one.pr.state == "merged":
                    # By an earlier request; or for this one, by an engine that was killed before it recorded the result.
                    lines.append(f"PR {pr.id} is merged already, {where}")
                else:
                    untested = "" if job.settings.checks else "; nothing was tested: there are no [pr] checks"
                    lines.append(f"PR {pr.id} is merged {where}{untested}")
                facts.append(_fact("pr.merged", job, pr))
            else:
                failed.append(f"PR {pr.id} is not merged: {one.failed}")
                detail = {
                    "reason": one.failed,
                    "do": "merge",
                    "title": pr.title,
                    "agent": pr.agent,
                    "pr": pr.id,
                }
                facts.append(
                    Fact("pr.failed", "git", ref=str(pr.id), by=job.by, cause=job.cause, detail=detail)
                )
        code = max((one.code for one in mine if one.failed is not None), default=0)
        return GitDone(job.action, job.request, code, "\n".join(failed + lines), tuple(facts))

    def _merge(self, wanted: list[_Merge]) -> None:
        """Test and merge the PRs together. Where that fails, bisect: test each half, until the failing PRs are alone."""
        for one in wanted:
            if one.pr.state == "merged":
                continue  # by the previous engine or an earlier request: this request is fulfilled
            if one.pr.state == "closed":
                one.failed = "it was closed"
        waiting = [[one for one in wanted if one.failed is None and one.pr.state == "open"]]
        while waiting:
            together = waiting.pop(0)
            if not together:
                continue
            code = EXIT_FAILED
            try:
                said = self._try(together)
            except (AipassError, OSError) as exc:
                # An error of this half must not end the loop: other halves are merged already and need their answer.
                said, code = str(exc), exc.exit_code if isinstance(exc, AipassError) else EXIT_FAILED
            left = [one for one in together if one.failed is None]
            if said is None or not left:
                continue
            if len(left) == 1:
                left[0].failed, left[0].code = said, code
                continue
            middle = len(left) // 2
            waiting[:0] = [left[:middle], left[middle:]]

    def _try(self, together: list[_Merge]) -> str | None:
        """Merge these PRs if the checks pass on their common result. Returns the reason of a failure, None on success.

        The lease is not held while the checks run; a branch that moves in between makes `apply` raise StaleError.
        """
        job = together[0].job
        repo = self._repository(job.settings.filters)
        records = PrRecords(repo.shared)
        merger, forge = Merger(repo, records), self._forge(job)
        names = ", ".join(f"PR {one.pr.id}" for one in together)
        for attempt in range(MOST_TRIES):
            prs = [records.get(one.pr.id) for one in together if one.failed is None]
            with self._lease(repo, job, f"prepare the merge of {names}"):
                ready = merger.prepare(prs, job.method, job.who)
            for one in together:
                one.failed = ready.refused.get(one.pr.id, one.failed)
            if not ready.prs:
                return None
            if (said := self._check(repo, ready, job)) is not None:
                return said
            if forge is not None:
                self._merge_there(repo, records, forge, job, together, {pr.id: pr for pr in ready.prs})
                return None
            try:
                with self._lease(repo, job, f"merge {names}") as held:
                    inside = {repo.prefix + path: who for path, who in self._busy().items()}
                    merger.apply(ready, held, inside.get)
                return None
            except StaleError as exc:
                # A commit was made during the checks, so their result is out of date.
                if attempt == MOST_TRIES - 1:
                    raise
                logger.info("a merge is prepared and tested again", reason=str(exc))
        return None

    def _merge_there(
        self,
        repo: Repo,
        records: PrRecords,
        forge: Forge,
        job: PrJob,
        together: list[_Merge],
        tested: Mapping[int, Pr],
    ) -> None:
        for one in together:
            if one.failed is None:
                try:
                    forge.merge(repo, tested[one.pr.id], job.settings.remote, job.method)
                except AipassError as exc:
                    one.failed = str(exc)
                    continue
                with self._lease(repo, job, f"note that PR {one.pr.id} is merged") as held:
                    Merger(repo, records).note_merged(records.get(one.pr.id), held)

    def _check(self, repo: Repo, ready: Prepared, job: PrJob) -> str | None:
        """Run `[pr] checks` on a checkout of the merge's result. Returns the reason of a failure, None where all passed."""
        commands = job.settings.checks
        if not commands:
            return None
        folder = repo.scratch / f"checkout-{job.action}-{time.monotonic_ns()}"
        try:
            ready.checkout(repo, folder)
            tries, until = 0, time.monotonic() + BUSY_WAIT_S
            while tries < START_TRIES:
                own = self._next_check(job.action, [pr.id for pr in ready.prs])
                message = self._run_check(CheckAsked(MERGES + int(own.name), str(folder), commands))
                merge_checks.end(own)
                if message["tell"] == "ended" and message["outcome"] not in INTERRUPTED:
                    break
                # A supervisor is busy while the check of a killed engine is still ending. That costs no attempt at first.
                tries += message["tell"] != "busy" or time.monotonic() >= until
                time.sleep(START_PAUSE_S)
            else:
                return "its checks could not be started, or were ended from outside; `aipass doctor` may show the reason"
        finally:
            self._remover.remove(folder)
        if message["outcome"] == "exited" and message.get("exit") == 0:
            return None
        why = message.get("reason") or f"status {message.get('exit')}"
        if message["outcome"] != "exited":
            return f"its checks did not end by themselves ({why})"
        which = textwrap.shorten(
            merge_checks.reached(own / wire.STDOUT, commands), NAMED_CHARS, placeholder="…"
        )
        return f"its check `{which}` failed ({why}); the output is in {(own / wire.STDOUT).relative_to(self._layout.root)}"

    def _run_check(self, asked: CheckAsked) -> dict[str, Any]:
        """Ask the engine to run a check, and wait for the supervisor's last message. Raises EndingError where the engine stops."""
        self._checking = asked.run
        self._tell([asked])
        try:
            while (message := self._checked.get()) is not None:
                # A late message of an earlier check is not the answer.
                if message.get("run") == asked.run:
                    return message
            raise EndingError
        finally:
            self._checking = None

    def _next_check(self, action: int, prs: Sequence[int]) -> Path:
        """Make a folder that no check has used: a check from before a crash may still write into its own."""
        # 1000 numbers for each action, so that a later action's checks have higher numbers (`merge_checks.now`).
        number = action * 1000
        while (folder := self._layout.run(MERGES + number)).exists():
            number += 1
        merge_checks.begin(folder, prs)
        return folder

    # -- both ------------------------------------------------------------------------------------------------------

    def _repository(self, trusted: Sequence[str]) -> Repo:
        if self._repo is None or not self._repo.own.exists():
            self._repo = Repo(self._layout.root, self._layout.state / "git")
        self._repo.look_again(trusted)
        return self._repo

    @contextmanager
    def _lease(self, repo: Repo, job: PrJob, reason: str) -> Iterator[Held]:
        detail: dict[str, Any] = {"holder": job.who, "reason": reason, "pid": os.getpid()}
        with Lease(repo.shared).hold(job.who, reason, ending=lambda: self._ending) as held:
            self._tell([Fact("lease.taken", "git", ref="git", by=job.by, cause=job.cause, detail=detail)])
            try:
                # Another root of the same working tree may have left an interrupted merge.
                Merger(repo, PrRecords(repo.shared)).recover()
                yield held
            finally:
                self._tell(
                    [Fact("lease.released", "git", ref="git", by=job.by, cause=job.cause, detail=detail)]
                )

    def _tidy(self) -> None:
        try:
            if (self._layout.state / "git").exists():
                self._clear()
        finally:
            self._tidied.set()

    def _clear(self) -> None:
        """Finish or undo the merge that the previous engine left, and remove its scratch files."""
        repo = self._repository(self._trusted)
        with Lease(repo.shared).hold("aipass", "tidy up"):
            Merger(repo, PrRecords(repo.shared)).recover()
            for path in repo.scratch.iterdir():
                self._remover.remove(path)


def _alike(wanted: list[_Merge]) -> Iterator[list[_Merge]]:
    """Group neighbours with the same method and settings, and keep the order."""
    group: list[_Merge] = []
    for one in wanted:
        if group and (one.job.method, one.job.settings) != (group[0].job.method, group[0].job.settings):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _fact(kind: str, job: PrJob, pr: Pr, **more: object) -> Fact:
    detail = {
        "pr": pr.id,
        "agent": pr.agent,
        "title": pr.title,
        "subject": pr.title,
        "sha": pr.merged or pr.head,
        "head": pr.head,
        "base": pr.base,
        "branch": (pr.branch or "").removeprefix("refs/heads/") or None,
        "paths": [printable(path) for path in pr.paths[:1000]],
        "dispatch": pr.dispatch,
        "plan": pr.plan,
        "phase": pr.phase,
        **more,
    }
    return Fact(kind, "git", ref=str(pr.id), by=job.by, cause=job.cause, detail=detail)
