"""The plans feature: adds plans, their phases and their checks to the engine."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aipass.action import Advance, Check, Steer, Written
from aipass.features.dispatch.drivers import Drivers
from aipass.features.dispatch.feature import DispatchFeature
from aipass.features.git.feature import GitFeature
from aipass.features.ownership.feature import OwnershipFeature
from aipass.features.plans import status
from aipass.features.plans.control import PlanControl, PlanRead
from aipass.features.plans.lifecycle import CHECK, Plans
from aipass.features.plans.requests import VERBS
from aipass.features.plans.reserved import reserved
from aipass.workspace.layout import CHECKS

if TYPE_CHECKING:
    from aipass.core.registry import Core


class PlansFeature:
    """The feature; `plans` is its engine side."""

    name = "plans"
    verbs = VERBS
    policy = ("plans",)

    def setup(self, core: Core) -> None:
        """Add the plan actions, verbs, reports, view, timer, hooks, prompt part and status lines.

        Needs dispatch (phases are dispatches, checks are runs), ownership (reserved paths, write attribution) and git (PRs of
        phases), which must be set up before.
        """
        dispatching, ownership = core.need(DispatchFeature), core.need(OwnershipFeature)
        contributions = core.need(GitFeature).contributions
        plans = self.plans = Plans(core, dispatching, ownership, core.need(Drivers).by_name)
        control = PlanControl(core, dispatching, ownership, plans)
        core.add_action(Advance, plans.apply_advance)
        core.add_action(Written, plans.apply_written)
        core.add_action(Check, plans.apply_check)
        core.add_action(Steer, control.steer)
        core.add_effect("plans.read", control.read)
        core.add_report(PlanRead, control.take)
        for verb in self.verbs:
            core.add_verb(verb)
        core.add_view("plans", plans.views)
        core.add_step(begin=plans.begin)
        core.add_listener(("*",), plans.happened)
        # Before the handler of `deliver` decides: it must see the files that the run wrote a moment ago.
        core.add_listener(("request.received",), plans.requested)
        core.add_timer(CHECK, plans.due)
        core.add_memory(plans.forget)
        core.add_idle_check(plans.is_idle)
        core.add_run_hook(plans)
        core.add_prompt_part(10, plans.prompt)
        dispatching.add_hook(plans)
        # Checks have their own range of run numbers, so a supervisor's message about one comes back here.
        dispatching.add_numbers(CHECKS, plans.take_check)
        ownership.add_reservations(partial(reserved, core.ledger))
        ownership.add_written(plans.wrote, plans.awaits)
        contributions.opening.append(plans.start_pr)
        contributions.changes.append(plans.of_phase)
        core.add_status("plans", partial(status.gather, core.layout), status.show)
