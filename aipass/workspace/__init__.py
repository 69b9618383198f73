"""Where everything is in a repository, and what the engine needs there: its folder, lock, log and crash reports."""
