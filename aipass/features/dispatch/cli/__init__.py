"""The verbs of dispatches: send, cancel, retry, resume; one module each."""
