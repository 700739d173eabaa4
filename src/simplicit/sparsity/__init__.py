"""Which weights stay: budget, elimination, relaxation, refit."""
