"""From calibration inputs to row problems."""
