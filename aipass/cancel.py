"""Ending a dispatch, whoever wants it: in the ledger now, in the world after the commit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aipass.dispatch.dispatcher import Dispatcher, Submitted
    from aipass.step import Step
    from aipass.world import World


def cancel(
    step: Step, dispatcher: Dispatcher, world: World, dispatch: int, reason: str, cause: int | None
) -> Submitted:
    """End a dispatch: a queued one now, a running one when its run was stopped."""
    done, run = dispatcher.cancel(dispatch, reason, step.now)
    if run is not None:
        step.effects.append(partial(world.stop, run, "cancelled", reason))
    elif not done.exit_code:
        step.facts.append(dispatcher.finished(dispatch, cause=cause))
    return done
