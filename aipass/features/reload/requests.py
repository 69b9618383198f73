"""The request verb of the configuration: `reload`, for people only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.action import Reload
from aipass.core.verbs import Request, Verb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.action import Action


def reload(request: Request) -> Iterable[Action]:
    """Reload the complete aipass.toml, including the changes that were held back."""
    return [Reload(trusted=True, request=request.id)]


VERBS = (Verb("reload", reload),)
