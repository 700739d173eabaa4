"""What depends on the machine: memory, threads, progress, files written whole."""
