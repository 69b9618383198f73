"""Features: each owns its noun whole, and enters the engine through `setup(core)`."""
