"""Backward elimination: one row after the other, or rows with the same zeros together."""
