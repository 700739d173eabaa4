"""Cholesky factors: LAPACK as torch brings it beside ours; and what solves with them. One thread.

    python benchmarks/solver/factors.py [--sizes 1024 2048 4096 8192]

Says from how many features on blocks pay (`convex.cholesky.LONG`), and which (`BLOCK`), and what an
inverse takes beside steps of `convex.shared.WIDE` rows (`FACTORED`): seconds, best of three turns,
one after the other. It gates nothing.
"""

import argparse
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from simplicit.convex import cholesky
from simplicit.convex.cholesky import solve_factored
from simplicit.convex.products import product
from simplicit.convex.shared import WIDE

TURNS = 3
BLOCKS = (256, 512, 1024)


def seconds(work: Callable[[Tensor], object], G: Tensor) -> float:
    """Time one piece of work.

    Args:
        work: What is done.
        G: With which matrix.

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
    factors = ["LAPACK", *(f"blocks of {b}" for b in BLOCKS)]
    names = [*factors, "inverse", "step by it", "step by the factor"]
    print("| features | precision |", " | ".join(names), "|")
    print("|---|---|" + "---:|" * len(names))
    for n in asked.sizes:
        for dtype in (torch.float32, torch.float64):
            V = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
            G = V @ V.T / n
            G.diagonal().add_(1)
            lower, B = torch.linalg.cholesky(G), torch.randn(WIDE, n, dtype=dtype)
            inverse = torch.cholesky_inverse(lower)
            times: list[list[float]] = [[] for _ in names]
            for _ in range(TURNS):
                times[0].append(seconds(torch.linalg.cholesky, G))
                for own, block in zip(times[1:], BLOCKS, strict=False):
                    with patch.multiple(cholesky, LONG=0, BLOCK=block):
                        own.append(seconds(cholesky.cholesky, G))
                times[-3].append(seconds(torch.cholesky_inverse, lower))
                times[-2].append(seconds(lambda B, inverse=inverse: product(B, inverse), B))
                times[-1].append(seconds(lambda B, L=lower: solve_factored(L, B.T), B))
            figures = " | ".join(f"{min(own):.3f}" for own in times)
            print(f"| {n:,} | {str(dtype)[6:]} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
