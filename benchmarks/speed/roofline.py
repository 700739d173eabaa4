"""How near the runtime's layers come to what one core of this machine can do.

    python benchmarks/speed/roofline.py [NETWORK ...] [--sparsity 0.9] [--samples 16]

Three limits are measured first: multiply-adds of a dense product; those of the runtime's own loop
where all that it reads stays in the first-level cache; and bytes a second of a copy in memory. Then
each layer of the network runs alone. A multiply-add reads one number, so that products are bound
by loads; a layer of few non-zeros is bound by the states that it reads and writes. It gates
nothing.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from networks import NETWORKS, known, network
from rich.console import Console
from rich.table import Table

import simplicit
from simplicit.runtime.bound import Bound, measured
from simplicit.runtime.kernel import kernels
from simplicit.runtime.lower import lowered
from simplicit.runtime.program import ONE, Part, Program, Rows, Segments, Sums

NONE = np.zeros((0, 3), np.int64)


def seconds(program: Program, step: Sums, samples: int) -> float:
    """Time one layer alone.

    Args:
        program: The program that it is a part of.
        step: The layer.
        samples: Samples together.

    Returns:
        Seconds for all of them.
    """
    alone = replace(program, steps=(step,), inputs=NONE, outputs=NONE)
    bound = Bound(alone, kernels(32), samples, torch.float32, {0: "sparse"})
    return measured(lambda: bound(0, 0, samples), repeats=5, least=5e-3)


def limits(samples: int = 64) -> tuple[float, float, float]:
    """Measure what one core can do.

    Args:
        samples: Numbers in a slot.

    Returns:
        Multiply-adds a second of a dense product, and of the runtime's loop on 16 slots; bytes a
        second of a copy that leaves the caches.
    """
    matrix = torch.rand(1024, 1024)
    dense = 1024**3 / measured(lambda: matrix @ matrix, repeats=9, least=0.2)
    count, slots, times = 4, 16, 500
    entries = np.arange(count * 256)
    rows = Rows(np.arange(0, len(entries) + 1, 256), entries % slots, np.full(len(entries), 1e-3))
    again = Segments(np.tile(ONE, (times, 1)))
    step = Sums("loop", Part(rows, slots + np.arange(count), again), np.zeros(count))
    none = np.zeros(0, np.int64), np.zeros(0)
    program = Program((step,), slots + count, none, NONE, NONE, 1, 1)
    loop = samples * step.products / seconds(program, step, samples)
    source = torch.rand(2**26)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / measured(lambda: target.copy_(source), repeats=5, least=0.2)
    return dense, loop, copied


def table(name: str, sparsity: float, samples: int, data: Path, loop: float) -> Table:
    """Time the layers of a network.

    Args:
        name: The network.
        sparsity: Share of its weights that become zero.
        samples: Samples together.
        data: Folder of its data.
        loop: Multiply-adds a second of the runtime's loop.

    Returns:
        A line a layer.
    """
    net, inputs = network(name, data)
    model = simplicit.implicitize(net, inputs, sparsity=sparsity, structure="layered", sweeps=0)
    program = lowered(model.equations)
    headings = ("layer", "non-zeros a row", "µs a sample", "GFMA/s", "of the loop", "states, GB/s")
    found = Table(*headings, title=f"{name}, {sparsity:.0%}, {samples} samples together")
    for step in program.steps:
        if not isinstance(step, Sums) or step.products * samples < 10_000:
            continue
        time, rows, places = seconds(program, step, samples), step.part.rows, step.part.places
        rate = step.products * samples / time
        # each state that is read comes once from a cache further away, each result goes there
        where = [np.arange(at, at + n) for at, _, n in step.part.segments.each.tolist()]
        read = np.unique(np.unique(rows.offsets)[:, None] + np.concatenate(where))
        touched = 4 * samples * (len(read) + places)
        found.add_row(
            step.name, f"{len(rows.values) / len(step.part.outs):.1f}",
            f"{1e6 * time / samples:.2f}", f"{rate / 1e9:.1f}", f"{rate / loop:.0%}",
            f"{touched / time / 1e9:.0f}",
        )  # fmt: skip
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", type=known, default=list(NETWORKS))
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--samples", type=int, default=16, choices=[8, 16, 32, 64])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DATA")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    dense, loop, copied = limits()
    console.print(
        f"dense product: {dense / 1e9:.1f} GFMA/s; the runtime's loop: {loop / 1e9:.1f} GFMA/s; "
        f"copy in memory: {copied / 1e9:.1f} GB/s"
    )
    for name in asked.networks:
        console.print(table(name, asked.sparsity, asked.samples, asked.data, loop))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
