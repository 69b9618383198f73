"""The process that runs agents and outlives the engine. Standard library only, so that it starts fast and stays small."""
