"""The check that a plugin's function accepts the arguments that the engine will pass."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from aipass.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Callable


def check_signature(function: Callable[..., Any], wanted: tuple[str, ...], what: str) -> None:
    """Raise PluginError, which shows the plugin's own signature, unless `function` accepts the `wanted` arguments.

    The arguments are passed by position, so the plugin may name its parameters freely. `what`: where the function was
    registered, for the message.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise PluginError(
            f"{what}: {function!r} cannot be called; give a function ({', '.join(wanted)})"
        ) from None
    # `bind` instead of a count of parameters: defaults, `*args` and bound methods are then judged as in the real call.
    try:
        signature.bind(*wanted)
    except TypeError:
        name = getattr(function, "__qualname__", repr(function))
        module = getattr(function, "__module__", "?")
        raise PluginError(
            f"{what}: {module}.{name}{signature} does not fit; it is called with ({', '.join(wanted)})"
        ) from None
