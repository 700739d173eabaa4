"""Functions in machine code: loops over numbers that threads run side by side.

Calls of a library take longer than the loops, and Python lets one thread call at a time.
"""

from collections.abc import Callable
from functools import cache, partial
from threading import Lock
from typing import Any, cast

import numba

MATRIX, SINGLE, VECTOR = "float64[:, ::1]", "float32[:, ::1]", "float64[::1]"
INDICES, FLAGS = "int64[::1]", "boolean[::1]"

_lock = Lock()


def compiled(function: Callable[..., Any], types: str) -> Callable[..., Any]:
    """Give a function in machine code; it is compiled once, and kept on disk beside its file.

    Args:
        function: Loops over arrays.
        types: What it returns and takes, as numba writes it.

    Returns:
        The same function. Division by 0 gives infinity, as in arrays.
    """
    with _lock:  # threads that come at once wait for the first one
        return _compiled(function, types)


@cache
def _compiled(function: Callable[..., Any], types: str) -> Callable[..., Any]:
    make = cast(Any, partial(numba.njit, types, nogil=True, error_model="numpy"))
    try:
        return make(cache=True)(function)
    except Exception:  # the disk is full or read-only, or what was kept there is damaged
        return make()(function)
