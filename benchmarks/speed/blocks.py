"""What it buys that four rows read the same: the kernel for rows together, against that for one.

    python benchmarks/speed/blocks.py
    python benchmarks/speed/blocks.py --models runs/weights runs/blocks --batch 8

Two dense layers of random weights. Of the weights of four rows on what any of them reads, a part is
there: 1 with blocks (4, 1), less where patterns only nearly agree. Prints microseconds a sample of
both kernels, the least of many runs that take turns, on one thread. With `--models`, the same of
saved models as they are compiled, side by side.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import simplicit
from simplicit.capture.read import capture
from simplicit.runtime import bound
from simplicit.runtime.kernel import TOGETHER, kernels
from simplicit.runtime.lower import lowered
from simplicit.runtime.program import Program

RUNS = 300
NEVER, ALWAYS = 2.0, 1e-9


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, nargs="+", default=[], help="folders of models")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.models:
        models = [simplicit.load(folder) for folder in options.models]
        u = torch.rand(options.batch, *models[0].input_shape)
        fast = [simplicit.compile(m, batch=options.batch, threads=1) for m in models]
        best = least([lambda f=f: f(u) for f in fast])
        for folder, model, seconds in zip(options.models, models, best, strict=True):
            sample = 1e6 * seconds / options.batch
            print(f"{folder}: {model.sparsity:.1%} zero, {sample:.1f} microseconds a sample")
        return
    for size, n in ((256, 64), (512, 64), (512, 16)):
        for density in (0.1, 0.2):
            for part in (0.4, 0.5, 0.6, 0.8, 1.0):
                program = random_program(size, density, part)
                alone, together = (1e6 * t / n for t in timed(program, size, n))
                print(
                    f"{size} x {size}, {n} samples, {1 - density:.0%} zero, {part:.0%} there: "
                    f"{alone:.3f} alone, {together:.3f} together, {alone / together:.2f} times"
                )


def random_program(size: int, density: float, part: float) -> Program:
    """Compile two layers whose rows agree in fours, as far as a part of their weights goes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
    for layer in (net[0], net[2]):
        on = (torch.rand(size // TOGETHER, size) < density / part).repeat_interleave(TOGETHER, 0)
        with torch.no_grad():
            layer.weight *= on & (torch.rand(size, size) < part)
    return lowered(capture(net, torch.rand(2, size)))


def timed(program: Program, size: int, n: int) -> list[float]:
    """Time rows alone and together, in seconds."""
    ways = []
    before = bound.FILLED
    for bound.FILLED in (NEVER, ALWAYS):
        ways.append(bound.Bound(program, kernels(32), n, torch.float32, {}))
    bound.FILLED = before
    u, y = torch.rand(n, size), torch.empty(n, size)
    return least([lambda way=way: way(u.data_ptr(), y.data_ptr(), n) for way in ways])


def least(ways: list[Callable[[], Any]]) -> list[float]:
    """Time functions in turns: the least of many runs, in seconds."""
    best = [torch.inf for _ in ways]
    for _ in range(RUNS):
        for k, way in enumerate(ways):
            start = time.perf_counter()
            way()
            best[k] = min(best[k], time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
