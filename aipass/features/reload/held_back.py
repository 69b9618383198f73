"""Decides which changes of aipass.toml wait for a person. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aipass.config.model import Agent, Config

#: The settings of an agent that decide which program it starts. A change may come with a `git pull`, and would run
#: foreign code.
GUARDED_AGENT_FIELDS = ("command", "args", "env", "driver")


def hold_back(old: Config, new: Config) -> tuple[Config, list[str]]:
    """Return `new` without the changes that wait for `aipass reload`, and the names of these settings."""
    waiting: list[str] = []
    agents: dict[str, Agent] = {}
    for name, agent in new.agents.items():
        before = old.agents.get(name)
        if before is None:
            waiting.append(f"agents.{name}")
            continue
        changed = [field for field in GUARDED_AGENT_FIELDS if getattr(before, field) != getattr(agent, field)]
        waiting += [f"agents.{name}.{field}" for field in changed]
        agents[name] = agent.model_copy(update={field: getattr(before, field) for field in changed})
    update: dict[str, Any] = {"agents": agents}
    # Each of these widens rights: paths outside the tree, the agent that may cancel work, the forge, code in the engine.
    for field in ("sandbox", "orchestrator", "pr", "plugins"):
        if getattr(old, field) != getattr(new, field):
            waiting.append(field)
            update[field] = getattr(old, field)
    # Removed agents leave no reference: the configuration without the waiting changes must be valid by itself.
    if update.get("orchestrator", new.orchestrator) not in {"human", *agents}:
        update["orchestrator"] = "human"
    update["on"] = tuple(rule for rule in new.on if rule.dispatch in agents)
    return new.model_copy(update=update), waiting
