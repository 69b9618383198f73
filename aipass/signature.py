"""Whether a plugin's function takes what it will be called with."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from aipass.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Callable


def check_signature(function: Callable[..., Any], wanted: tuple[str, ...], what: str) -> None:
    """Raise PluginError, showing the plugin's own signature, unless `function` takes exactly `wanted` arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise PluginError(
            f"{what}: {function!r} cannot be called; give a function ({', '.join(wanted)})"
        ) from None
    try:
        signature.bind(*wanted)
    except TypeError:
        name = getattr(function, "__qualname__", repr(function))
        module = getattr(function, "__module__", "?")
        raise PluginError(
            f"{what}: {module}.{name}{signature} does not fit; it is called with ({', '.join(wanted)})"
        ) from None
