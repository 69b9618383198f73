"""The inbox: a file that is dropped there becomes a dispatch (job)."""
