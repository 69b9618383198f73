"""The view that handlers get: the ledger and the configuration at the moment of the event, read-only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aipass.patterns import Patterns
from aipass.router import DispatchView

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aipass.clock import Instant
    from aipass.config import Agent, Config
    from aipass.dispatch.dispatcher import Dispatcher
    from aipass.dispatch.rate import Hourly
    from aipass.ledger import Ledger
    from aipass.plan.progress import PlanView


class LedgerView:
    """Implements `router.View` over the open transaction."""

    def __init__(
        self, ledger: Ledger, dispatcher: Dispatcher, fired: Hourly, plans: Callable[[], Sequence[PlanView]]
    ) -> None:
        self._ledger, self._dispatcher, self._fired = ledger, dispatcher, fired
        self._plans = plans
        self._moment: Instant | None = None
        self._owns: tuple[Config, dict[str, Patterns]] | None = None

    def at(self, now: Instant) -> LedgerView:
        """The same view at another moment."""
        self._moment = now
        return self

    @property
    def now(self) -> Instant:
        """The moment of this step."""
        assert self._moment is not None
        return self._moment

    @property
    def _config(self) -> Config:
        return self._dispatcher.config

    def agents(self) -> Sequence[str]:
        """Names of the configured agents."""
        return tuple(self._config.agents)

    def agent(self, name: str) -> Agent | None:
        """One agent's configuration."""
        return self._config.agents.get(name)

    def dispatches(
        self, agent: str | None = None, state: str | None = None, key: str | None = None
    ) -> list[DispatchView]:
        """Dispatches, oldest first, that are all that is asked for."""
        rows = self._ledger.all("find_dispatches", {"agent": agent, "state": state, "key": key})
        return [DispatchView(*tuple(row)) for row in rows]

    def agent_of_run(self, run: int | None) -> str | None:
        """The agent of a run."""
        if run is None:
            return None
        row = self._ledger.one("run", {"id": run})
        return None if row is None else str(row["agent"])

    def dispatch_of_run(self, run: int | None) -> int | None:
        """The dispatch that a run works on."""
        row = None if run is None else self._ledger.one("run", {"id": run})
        return None if row is None else int(row["dispatch"])

    def agent_of_dispatch(self, dispatch: int) -> str | None:
        """The agent of a dispatch."""
        row = self._ledger.one("dispatch", {"id": dispatch})
        return None if row is None else str(row["agent"])

    def fired(self, handler: str) -> int:
        """How many dispatches this handler has asked for within the last hour."""
        return self._fired.count(handler, self.now.mono)

    def paused(self, kind: str, name: str) -> str | None:
        """Why an agent, a rule or a driver is paused."""
        return self._dispatcher.pauses.why(kind, name)

    def resolve(self, id_or_request: str) -> int | None:
        """The dispatch that an id or a request's id means."""
        return resolve(self._ledger, id_or_request)

    def plans(self) -> Sequence[PlanView]:
        """The plans that run or are paused."""
        return self._plans()

    def owner(self, path: str) -> str | None:
        """The agent whose `owns` names the path; None where nobody's does, or several'."""
        if self._owns is None or self._owns[0] is not self._config:
            self._owns = (
                self._config,
                {name: Patterns(agent.owns) for name, agent in self._config.agents.items() if agent.owns},
            )
        owners = [name for name, patterns in self._owns[1].items() if patterns.match(path)]
        return owners[0] if len(owners) == 1 else None

    def setting(self, name: str) -> Any:  # noqa: ANN401 - a setting has its own type
        """A value of aipass.toml by its dotted name; raises KeyError where there is no such setting."""
        found: Any = self._config
        for part in name.split("."):
            if isinstance(found, dict):
                found = found[part]
            elif part in type(found).model_fields:
                found = getattr(found, part)
            else:
                raise KeyError(f"there is no setting `{name}`")
        return found


def resolve(ledger: Ledger, id_or_request: str) -> int | None:
    """The dispatch that `12` or `r-…` means; None where there is none."""
    if id_or_request.startswith("r-"):
        row = ledger.one("request", {"id": id_or_request})
        return None if row is None or row["dispatch"] is None else int(row["dispatch"])
    if not id_or_request.isdecimal() or len(id_or_request) > 18:
        return None
    row = ledger.one("dispatch", {"id": int(id_or_request)})
    return None if row is None else int(row["id"])
