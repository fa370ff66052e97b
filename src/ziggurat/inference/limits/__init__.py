"""What may be used and spent: limits of endpoints, models, tenants and keys, and budgets, shared by all who make calls."""
