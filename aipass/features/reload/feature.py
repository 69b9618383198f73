"""The reload feature: reads aipass.toml again when it changes, and puts it in force if every feature accepts it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from aipass.action import Reload
from aipass.config import reading
from aipass.config.quick import IN_FORCE
from aipass.core.requests import answer
from aipass.core.step import Applied, Done, Effect
from aipass.errors import ConfigError, PluginError
from aipass.event import Fact
from aipass.features.ownership import advice, confine
from aipass.features.reload import status
from aipass.features.reload.held_back import hold_back
from aipass.features.reload.requests import VERBS
from aipass.workspace.layout import CONFIG_NAME

if TYPE_CHECKING:
    from aipass.config.model import Config
    from aipass.core.registry import Core
    from aipass.core.step import Pending, Step
    from aipass.event import Event

ABOUT_CONFIG = f"config {CONFIG_NAME}"


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The report of a read: the new configuration or the error.

    `trusted`: a person asked for it, so no change is held back.
    """

    action: int
    request: str | None
    config: Config | None = None
    trusted: bool = False
    error: str | None = None


class ReloadFeature:
    """Puts a changed configuration in force. Without a person's request, changes that could start other programs wait."""

    name = "reload"
    verbs = VERBS
    policy = ("configuration",)

    def setup(self, core: Core) -> None:
        """Register the action `Reload`, its effect and report, and the verb.

        Other features join in by `core.add_reconfigure`.
        """
        self._core, self._ledger = core, core.ledger
        core.add_action(Reload, self._reload)
        core.add_effect("reload.read", self._read)
        core.add_report(Reloaded, self._reloaded)
        for verb in self.verbs:
            core.add_verb(verb)
        core.add_start(start=self._start)
        core.add_status("reload", partial(status.gather, core.layout), status.show)

    def _start(self, step: Step) -> None:
        # An engine starts with the complete file, so what the last engine noted about it is outdated.
        for key, value in (("config.waiting", "[]"), ("config.error", "")):
            self._ledger.run("set_meta", {"key": key, "value": value})
        step.withdraw(self._ledger, ABOUT_CONFIG)

    def _reload(self, step: Step, event: Event, action: Reload) -> Applied:
        del step, event
        return Applied("to be read", effect=Effect("reload.read", asdict(action)))

    def _read(self, pending: Pending) -> None:
        """Read and check the file after the commit, and post the result as a report for the next step."""
        # The checks ask git and the filesystem, which must not happen inside the transaction.
        action, path = Reload(**pending.arguments), self._core.layout.config
        try:
            new = reading.load(path)
            for check in self._core.config_checks:
                check(new)
            self._core.router_of(new)
        except (ConfigError, PluginError) as exc:
            self._core.post(Reloaded(pending.action, action.request, error=str(exc)))
            return
        self._core.post(Reloaded(pending.action, action.request, new, action.trusted))

    def _reloaded(self, step: Step, read: Reloaded) -> None:
        self._ledger.run("set_meta", {"key": "config.error", "value": read.error or ""})
        if read.config is None:
            self._refused(step, read)
            return
        # Compared with the configuration in force now, not with that of the request: a person's reload may come in the
        # same step.
        before, new = self._core.config(), read.config
        waiting: list[str] = []
        if not read.trusted:
            new, waiting = hold_back(before, new)
        outcome = "taken over" + (f"; waiting for `aipass reload`: {', '.join(waiting)}" if waiting else "")
        self._ledger.run("set_meta", {"key": "config.waiting", "value": json.dumps(waiting)})
        step.withdraw(self._ledger, ABOUT_CONFIG)
        shared = advice.owned_twice(new)
        for key, value in (("config.shared", shared), (IN_FORCE, new.drivers())):
            self._ledger.run("set_meta", {"key": key, "value": json.dumps(value)})
        self._core.settle(step, read.action, Done(outcome))
        told = advice.of(self._core.layout, new)
        if later := confine.after_restart(before, new):
            told.append(
                f"the engine itself can write {' and '.join(later)} only after a restart: `aipass down`, then `aipass up --detach`"
            )
        answer(self._ledger, read.request, 0, "; but ".join((f"aipass.toml is {outcome}", *told)))
        step.facts.append(Fact("config.changed", "engine", path=CONFIG_NAME, detail={"waiting": waiting}))
        if new != before:
            self._core.take_over(new)
            for during, _ in self._core.reconfigures:
                during(step)
            # After the commit only: a failed commit must leave the old configuration in force. Each call is separate,
            # so that an error in one feature does not prevent the others.
            step.before.append(self._route)
            step.before += [partial(after, step.now) for _, after in self._core.reconfigures]
            # Files that were rejected, for example in the folder of an unknown agent, may be valid now.
            self._core.look_again(step)

    def _refused(self, step: Step, read: Reloaded) -> None:
        error = str(read.error)
        outcome = f"aipass.toml is not valid and the old one stays in force: {error}"
        done = Done(outcome, failed=True, request=read.request, about=ABOUT_CONFIG)
        self._core.settle(step, read.action, done)
        answer(self._ledger, read.request, 2, error)
        step.facts.append(Fact("config.rejected", "engine", path=CONFIG_NAME, detail={"error": error}))

    def _route(self) -> None:
        self._core.route(self._core.router_of(self._core.config()))
