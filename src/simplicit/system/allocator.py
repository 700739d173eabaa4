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

MOST = 2**30
"""Bytes of freed blocks that are kept. Layers differ in the sizes of their blocks, and the blocks
that one has freed are in pieces that those of the next do not fit into: on ResNet-20 with 20,000
samples, four of six gigabytes."""


class _Heap(ctypes.Structure):
    """`struct mallinfo2` of <malloc.h>; fordblks are the bytes in free blocks."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")
    ] + [(name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")]


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


def give_back(beyond: int = MOST) -> bool:
    """Give freed blocks back to the system where many are kept.

    For where large blocks have just been freed. A process that keeps none has nothing to give.

    Args:
        beyond: Bytes of freed blocks up to which all are kept.

    Returns:
        Whether they were given back.
    """
    try:
        libc = ctypes.CDLL(None)
        look, trim = libc.mallinfo2, libc.malloc_trim
    except (OSError, AttributeError, TypeError):  # another allocator, or glibc before 2.33
        return False
    look.restype = _Heap
    return look().fordblks > beyond and trim(ctypes.c_size_t(0)) == 1
