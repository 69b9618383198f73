"""What agents and people say to each other: messages and questions."""
