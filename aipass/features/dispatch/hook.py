"""The hook by which other features refuse dispatches, set their chain length and ownership, and observe them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aipass.action import Dispatch
    from aipass.core.step import Step
    from aipass.event import Event
    from aipass.ledger import Row


class DispatchHook:
    """Base class: override the methods that you need; the others do nothing.

    All but `owns` are called inside the transaction.
    """

    def refuses(self, step: Step, event: Event, wish: Dispatch) -> str | None:
        """Return the reason to refuse a requested dispatch, as text for its sender; None to allow it.

        The first refusal counts.
        """

    def hops(self, event: Event, wish: Dispatch) -> int | None:
        """Return the length of the chain of causes; None to derive it from the event's run."""

    def owns(self, dispatch: Row) -> Sequence[str] | None:
        """Return the patterns that the work owns besides its agent's `owns`; None if it is not work of this feature."""

    def submitted(self, step: Step, event: Event, wish: Dispatch, dispatch: int) -> None:
        """A request became a dispatch, or joined one."""

    def refused(self, step: Step, event: Event, wish: Dispatch, reason: str) -> None:
        """A request was refused by the queue's rules; not called after a refusal by a hook."""

    def retried(self, step: Step, dispatch: int) -> None:
        """A person or the orchestrator has queued a dispatch again."""
