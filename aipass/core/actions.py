"""The feature with the actions of the core: do nothing for a reason, answer a request, record a notice (notification)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.action import Ignore, Notify, Refuse, Reply
from aipass.core.requests import answer
from aipass.core.step import Applied

if TYPE_CHECKING:
    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.event import Event


class Actions:
    """Adds `Ignore`, `Refuse`, `Reply` and `Notify`."""

    name = "actions"

    def setup(self, core: Core) -> None:
        """Add the four actions. Needs only the ledger, so it comes first."""
        self._ledger = core.ledger
        core.add_action(Ignore, self._ignore)
        core.add_action(Refuse, self._refuse)
        core.add_action(Reply, self._reply)
        core.add_action(Notify, self._notify)

    def _ignore(self, step: Step, event: Event, action: Ignore) -> Applied:
        del step, event
        return Applied(action.reason)

    def _refuse(self, step: Step, event: Event, action: Refuse) -> Applied:
        del step, event
        answer(self._ledger, action.request, action.exit_code, action.reason)
        return Applied(f"refused: {action.reason}")

    def _reply(self, step: Step, event: Event, action: Reply) -> Applied:
        del step, event
        answer(self._ledger, action.request, 0, action.text)
        return Applied(action.text)

    def _notify(self, step: Step, event: Event, action: Notify) -> Applied:
        step.notify(self._ledger, action.text, event.id, action.about)
        return Applied("notice recorded")
