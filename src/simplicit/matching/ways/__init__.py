"""What a budget leaves besides single weights: patterns of zeros, ranks, whole units."""
