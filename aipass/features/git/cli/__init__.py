"""The verbs of PRs and the git lease: pr, lock; one module each."""
