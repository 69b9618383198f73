"""Plans: phases with owners, an order, deliverables and checks."""
