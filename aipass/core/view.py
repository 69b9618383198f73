"""The view for handlers: read-only queries of the ledger and the configuration, which features add."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aipass.clock import Instant
    from aipass.core.registry import Core


class HandlerView:
    """The `router.View` of an engine: the time of the step, the settings, and the queries added by `Core.add_view`.

    It reads inside the open transaction, so that a handler sees the effects of the events before its own.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._moment: Instant | None = None

    def at(self, now: Instant) -> None:
        """Set the time of the step that begins."""
        self._moment = now

    @property
    def now(self) -> Instant:
        """The time of this step."""
        assert self._moment is not None
        return self._moment

    def setting(self, name: str) -> Any:  # noqa: ANN401 - a setting has its own type
        """A value of aipass.toml by its dotted name, such as `limits.hops`. Raises KeyError if there is no such setting."""
        found: Any = self._core.config()
        for part in name.split("."):
            if isinstance(found, dict):
                found = found[part]
            # Not `getattr` alone: `limits.model_dump` is an attribute, but no setting.
            elif part in type(found).model_fields:
                found = getattr(found, part)
            else:
                raise KeyError(f"there is no setting `{name}`")
        return found

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - an object of the feature's own type
        """The function or object that a feature has added under a name: `view["snoozed"]`."""
        return self._core.views[name]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - an object of the feature's own type
        try:
            return self._core.views[name]
        except KeyError:
            raise AttributeError(
                f"the view has no `{name}`; it has {', '.join(sorted(self._core.views))}"
            ) from None
