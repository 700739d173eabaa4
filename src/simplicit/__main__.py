"""`python -m simplicit`."""

from simplicit.cli import main

if __name__ == "__main__":
    main()
