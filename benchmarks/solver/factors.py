"""Cholesky factors: LAPACK as torch brings it beside ours, seconds on one thread.

    python benchmarks/solver/factors.py [--sizes 1024 2048 4096 8192]

Says from how many features on blocks pay (`convex.cholesky.LONG`), and which (`BLOCK`): best of
three turns, one after the other. It gates nothing.
"""

import argparse
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from simplicit.convex import cholesky

TURNS = 3
BLOCKS = (256, 512, 1024)


def seconds(work: Callable[[Tensor], object], G: Tensor) -> float:
    """Time a factorisation.

    Args:
        work: What is done.
        G: The matrix.

    Returns:
        Seconds.
    """
    begin = time.perf_counter()
    work(G)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| features | precision | LAPACK |", " | ".join(f"blocks of {b}" for b in BLOCKS), "|")
    print("|---|---|" + "---:|" * (1 + len(BLOCKS)))
    for n in asked.sizes:
        for dtype in (torch.float32, torch.float64):
            V = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
            G = V @ V.T / n
            G.diagonal().add_(1)
            times: list[list[float]] = [[] for _ in range(1 + len(BLOCKS))]
            for _ in range(TURNS):
                times[0].append(seconds(torch.linalg.cholesky, G))
                for own, block in zip(times[1:], BLOCKS, strict=True):
                    with patch.multiple(cholesky, LONG=0, BLOCK=block):
                        own.append(seconds(cholesky.cholesky, G))
            figures = " | ".join(f"{min(own):.3f}" for own in times)
            print(f"| {n:,} | {str(dtype)[6:]} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
