"""The memory feature: state files, notes, and their search."""
