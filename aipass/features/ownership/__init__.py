"""Who may write which file, and who wrote it."""
