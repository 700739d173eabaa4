"""A run folder, read without torch."""
