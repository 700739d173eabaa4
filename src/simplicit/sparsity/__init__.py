"""Which weights stay: budget, splitting, elimination, relaxation, refit."""
