"""Whole units: which states go together, what the outputs lose without them, and what is left."""
