"""What verbs share: tables and JSON, the terminal, requests to the engine."""
