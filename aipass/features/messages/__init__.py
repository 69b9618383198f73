"""The messages feature: messages and questions between agents and people."""
