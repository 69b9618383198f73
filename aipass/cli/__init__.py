"""The command line: one verb, one file. A verb imports only what it needs."""
