"""A dropped file becomes a dispatch."""
