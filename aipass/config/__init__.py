"""The configuration aipass.toml: its model, its reader, and a fast parser for verbs that only need names."""
