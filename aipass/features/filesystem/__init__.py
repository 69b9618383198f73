"""Files of the tree: what is seen of them becomes facts."""
