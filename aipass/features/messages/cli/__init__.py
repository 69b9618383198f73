"""The verbs of messages and questions: message, messages, ask, questions, answer; one module each."""
