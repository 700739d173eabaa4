"""One BLAS thread while rows are solved: parallel blocks of rows are faster and keep their bits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


def available() -> int:
    """Count the processors this process may use.

    Returns:
        At least 1.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch's and NumPy's products on one thread: no result depends on how many there are.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    with _numpy().limit(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@cache
def numpy_alone() -> None:
    """Keep NumPy's products on one thread for as long as this process lives.

    That is for processes that only take pieces: several at once could not each restore the number.
    """
    _numpy().limit(limits=1)


@cache
def _numpy() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
