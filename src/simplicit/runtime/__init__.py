"""Models as machine code that skips zeros: `simplicit.compile`."""
