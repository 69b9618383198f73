"""The views (read-only queries) of agents, dispatches and runs that handlers may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.core.router import DispatchView

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aipass.config.model import Agent
    from aipass.core.registry import Core
    from aipass.features.dispatch.dispatcher import Dispatcher
    from aipass.features.dispatch.rate import Hourly
    from aipass.ledger import Ledger


class Views:
    """The views: each public method but `add` is a view with the method's name.

    All read the state inside the transaction.
    """

    def __init__(self, core: Core, dispatcher: Dispatcher, fired: Hourly) -> None:
        self._core, self._ledger, self._dispatcher, self._fired = core, core.ledger, dispatcher, fired

    def add(self) -> None:
        """Register all views; the list is explicit, so that a new method is not published by accident."""
        for view in (
            self.agents,
            self.agent,
            self.dispatches,
            self.agent_of_run,
            self.dispatch_of_run,
            self.agent_of_dispatch,
            self.fired,
            self.paused,
            self.resolve,
        ):
            self._core.add_view(view.__name__, view)

    def agents(self) -> Sequence[str]:
        """The names of the configured agents, in the order of aipass.toml."""
        return tuple(self._core.config().agents)

    def agent(self, name: str) -> Agent | None:
        """One agent's configuration; None if there is no such agent."""
        return self._core.config().agents.get(name)

    def dispatches(
        self, agent: str | None = None, state: str | None = None, key: str | None = None
    ) -> list[DispatchView]:
        """The dispatches that match all given criteria, oldest first."""
        rows = self._ledger.all("find_dispatches", {"agent": agent, "state": state, "key": key})
        return [DispatchView(*tuple(row)) for row in rows]

    def agent_of_run(self, run: int | None) -> str | None:
        """The agent of a run; None for no run or an unknown one, as after a person's request."""
        row = None if run is None else self._ledger.one("run", {"id": run})
        return None if row is None else str(row["agent"])

    def dispatch_of_run(self, run: int | None) -> int | None:
        """The dispatch of a run; None for no run or an unknown one."""
        row = None if run is None else self._ledger.one("run", {"id": run})
        return None if row is None else int(row["dispatch"])

    def agent_of_dispatch(self, dispatch: int) -> str | None:
        """The agent of a dispatch; None if there is no such dispatch."""
        row = self._ledger.one("dispatch", {"id": dispatch})
        return None if row is None else str(row["agent"])

    def fired(self, handler: str) -> int:
        """The number of dispatches that a handler has requested within the last hour."""
        return self._fired.count(handler, self._core.clock.now().mono)

    def paused(self, kind: str, name: str) -> str | None:
        """The reason why an agent, a rule or a driver is paused; None if it is not."""
        return self._dispatcher.pauses.why(kind, name)

    def resolve(self, id_or_request: str) -> int | None:
        """The id of a dispatch, from its id as text or from the id of the request that created it; else None."""
        return resolve(self._ledger, id_or_request)


def resolve(ledger: Ledger, id_or_request: str) -> int | None:
    """The id of the dispatch named by `12` or by a request id `r-…`; None if there is none."""
    if id_or_request.startswith("r-"):
        row = ledger.one("request", {"id": id_or_request})
        return None if row is None or row["dispatch"] is None else int(row["dispatch"])
    # SQLite's integers have 64 bits: a longer number would raise OverflowError in the query.
    if not id_or_request.isdecimal() or len(id_or_request) > 18:
        return None
    row = ledger.one("dispatch", {"id": int(id_or_request)})
    return None if row is None else int(row["id"])
