"""Work in pieces: threads, processes or a cluster take them, and what is finished is kept."""
