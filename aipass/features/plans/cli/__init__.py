"""The verbs of plans: plan, deliver; one module each."""
