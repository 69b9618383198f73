"""Plans: phases that own parts of the tree, in an order; what one delivers starts the next."""
