"""What agents and people say to each other: messages that wait to be read, questions that wait for an answer."""
