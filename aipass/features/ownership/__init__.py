"""Ownership of files: write permissions for runs, and the author of each write."""
