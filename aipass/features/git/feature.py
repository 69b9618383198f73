"""The git feature: turns changes of git references into events, and agents' contributions into pull requests."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aipass.action import ClosePr, MergePr, OpenPr
from aipass.features.dispatch.feature import DispatchFeature
from aipass.features.filesystem.feature import FilesystemFeature
from aipass.features.git import status
from aipass.features.git.contributions import Contributions
from aipass.features.git.forge import Forges
from aipass.features.git.pr_worker import CheckAsked, GitDone, PullRequestWorker, Sealed
from aipass.features.git.requests import VERBS
from aipass.features.git.source import Git
from aipass.features.ownership.attribution import writers_of
from aipass.features.ownership.feature import OwnershipFeature
from aipass.git.exclude import exclude
from aipass.git.ref_changes import GitSeen, RefTracker
from aipass.text.secret import Secrets
from aipass.workspace.layout import MERGES

if TYPE_CHECKING:
    from aipass.core.registry import Core
    from aipass.core.step import Step


class GitFeature:
    """The feature; other features reach `contributions` through `core.need(GitFeature)`."""

    name = "git"
    verbs = VERBS
    policy = ("prs",)

    def setup(self, core: Core) -> None:
        """Add the PR actions, effects, verbs and reports, the git source, the pull request worker, and the status lines.

        Needs dispatch (its launcher runs merge checks), ownership (write attribution), filesystem, forges and secrets.
        """
        self._core = core
        dispatching, self._refs = core.need(DispatchFeature), RefTracker(core.ledger)
        worker = self._worker() if core.works else None
        self.contributions = Contributions(core, dispatching.launcher, core.need(OwnershipFeature), worker)
        core.provide(self)
        core.add_action(OpenPr, self.contributions.open)
        core.add_action(MergePr, self.contributions.merge)
        core.add_action(ClosePr, self.contributions.close)
        core.add_effect("git.open", self.contributions.make)
        core.add_effect("git.merge", partial(self.contributions.ask, "merge"))
        core.add_effect("git.close", partial(self.contributions.ask, "close"))
        for verb in self.verbs:
            core.add_verb(verb)
        core.add_report(GitSeen, self._seen)
        core.add_report(GitDone, self.contributions.take)
        core.add_report(Sealed, self.contributions.sealed)
        core.add_report(CheckAsked, self.contributions.check)
        core.add_run_hook(self.contributions)
        core.add_start(ready=self.contributions.start)
        # Merge checks have their own range of run numbers, so a supervisor's message about one comes back here.
        dispatching.add_numbers(MERGES, self.contributions.take_check)
        if core.observes:
            git = self._source()
            core.add_source(git)
            # The git source watches folders inside `.git`. Only the filesystem source sees a new `.git` appear.
            core.need(FilesystemFeature).when_git_comes.append(git.again)
        # The worker is a source as well: its results enter the engine through the queue that all sources share.
        if worker is not None:
            core.add_source(worker)
        core.add_status("git", partial(status.gather, core.layout), status.show)
        core.add_prune(partial(core.remover.prune, core.layout.merges))

    def _seen(self, step: Step, report: GitSeen) -> None:
        step.facts.extend(self._refs.settle(report))

    def _worker(self) -> PullRequestWorker:
        core, forges = self._core, self._core.need(Forges)
        writers = partial(writers_of, core.layout)
        return PullRequestWorker(
            core.layout, core.need(Secrets).find, forges.by_name, writers, core.config().pr.filters
        )

    def _source(self) -> Git:
        core = self._core
        # The two callables read the configuration when git changes, not now: it may be reloaded while the engine runs.
        return Git(
            core.layout.root,
            core.layout.spool,
            lambda: any(rule.rebased for rule in core.config().on),
            baseline=core.ledger.meta("git.baseline") is None,
            came=partial(exclude, core.layout),
        )
