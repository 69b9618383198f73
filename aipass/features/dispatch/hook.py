"""What other features may do with dispatches: refuse them, say how long their chain is, and hear what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aipass.action import Dispatch
    from aipass.core.step import Step
    from aipass.event import Event
    from aipass.ledger import Row


class DispatchHook:
    """Derive from it and override what matters; the rest does nothing. All of it is called inside the transaction."""

    def refuses(self, step: Step, event: Event, wish: Dispatch) -> str | None:
        """Why it may not be: the words are the answer to whoever asks."""

    def hops(self, event: Event, wish: Dispatch) -> int | None:
        """How many agents woke one another in the chain that leads here; None where it follows from the event's run."""

    def owns(self, dispatch: Row) -> Sequence[str] | None:
        """What the work owns besides what its agent does, as patterns; None where it is no work of the feature's."""

    def submitted(self, step: Step, event: Event, wish: Dispatch, dispatch: int) -> None:
        """It is a dispatch, or has joined one."""

    def refused(self, step: Step, event: Event, wish: Dispatch, reason: str) -> None:
        """It is none, and will be none."""

    def retried(self, step: Step, dispatch: int) -> None:
        """A person, or the orchestrator, has it tried again."""
