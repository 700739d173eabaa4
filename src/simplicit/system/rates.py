"""How fast this machine is at what matching does, timed in a fraction of a second."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from simplicit.system import threads

ORDER = 512
"""Rows of the products that are timed."""

FACTORISED = 256
"""Rows of the Gram that is factorised."""

TRANSFERRED = 2**22
"""Numbers that are added to others: four times what a core's cache holds."""


@dataclass(frozen=True)
class Rates:
    """Speeds of one thread, and what several bring.

    Attributes:
        float32: Operations a second of a product in float32.
        float64: Of one in float64.
        factor: Of a Cholesky factor with its inverse, float64, counted as the cube of the rows.
        memory: Bytes a second that elementwise work reads and writes.
        call: Seconds of an operation on next to nothing.
        parallel: How many times as much all workers do as one.
    """

    float32: float
    float64: float
    factor: float
    memory: float
    call: float
    parallel: float


NOMINAL = Rates(3e10, 1.5e10, 5e9, 4e9, 6e-6, 1.0)
"""Half of what a core of a server does. Work that is short even so is not worth timing."""


@lru_cache
def measured(many: int, device: str = "cpu") -> Rates:
    """Time this machine, once a process.

    Args:
        many: Workers.
        device: Where the work is going to be.

    Returns:
        Its rates, as if it did nothing else.
    """
    a = torch.rand(ORDER, ORDER, device=device)
    b = a.double()
    G = b[:FACTORISED] @ b[:FACTORISED].T + torch.eye(FACTORISED, device=device)
    some, little = torch.rand(TRANSFERRED, device=device), torch.rand(8, device=device)
    product = 2.0 * ORDER**3
    with threads.single_threaded(), ThreadPoolExecutor(many, initializer=_alone) as executor:
        single = seconds(lambda: a @ a, 4)
        together = list(executor.map(_products, [a] * many))
        return Rates(
            product / single,
            product / seconds(lambda: b @ b, 3),
            FACTORISED**3 / seconds(lambda: _inverse(G), 4),
            3.0 * some.nbytes / seconds(lambda: some + some, 4),
            seconds(lambda: little + little, 1000),
            min(sum(single / each for each in together), float(many)),
        )


def seconds(work: Callable[[], Tensor], times: int) -> float:
    """Time some work.

    Args:
        work: What is done.
        times: How often.

    Returns:
        Seconds each time: of this thread's processor, or, elsewhere than there, of the clock.
    """
    first = work()
    clock = time.thread_time if first.device.type == "cpu" else time.perf_counter
    float(first.flatten()[0])  # a device may still be at work
    begin = clock()
    for _ in range(times):
        first = work()
    float(first.flatten()[0])
    return max(clock() - begin, 1e-9) / times


def _inverse(G: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(G))


# a new thread has as many of its own as there are processors
def _alone() -> None:
    torch.set_num_threads(1)


def _products(a: Tensor) -> float:
    return seconds(lambda: a @ a, 8)
