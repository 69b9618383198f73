"""The core: events in, actions out, one transaction a step, effects after the commit. It knows no feature."""
