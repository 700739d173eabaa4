"""The loop over layers that matches a model to its network."""
