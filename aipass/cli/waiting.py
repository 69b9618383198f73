"""The reason why a dispatch waits, for the verbs `dispatches`, `show` and `why`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aipass.ledger import Ledger, Row
    from aipass.workspace.layout import Layout


class WaitReasons:
    """Computes for each dispatch why it waits. Reads ledger, lock and configuration once, when it is made."""

    def __init__(self, layout: Layout, ledger: Ledger) -> None:
        from aipass.config.quick import agents
        from aipass.errors import ConfigError
        from aipass.features.messages.status import state_of
        from aipass.supervisor import wire
        from aipass.workspace import engine_lock

        self._running = engine_lock.holder(layout) is not None
        self._pauses = {(row["kind"], row["name"]): row["reason"] for row in ledger.all("pauses")}
        live = ledger.all("live_runs")
        self._live = {row["agent"]: row["dispatch"] for row in live}
        #: Dispatches whose run has ended while no engine was running to record it.
        self._ended = {
            row["dispatch"]
            for row in live
            if not self._running and wire.read_exit(layout.run(row["id"])) is not None
        }
        # Only questions whose run is live and waits for the answer: after its end the dispatch is `blocked`, with a reason.
        self._asked = {
            row[
                "dispatch"
            ]: f"waits for {'your' if row['recipient'] == 'human' else row['recipient'] + chr(39) + 's'} answer to question {row['id']}"
            for row in ledger.all("questions", {"all": 0})
            if row["dispatch"] is not None and state_of(ledger, row) == "waiting"
        }
        try:
            self._agents: dict[str, dict[str, Any]] = agents(layout)
        except ConfigError:
            # The configuration is only needed for the driver's pause; the other reasons must still be shown.
            self._agents = {}

    def of(self, row: Row) -> str | None:
        """Return the reason in words; None if the dispatch does not wait. Tests the reasons in the order of the dispatcher."""
        if row["state"] == "running":
            if not self._running:
                if row["id"] in self._ended:
                    return "its run has ended; the next `aipass up` records the outcome"
                return "the engine is not running; the run continues, and the next `aipass up` takes it over"
            return self._asked.get(row["id"])
        return self._queued(row) if row["state"] == "queued" else None

    def _queued(self, row: Row) -> str:
        from aipass.text.units import show_duration

        if not self._running:
            return "the engine is not running"
        now = time.time()
        if row["not_before"] > now:
            return f"next attempt in {show_duration(row['not_before'] - now)}, after: {row['reason']}"
        agent = row["agent"]
        # A pause comes before a live run: it still holds when the run has ended.
        for kind, name in (("agent", agent), ("driver", self._agents.get(agent, {}).get("driver"))):
            if (kind, name) in self._pauses:
                return f"{kind} {name} is paused: {self._pauses[kind, name]}"
        if agent in self._live:  # at most one live run per agent
            return f"{agent} works on dispatch {self._live[agent]}"
        return f"a limit: {len(self._live)} runs live now; see [limits] concurrency, per_driver and runs_per_hour in aipass.toml"
