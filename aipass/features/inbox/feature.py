"""The inbox: what a dropped file is, as its event carries it, and the note beside one that cannot be used."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aipass.action import Reject
from aipass.core.step import Applied, Done, Effect
from aipass.errors import ConfigError
from aipass.features.filesystem.feature import FilesystemFeature
from aipass.features.inbox import files, intake, status

if TYPE_CHECKING:
    from aipass.clock import Instant
    from aipass.config.model import Config
    from aipass.core.registry import Core
    from aipass.core.step import Pending, Step
    from aipass.event import Event, Fact
    from aipass.workspace.layout import Layout


class InboxFeature:
    """The feature."""

    name = "inbox"
    policy = ("inbox",)

    def setup(self, core: Core) -> None:
        """All of it."""
        self._core, self._files = core, core.need(FilesystemFeature)
        core.add_action(Reject, self._reject)
        core.add_effect("inbox.reject", self._tell_beside)
        core.add_fact_filter(("file.*",), self._look_into)
        core.add_reconfigure(after=self._reconfigured)
        core.add_status("inbox", partial(status.gather, core.layout), status.show)

    def _reject(self, step: Step, event: Event, action: Reject) -> Applied:
        del step, event
        about = {"path": action.path, "reason": action.reason, "remedy": action.remedy}
        return Applied(action.reason, effect=Effect("inbox.reject", about))

    def _tell_beside(self, pending: Pending) -> Done:
        path, reason, remedy = (pending.arguments[name] for name in ("path", "reason", "remedy"))
        try:
            return Done(files.reject(self._core.layout, path, reason, remedy))
        except OSError as exc:
            return Done(f"{path}: {reason}; the note beside it cannot be written: {exc}", failed=True)

    def _look_into(self, step: Step, fact: Fact) -> Fact:
        """A fact of the inbox with what must be known of its file now: its text, its type."""
        if not intake.is_inbox(fact.path) or fact.source != "filesystem":
            return fact
        if fact.kind == "file.deleted" and (other := intake.waits_for(str(fact.path))) is not None:
            # What it stood beside is finished; it is seen anew.
            self._files.known.forget_file(other)
            self._files.scan(step, other.rpartition("/")[0])
        found = intake.look_into(self._core.layout.root, fact, self._core.config().inbox.max_size)
        if found.detail.get("writing"):
            self._files.known.forget_file(str(fact.path))  # its next close is told, whatever it is then
        return found

    def _reconfigured(self, now: Instant) -> None:
        del now
        make_inboxes(self._core.layout, self._core.config())


def make_inboxes(layout: Layout, config: Config) -> None:
    """`inbox/<agent>/` for every agent; raises ConfigError where one cannot be made."""
    try:
        for folder in (layout.inbox, *(layout.inbox / name for name in config.agents)):
            folder.mkdir(parents=True, exist_ok=True)
            if folder.is_symlink():
                raise ConfigError(
                    f"{folder}: is a symbolic link, and nobody watches what lies behind one; make it a folder"
                )
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename}: the inbox cannot be made ({exc.strerror}); move away what is in its place"
        ) from exc
