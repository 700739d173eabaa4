"""Linear maps with weights, one class a file: what they must have is `WeightedMap`."""
