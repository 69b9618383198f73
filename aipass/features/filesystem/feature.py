"""The filesystem feature: turns observed changes of the tree into facts, each with the run that made it."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from aipass.config import reading
from aipass.errors import ConfigError
from aipass.event import Fact, printable
from aipass.features.filesystem import status
from aipass.features.ownership.feature import OwnershipFeature
from aipass.sources.filesystem import Filesystem
from aipass.sources.ignore import IgnoreRules
from aipass.sources.known import Known
from aipass.sources.observation import Gone, Limited, Listing, Moved, ScanEnd, Seen, Touched, Unused
from aipass.text.units import count
from aipass.workspace.layout import CONFIG_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.clock import Instant
    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.sources.observation import Observation

#: The number of notices about .gitignore files within that many seconds, and then one that there are more: an agent that
#: writes such files in a loop must not flood a person's notices.
MOST_OF_RULES, RULES_S = 5, 3600.0


class FilesystemFeature:
    """The feature object that other features get by `core.need(FilesystemFeature)`."""

    name = "filesystem"

    def setup(self, core: Core) -> None:
        """Register the filesystem source, its reports and the fact filters.

        Needs OwnershipFeature, for the author of a change.
        """
        self._core, self._ledger = core, core.ledger
        self._ownership = core.need(OwnershipFeature)
        self.known = Known(core.ledger, self._ownership.authors)
        self._filesystem = self._watch() if core.observes else None
        #: Called, in the thread of the source, when the tree becomes a git repository.
        self.when_git_comes: list[Callable[[], None]] = []
        #: The times of the last notices about .gitignore files, on the monotonic clock.
        self._told_of_rules: deque[float] = deque()
        self._is_watching = False
        core.provide(self)
        for kind in (Seen, Gone, Moved, Listing, ScanEnd, Touched, Limited, Unused):
            core.add_report(kind, self._take)  # type: ignore[arg-type]
        core.add_fact_filter(("file.*",), self._with_author)
        core.add_fact_filter(("watch.unused",), self._unused)
        core.add_fact_filter(("watch.hidden",), self._hidden)
        core.add_fact_filter(("watch.limited",), self._limited)
        core.add_look_again(self.look_again)
        if self._filesystem is not None:
            core.add_source(self._filesystem, last=True)
        core.add_memory(self._load)
        core.add_start(start=self._start, ready=self._ready)
        core.add_reconfigure(after=self._reconfigured)
        core.add_status("filesystem", partial(status.gather, core.layout), status.show)

    def _watch(self) -> Filesystem:
        last = self._ledger.one("last_events", {"kind": None, "limit": 1})
        return Filesystem(
            self._core.layout.root,
            self._core.config().watch.ignore,
            baseline=self._ledger.meta("baseline") is None,
            since=0.0 if last is None else last["time"],
            git_came=self._git_came,
        )

    def _git_came(self) -> None:
        for call in self.when_git_comes:
            call()

    def scan(self, step: Step, folder: str) -> None:
        """Request a scan of a folder after the commit; does nothing before the source has started."""
        if self._filesystem is not None and self._is_watching:
            step.effects.append(partial(self._filesystem.scan, folder, "asked"))

    def look_again(self, step: Step) -> None:
        """Report all files of the inbox again: one that was rejected, or met a disabled handler, may be valid now."""
        self.known.forget("inbox")
        self.scan(step, "inbox")

    def _start(self, step: Step) -> None:
        del step
        # The limit of an earlier engine, such as the number of inotify watches, may be raised by now; a new one is reported.
        self._ledger.run("set_meta", {"key": "watch.limited", "value": ""})

    def _ready(self) -> None:
        self._is_watching = True

    def _load(self, now: Instant) -> None:
        del now
        self.known.forget_told()

    def _reconfigured(self, now: Instant) -> None:
        del now
        if self._filesystem is not None:
            self._filesystem.reconfigure(self._core.config().watch.ignore)

    # -- what is seen ----------------------------------------------------------------------------------------------

    def _take(self, step: Step, report: Observation) -> None:
        # The first complete scan of a root is its baseline: files from before aipass are no events.
        if isinstance(report, ScanEnd) and report.reason == "start" and not report.top:
            self._ledger.run("set_meta", {"key": "baseline", "value": "1"})
            if not self._is_in_force():
                # aipass.toml was saved between the engine's read and the scan (race), so the scan saw no change of it.
                step.facts.append(Fact("file.closed", "filesystem", path=CONFIG_NAME))
        # Before the facts: the journal has the line of a write before the kernel reports the change.
        self._ownership.read_journals(step)
        step.facts.extend(self.known.settle(report))

    def _is_in_force(self) -> bool:
        try:
            return reading.load(self._core.layout.config) == self._core.config()
        except ConfigError:
            return False

    def _with_author(self, step: Step, fact: Fact) -> Fact:
        """Add the run that made the change to a fact of the filesystem, if a run did."""
        del step
        if fact.path is None or fact.source != "filesystem" or fact.by is not None:
            return fact
        run = self._ownership.author(fact.path)
        return fact if run is None else replace(fact, by=run)

    # -- what limits the view --------------------------------------------------------------------------------------

    def _unused(self, step: Step, fact: Fact) -> Fact:
        text = f"{printable(fact.path)} is not used as an ignore file: {fact.detail['reason']}"
        self._notify_of_rules(step, text)
        return fact

    def _hidden(self, step: Step, fact: Fact) -> Fact:
        found = IgnoreRules(self._core.layout.root, self._core.config().watch.ignore).hider(str(fact.path))
        fact = replace(fact, by=None if found is None else self._ownership.authors.by(found))
        # A person's own change of a .gitignore needs no notice.
        if fact.by is not None:
            files = count(fact.detail["files"], "file")
            text = f"a .gitignore of run {fact.by} hides {files} that were watched, the first {printable(fact.path)}; `aipass why PATH` shows who wrote it"
            self._notify_of_rules(step, text)
        return fact

    def _limited(self, step: Step, fact: Fact) -> Fact:
        about = fact.detail
        self._ledger.run("set_meta", {"key": "watch.limited", "value": json.dumps(about)})
        text = f"{about['limit']} is reached: {about['polled']} folders are polled, not watched; {about['remedy']}"
        step.notify(self._ledger, text)
        return fact

    def _notify_of_rules(self, step: Step, text: str) -> None:
        """Give a notice about .gitignore files, at most MOST_OF_RULES within RULES_S; every case is an event as well."""
        now = step.now.mono
        while self._told_of_rules and self._told_of_rules[0] < now - RULES_S:
            self._told_of_rules.popleft()
        if len(self._told_of_rules) < MOST_OF_RULES:
            step.notify(self._ledger, text)
        elif len(self._told_of_rules) == MOST_OF_RULES:
            step.notify(
                self._ledger,
                "there are more problems with .gitignore files; `aipass events --kind 'watch.*'` lists them",
            )
        if len(self._told_of_rules) <= MOST_OF_RULES:
            self._told_of_rules.append(now)
