"""The supervisor: a process that starts agents and outlives the engine. Standard library only, to start fast."""
