"""The laboratory: runs, baselines, judges, plots, reports. The library imports none of it."""
