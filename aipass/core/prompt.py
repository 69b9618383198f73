"""The input for parts of a prompt, which features add by `Core.add_prompt_part`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from aipass.ledger import Row


class PromptWork(NamedTuple):
    """The work that a prompt is for.

    `dispatch`: the row of the dispatch. `run`: None if no run has begun. `attempt`: from 1. `goes_on`: whether the CLI
    continues an earlier conversation. `briefed`: whether the agent is a model, which needs a brief, and not a program.
    """

    dispatch: Row
    run: int | None
    attempt: int
    goes_on: bool
    briefed: bool
