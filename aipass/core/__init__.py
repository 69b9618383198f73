"""The core: takes events and applies actions in one transaction per step, with effects after the commit. It imports no feature."""
