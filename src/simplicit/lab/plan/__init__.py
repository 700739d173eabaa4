"""`simplicit plan`: what a run takes with so many workers, simulated from its pieces."""
