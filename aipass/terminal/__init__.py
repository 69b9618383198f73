"""Code that all verbs share: tables and JSON output, the terminal, requests to the engine."""
