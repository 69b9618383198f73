"""The engine's files in a repository: layout of folders, engine lock, log, crash reports, removal."""
