"""The plans feature: multi-phase work with owners, an order, deliverables and checks."""
