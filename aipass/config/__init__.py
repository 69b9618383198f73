"""aipass.toml: its model, how it is read, and a quick look at it for verbs that must answer at once."""
