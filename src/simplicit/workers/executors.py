"""Who takes pieces: how many threads there are, and what stands for an executor."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, Literal

from simplicit.errors import InputError
from simplicit.system import threads
from simplicit.workers.cluster import Cluster, is_cluster
from simplicit.workers.processes import Processes

NAMES = ("threads", "processes")

Asked = Executor | Literal["threads", "processes"] | Any | None
"""What a user gives as an executor; `Any` is Dask's `Client`, which need not be installed."""


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


@contextmanager
def opened(asked: Asked, workers: int | None = None) -> Iterator[Executor | None]:
    """Open what a user has asked for.

    Args:
        asked: `threads`, `processes`, an executor, Dask's client, or None for threads.
        workers: How many threads or processes, see `count`; others know how many they are.

    Yields:
        What `run` takes as its executor. Threads and processes end with the `with` block.

    Raises:
        InputError: If it is none of these.
    """
    many = count(workers)
    if is_cluster(asked):
        with closing(Cluster(asked)) as executor:
            yield executor
    elif isinstance(asked, Executor):
        yield asked
    elif asked == "processes":
        with Processes(many) as executor:
            yield executor
    elif asked is None or asked == "threads":
        with pool(many) as executor:
            yield executor
    else:
        raise InputError(
            f"executor={asked!r}: accepted are {', '.join(NAMES)}, an executor of "
            "concurrent.futures, and a client of dask.distributed"
        )
