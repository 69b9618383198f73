"""Reload of the configuration when aipass.toml changes."""
