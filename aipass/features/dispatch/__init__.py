"""Dispatches (jobs): the queue, their runs, and what these answer."""
