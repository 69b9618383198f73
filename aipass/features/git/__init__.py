"""Git: what it tells, its hooks, and pull requests."""
