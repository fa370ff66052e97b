"""Layer 4, inference: routing, limits, budgets, cost."""
