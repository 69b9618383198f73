"""The view that handlers get: what features show of the ledger and of the configuration at the moment of the event, read-only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aipass.clock import Instant
    from aipass.core.registry import Core


class HandlerView:
    """`router.View` over the open transaction: the moment, the settings, and whatever features have added by `Core.add_view`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._moment: Instant | None = None

    def at(self, now: Instant) -> None:
        """The moment of the step that begins."""
        self._moment = now

    @property
    def now(self) -> Instant:
        """The moment of this step."""
        assert self._moment is not None
        return self._moment

    def setting(self, name: str) -> Any:  # noqa: ANN401 - a setting has its own type
        """A value of aipass.toml by its dotted name; raises KeyError where there is no such setting."""
        found: Any = self._core.config()
        for part in name.split("."):
            if isinstance(found, dict):
                found = found[part]
            elif part in type(found).model_fields:
                found = getattr(found, part)
            else:
                raise KeyError(f"there is no setting `{name}`")
        return found

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - whatever the feature has added
        """What a feature has added under a name: `view["snoozed"]`, for what is no function as well."""
        return self._core.views[name]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the feature has added
        try:
            return self._core.views[name]
        except KeyError:
            raise AttributeError(
                f"the view has no `{name}`; it has {', '.join(sorted(self._core.views))}"
            ) from None
