"""Dispatches (jobs): the queue, the runs and the answers."""
