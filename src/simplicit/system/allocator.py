"""Memory that is freed is kept for what asks next, not given back to the system and taken again.

Blocks of features, states and Grams are large, live shortly and follow each other by the thousand.
By default glibc takes each from the system and gives it back, and the system fills each page with
zeros: on ResNet-20 a third of the whole run.
"""

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Parameters of `mallopt`, as <malloc.h> numbers them."""

LARGE = 2**28
"""Bytes from which on a block goes back to the system at once: few are, and they count."""


def keep_freed() -> bool:
    """Have this process keep freed blocks below `LARGE`.

    For a program that does one thing, as the command line does. A library leaves it to its user.

    Returns:
        Whether the allocator is glibc's, and took it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system's allocator
        return False
    wanted = {MMAP_THRESHOLD: LARGE, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 2**26}
    return all([mallopt(parameter, value) == 1 for parameter, value in wanted.items()])
