"""Work in pieces, here or on any executor: the answers come in the order of the pieces.

A piece is data, and the function that takes it stands at the top of a module, so that threads,
other processes (`concurrent.futures.ProcessPoolExecutor`) and the machines of a cluster (Dask's
`client.get_executor()`) can run it alike. Torch sends tensors to processes of the same machine
through shared memory: a matrix that many pieces hold is written there once.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TypeVar

import torch

from simplicit.errors import InputError
from simplicit.system import threads

IN_FLIGHT = 2
"""Pieces handed over for each worker: one is worked on, the next is there when it ends."""

Piece = TypeVar("Piece")
Answer = TypeVar("Answer")


def count(workers: int | None) -> int:
    """Say how many workers there will be.

    Args:
        workers: How many are wanted; None for all processors that this process may use.

    Returns:
        That many, at most one a processor.

    Raises:
        InputError: If fewer than one is wanted.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}: must be at least 1, or None for all processors")
    most = threads.available()
    return most if workers is None else min(workers, most)


def of(executor: Executor | None) -> int:
    """Say how many pieces an executor takes at once.

    Args:
        executor: As `run` takes it.

    Returns:
        1 without one; the processors here where it does not say.
    """
    return 1 if executor is None else getattr(executor, "_max_workers", threads.available())


@contextmanager
def pool(workers: int | None = None, pieces: int | None = None) -> Iterator[Executor | None]:
    """Make a pool of threads that ends with the `with` block.

    Args:
        workers: How many threads, see `count`.
        pieces: How many pieces there are going to be, if known: one needs no thread of its own.

    Yields:
        What `run` takes as its executor: None for a single worker.
    """
    many = count(workers)
    if many == 1 or pieces is not None and pieces <= 1:
        yield None
        return
    with ThreadPoolExecutor(many) as executor:
        yield executor


def run(
    function: Callable[[Piece], Answer], pieces: Iterable[Piece], executor: Executor | None = None
) -> Generator[Answer, None, None]:
    """Apply a function to every piece.

    A piece is taken from `pieces` when a worker is about to need it, so a generator of large pieces
    does not fill the memory. Every worker uses as many torch threads as the caller, on which the
    last bits of matrix products may depend.

    Args:
        function: What is done with a piece. Processes and clusters find it by its name, so it
            stands at the top of a module; a `functools.partial` of such a function will do.
        pieces: One argument a call. Processes and clusters need to be able to pickle them.
        executor: Who does it; None does it here, one piece after the other, as they are asked for.

    Yields:
        The answers, in the order of the pieces. The first piece in this order that fails raises its
        error here. On an error, on Ctrl-C and where the answers are no longer asked for, pieces
        that have not begun are cancelled.
    """
    if executor is None:
        yield from map(function, pieces)
        return
    many = IN_FLIGHT * of(executor)
    call = partial(_call, function, torch.get_num_threads())
    submitted = (executor.submit(call, piece) for piece in pieces)
    waiting: deque[Future[Answer]] = deque()
    try:
        waiting.extend(islice(submitted, many))
        while waiting:
            answer = waiting.popleft().result()
            waiting.extend(islice(submitted, 1))
            yield answer
    finally:
        for future in waiting:
            future.cancel()


def _call(function: Callable[[Piece], Answer], torch_threads: int, piece: Piece) -> Answer:
    if torch.get_num_threads() != torch_threads:
        torch.set_num_threads(torch_threads)
    return function(piece)
