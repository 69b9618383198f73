"""The inbox feature: adds the content of a dropped file to its event, and writes a note beside a file that cannot be used."""

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
    """Registers the action `Reject` and the filter that reads inbox files.

    The policy `inbox` decides what becomes a dispatch.
    """

    name = "inbox"
    policy = ("inbox",)

    def setup(self, core: Core) -> None:
        """Register the action, its effect and the filter of file facts.

        Needs FilesystemFeature, to have files seen again.
        """
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
        """Add the type, size, hash and text of an inbox file to its fact; other facts are returned unchanged.

        The content is read before the event is stored: handlers decide from the event alone, also after a restart.
        """
        if not intake.is_inbox(fact.path) or fact.source != "filesystem":
            return fact
        if fact.kind == "file.deleted" and (other := intake.waits_for(str(fact.path))) is not None:
            # The control file of a download is gone, so the download beside it is complete: report it again.
            self._files.known.forget_file(other)
            self._files.scan(step, other.rpartition("/")[0])
        found = intake.look_into(self._core.layout.root, fact, self._core.config().inbox.max_size)
        if found.detail.get("writing"):
            # Another process still writes the file. Its next close must be an event, even if the content is the same by
            # then.
            self._files.known.forget_file(str(fact.path))
        return found

    def _reconfigured(self, now: Instant) -> None:
        del now
        make_inboxes(self._core.layout, self._core.config())


def make_inboxes(layout: Layout, config: Config) -> None:
    """Create `inbox/<agent>/` for every agent; raises ConfigError if a folder cannot be created or is a symbolic link."""
    try:
        for folder in (layout.inbox, *(layout.inbox / name for name in config.agents)):
            folder.mkdir(parents=True, exist_ok=True)
            if folder.is_symlink():
                raise ConfigError(
                    f"{folder}: is a symbolic link, and aipass does not watch the target of a link; replace it with a folder"
                )
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename}: the inbox folder cannot be created ({exc.strerror}); move away the file of that name"
        ) from exc
