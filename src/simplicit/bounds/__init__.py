"""How far outputs can move, rounded outward."""
