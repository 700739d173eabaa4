"""The row problem and its duality gap; knows no solver."""
