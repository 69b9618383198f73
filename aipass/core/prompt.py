"""What a prompt is made for; features add their parts by `Core.add_prompt_part`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from aipass.ledger import Row


class PromptWork(NamedTuple):
    """`dispatch`: its row; `run`: None where none has begun; `attempt`: from 1; `goes_on`: whether the CLI remembers the conversation;
    `briefed`: whether it is a model, which is told about itself, and not a plain program.
    """

    dispatch: Row
    run: int | None
    attempt: int
    goes_on: bool
    briefed: bool
