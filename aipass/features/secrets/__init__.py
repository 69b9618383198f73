"""Masks secrets in texts that other agents will read, and limits the length of these texts."""
