"""aipass.toml is watched and taken over."""
