"""Text: durations and sizes, patterns of paths, templates, secrets, suggestions. Pure."""
