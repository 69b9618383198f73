"""What may be asked for about the configuration: `reload`, which is for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.action import Reload
from aipass.core.verbs import Request, Verb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.action import Action


def reload(request: Request) -> Iterable[Action]:
    """Take over aipass.toml as it is now, all of it."""
    return [Reload(trusted=True, request=request.id)]


VERBS = (Verb("reload", reload),)
