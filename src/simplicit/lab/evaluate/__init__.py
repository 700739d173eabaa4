"""Judges: they see a finished model and data, and know nothing of how it was made."""
