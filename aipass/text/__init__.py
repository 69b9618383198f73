"""Pure functions on text: durations and sizes, patterns of paths, templates, secrets, suggestions."""
