"""Access to git: queries, its configuration, its logs and its hooks. Imports no feature."""
