"""Sweeps on the outputs: which weights go, and where the others end up, as the outputs say."""
