"""Bounds by cutting a box into parts: chosen slopes, multipliers, and the search."""
