"""One algorithm a file, and what a first-order method has to offer."""
