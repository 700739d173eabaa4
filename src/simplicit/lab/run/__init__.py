"""One configuration, one folder of results."""
