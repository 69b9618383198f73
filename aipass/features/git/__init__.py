"""The git feature: events from git's reference logs, the git lease (repo-wide lock), and pull requests."""
