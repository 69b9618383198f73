"""The dispatch (job) feature: registers the queue, the runs and the answers in the engine, and offers them to other features."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from aipass.action import Cancel, Deliver, Dispatch, Pause, Reject, Resume, Retry
from aipass.core.requests import answer
from aipass.core.step import Applied, Done, Effect
from aipass.errors import EXIT_REFUSED
from aipass.event import Fact
from aipass.features.dispatch import status
from aipass.features.dispatch.dispatcher import Dispatcher
from aipass.features.dispatch.drivers import Drivers
from aipass.features.dispatch.handed_in import take
from aipass.features.dispatch.launcher import Launcher
from aipass.features.dispatch.outbox import Outbox
from aipass.features.dispatch.rate import HOUR_S, Hourly
from aipass.features.dispatch.requests import VERBS
from aipass.features.dispatch.runs import Runs
from aipass.features.dispatch.views import Views
from aipass.features.ownership.feature import OwnershipFeature
from aipass.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from aipass.clock import Instant
    from aipass.core.registry import Core
    from aipass.core.step import Pending, Step
    from aipass.event import Event
    from aipass.features.dispatch.dispatcher import Submitted
    from aipass.features.dispatch.hook import DispatchHook
    from aipass.features.dispatch.launcher import Runner

HANDLER = "handler"


class DispatchFeature:
    """The feature object that other features get by `core.need(DispatchFeature)`."""

    name = "dispatch"
    verbs = VERBS
    policy = ("answers",)

    def setup(self, core: Core) -> None:
        """Register actions, effects, verbs, views, timers and the runs source. Needs Drivers and OwnershipFeature."""
        self._core, self._ledger = core, core.ledger
        self._hooks: list[DispatchHook] = []
        drivers = core.need(Drivers).by_name
        self._runner: Runner = core.need(Drivers).runner
        self.dispatcher = Dispatcher(core)
        self.launcher = Launcher(core, self._runner, drivers, self._hooks)
        self.outbox = Outbox(core)
        self.runs = Runs(core, self.dispatcher, self.launcher, drivers)
        #: How often each handler has asked for a dispatch.
        self._fired = Hourly()
        core.provide(self)
        core.switch = self
        ownership = core.need(OwnershipFeature)
        ownership.add_listener(self.launcher.set_territory)
        # The engine writes the answers, but their cause is a run: so a rule on `outbox/` continues that run's chain (hops).
        ownership.add_authors(lambda path: self.outbox.answered(path) if path.startswith("outbox/") else None)
        for kind, apply in (
            (Dispatch, self._dispatch),
            (Cancel, self._cancel),
            (Retry, self._retry),
            (Pause, self._pause),
            (Resume, self._resume),
            (Deliver, self._deliver),
        ):
            core.add_action(kind, apply)  # type: ignore[arg-type]
        core.add_effect("inbox.take", self._take, self._taken)
        core.add_effect("outbox.deliver", self.outbox.deliver, self.outbox.delivered)
        for verb in self.verbs:
            core.add_verb(verb)
        Views(core, self.dispatcher, self._fired).add()
        core.add_memory(self._load)
        core.add_step(end=self.runs.choose)
        core.add_start(start=self._start, ready=self.runs.adopt_all)
        core.add_reconfigure(self._reconfigure)
        core.add_prune(self.launcher.prune)
        # A run that locks the ledger's file would stop the engine; only a supervisor can find and end such a process.
        core.add_locked(self._runner.end_lockers)
        # The scripted runner of tests is not a source and has no supervisors to end.
        if isinstance(self._runner, Source):
            core.add_source(self._runner, never_waits=True)
        if hasattr(self._runner, "end"):
            core.add_gone(self._runner.end)
        core.add_status("dispatch", partial(status.gather, core.layout), status.show)

    # -- for other features --------------------------------------------------------------------------------------------

    def add_hook(self, hook: DispatchHook) -> None:
        """Add a hook that may refuse dispatches and observes them.

        Hooks are called in the order in which they were added.
        """
        self._hooks.append(hook)

    def add_numbers(self, first: int, take: Callable[[Step, dict[str, Any]], None]) -> None:
        """Pass supervisor messages about ids from `first` on to another feature, up to the next registered `first`."""
        self.runs.add_numbers(first, take)

    def cancel(self, step: Step, dispatch: int, reason: str, cause: int | None) -> Submitted:
        """Cancel a dispatch: a waiting one immediately, a running one when its run has stopped.

        `cause`: the event, for its facts.
        """
        done, run = self.dispatcher.cancel(dispatch, reason, step.now)
        if run is not None:
            step.effects.append(partial(self.launcher.stop, run, "cancelled", reason))
        elif not done.exit_code:
            step.facts.append(self.dispatcher.finished(dispatch, cause=cause))
        return done

    # -- which handlers are disabled -------------------------------------------------------------------------------

    def why(self, handler: str) -> str | None:
        """The reason why a handler is disabled; None if it is not."""
        return self.dispatcher.pauses.why(HANDLER, handler)

    def disable(self, handler: str, reason: str, now: Instant) -> bool:
        """Skip a handler from now on; returns False if it was disabled already."""
        return self.dispatcher.pauses.add(HANDLER, handler, reason, now)

    # -- actions ---------------------------------------------------------------------------------------------------

    def _dispatch(self, step: Step, event: Event, action: Dispatch) -> Applied:
        for hook in self._hooks:
            if (why := hook.refuses(step, event, action)) is not None:
                answer(self._ledger, action.request, EXIT_REFUSED, why)
                return Applied(why, failed=True)
        hops = next((found for hook in self._hooks if (found := hook.hops(event, action)) is not None), None)
        done = self.dispatcher.submit(event, step.handler, action, step.now, hops)
        answer(self._ledger, action.request, done.exit_code, done.text, done.dispatch)
        if done.dispatch is None:
            for hook in self._hooks:
                hook.refused(step, event, action, done.text)
            # The sender of a dropped file sees no reply; the note beside the file is the reply.
            if action.file is not None:
                reject = Reject(action.file, done.text, "`aipass why` shows the chain that led here")
                self._core.execute(step, event, reject)
            return Applied(done.text, failed=True)
        self._fired.add(step.handler, step.now.mono)
        for hook in self._hooks:
            hook.submitted(step, event, action, done.dispatch)
        if action.file is None:
            return Applied(done.text)
        about = {"file": action.file, "identity": action.identity, "sender": action.sender}
        about |= {"stem": action.stem, "outcome": done.text}
        # A run that starts in this step reads the file by its new path, so the move comes first. A prompt is in the ledger.
        return Applied(
            done.text, effect=Effect("inbox.take", about), before_starts="text" not in event.detail
        )

    def _cancel(self, step: Step, event: Event, action: Cancel) -> Applied:
        done = self.cancel(step, action.dispatch, action.reason, event.id)
        answer(self._ledger, action.request, done.exit_code, done.text, done.dispatch)
        return Applied(done.text, bool(done.exit_code))

    def _retry(self, step: Step, event: Event, action: Retry) -> Applied:
        del event
        done = self.dispatcher.retry(action.dispatch)
        if done.dispatch is not None:
            for hook in self._hooks:
                hook.retried(step, done.dispatch)
        answer(self._ledger, action.request, done.exit_code, done.text, done.dispatch)
        return Applied(done.text, bool(done.exit_code))

    def _pause(self, step: Step, event: Event, action: Pause) -> Applied:
        is_news = self.dispatcher.pauses.add(action.kind, action.name, action.reason, step.now)
        if is_news and action.kind == "rule":
            detail = {"reason": action.reason}
            step.facts.append(Fact("rule.paused", "engine", ref=action.name, cause=event.id, detail=detail))
        return Applied(f"paused: {action.reason}")

    def _resume(self, step: Step, event: Event, action: Resume) -> Applied:
        del event
        # Inbox files that a disabled handler skipped get a second chance.
        if self.dispatcher.pauses.why(HANDLER, action.name) is not None:
            self._core.look_again(step)
        found = self.dispatcher.resume(action.name)
        for kind in found:
            step.withdraw(self._ledger, f"{kind} {action.name}")
        if "rule" in found:
            # The rule was paused because it fired too often. Its hourly count starts at 0, else it would be paused
            # again immediately; the time in the ledger repeats that after a restart.
            self._fired.forget(f"rule {action.name}")
            self._ledger.run("set_meta", {"key": f"resumed.rule {action.name}", "value": str(step.now.wall)})
        if "driver" in found:
            step.facts.append(Fact("driver.resumed", "engine", ref=action.name))
        text = f"nothing named `{action.name}` is paused; `aipass status` shows what is"
        text = f"{action.name} is resumed" if found else text
        answer(self._ledger, action.request, 0 if found else 1, text)
        return Applied(text, not found)

    def _deliver(self, step: Step, event: Event, action: Deliver) -> Applied:
        del step, event
        return Applied("to be delivered", effect=Effect("outbox.deliver", {"dispatch": action.dispatch}))

    # -- files that were handed in ---------------------------------------------------------------------------------

    def _take(self, pending: Pending) -> Done | None:
        about = pending.arguments
        asked = {"event": pending.event, "sender": about["sender"], "stem": about["stem"]}
        found = self._ledger.one("dispatch_of_sender", asked)
        if found is None:
            return None
        outcome = about.get("outcome") or f"dispatch {found['dispatch']}"
        try:
            kept = take(
                self._core.layout,
                self._ledger,
                pending.event,
                found["dispatch"],
                about["file"],
                about["identity"],
            )
        except OSError as exc:
            return Done(
                f"{outcome}; {about['file']} could not be moved and stays where it is: {exc}", failed=True
            )
        if kept != "kept":
            return Done(f"{outcome}; {kept}")
        return Done(outcome, detail={"taken": [about["file"], about["identity"]]})

    def _taken(self, step: Step, pending: Pending, done: Done) -> None:
        """Forget a file that was moved out of the inbox.

        A new file of the same name, even an identical one, is a new event.
        """
        del step, pending
        if "taken" not in done.detail:
            return
        path, identity = done.detail["taken"]
        folder, _, name = os.fsencode(path).rpartition(b"/")
        row = self._ledger.one("file", (folder, name))
        # Only if no newer file has taken the name in the meantime.
        if row is not None and f"{row['ino']}:{row['size']}:{row['mtime']}" == identity:
            self._ledger.run("drop_file", (folder, name))

    # -- the engine's life -----------------------------------------------------------------------------------------

    def _start(self, step: Step) -> None:
        for row in self._ledger.all("pauses"):
            # A handler is disabled after repeated errors in its code, and a new engine may have loaded repaired code.
            if row["kind"] == HANDLER:
                self._ledger.run("drop_pause", {"name": row["name"], "kind": HANDLER})
                self._core.look_again(step)
        self.dispatcher.pauses.load(step.now)
        self.dispatcher.reconfigure()

    def _reconfigure(self, step: Step) -> None:
        for agent, blocked in self.dispatcher.reconfigure().items():
            numbers = ", ".join(map(str, blocked))
            step.notify(
                self._ledger,
                f"`{agent}` is not configured any more, and its dispatches wait: {numbers}; configure it again, or cancel them",
            )

    def _load(self, now: Instant) -> None:
        self.dispatcher.load(now)
        self._fired.clear()
        for row in self._ledger.all("firings_since", {"since": now.wall - HOUR_S}):
            # Firings from before a person resumed the rule do not count.
            if row["time"] <= float(self._ledger.meta(f"resumed.{row['handler']}") or 0):
                continue
            self._fired.add(row["handler"], now.mono - max(0.0, now.wall - row["time"]))
