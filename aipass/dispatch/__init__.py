"""Work goes out: the queue's rules, the limits, and how drivers run a CLI."""
