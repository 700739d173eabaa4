"""Eliminations and products as this machine does them, beside torch's: best of three turns.

    python benchmarks/kernels.py [--workers 2]

The first table has milliseconds a row of an exact elimination of 64 rows: one row after the other
in machine code (`sparsity/elimination/one_row.py`), and side by side in torch, as on a device. The
second has thousand million operations a second of one thread, a product of `convex/products.py`
beside torch's; a square counts both triangles. It gates nothing.
"""

import argparse
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from simplicit.convex.products import square, times
from simplicit.sparsity.elimination import of_rows
from simplicit.system import threads
from simplicit.workers.executors import pool

TURNS, ROWS = 3, 64
FEATURES = (145, 290, 580, 850)
SHAPES = ((64, 785, 785), (40, 26_400, 40), (192, 6_400, 577))
"""Rows, what is summed over, columns: a step of splitting, targets of a long kernel, a block."""


def best(work: Callable[[], object]) -> float:
    """Time some work.

    Args:
        work: What is done.

    Returns:
        Seconds of the fastest turn, after one that does not count.
    """
    found = []
    for _ in range(1 + TURNS):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return min(found[1:])


def eliminations(workers: int) -> None:
    """Measure and print the first table.

    Args:
        workers: Threads.
    """
    print("| features | one after the other, ms a row | side by side, ms a row |\n|---:|---:|---:|")
    random = torch.Generator().manual_seed(0)
    with pool(workers) as executor:
        for n in FEATURES:
            V = torch.randn(3 * n, n, generator=random, dtype=torch.float64)
            H = torch.linalg.inv(V.T @ V / len(V))
            W = torch.randn(ROWS, n, generator=random, dtype=torch.float64)
            none = torch.zeros(n, dtype=torch.bool)

            def work(H: Tensor = H, W: Tensor = W, none: Tensor = none) -> None:
                of_rows.eliminate(H, W, none, executor=executor)

            mine = best(work)
            with patch.object(of_rows, "by_itself", lambda *_: False):
                other = best(work)
            print(f"| {n} | {1e3 * mine / ROWS:.2f} | {1e3 * other / ROWS:.2f} |", flush=True)


def products() -> None:
    """Measure and print the second table."""
    print("\n| product | precision | ours | torch |\n|---|---|---:|---:|")
    for dtype in (torch.float32, torch.float64):
        for k, n, p in SHAPES:
            A, B = torch.randn(n, k, dtype=dtype).T, torch.randn(n, p, dtype=dtype)
            A = A.contiguous() if k < n == p else A  # as the rows of splitting lie
            found = best(lambda A=A, B=B: times(A, B)), best(lambda A=A, B=B: A @ B)
            line(f"{k} × {n:,} × {p}", dtype, 2e-9 * k * n * p, found)
        for _, n, p in SHAPES:
            A = torch.randn(n, p, dtype=dtype).T
            found = best(lambda A=A: square(A)), best(lambda A=A: A @ A.T)
            line(f"square, {p} × {n:,}", dtype, 2e-9 * n * p**2, found)


def line(name: str, dtype: torch.dtype, operations: float, seconds: tuple[float, float]) -> None:
    """Print a line of the second table.

    Args:
        name: Of the product.
        dtype: Of its numbers.
        operations: That it has, in thousand million.
        seconds: Of ours, and of torch's.
    """
    rates = " | ".join(f"{operations / each:.0f}" for each in seconds)
    print(f"| {name} | {str(dtype)[6:]} | {rates} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    with threads.single_threaded():
        eliminations(asked.workers)
        products()


if __name__ == "__main__":
    main()
