"""How much faster a compiled model is than its network, by sparsity and batch size.

    python benchmarks/speed [NETWORK ...] [--sparsity 0.8 0.9 0.95 0.98] [--threads 1]

Each network is trained (ResNet-20: its weights are read from DATA), made sparse by `implicitize` on
1,000 images without sweeps, and timed in this process, every way in turns. A cell is the time of
the network's fastest way over the time of the way in question; above 1 it is faster. It gates
nothing.
"""

import argparse
import time
from pathlib import Path

import torch
from networks import NETWORKS, known, network

import simplicit
from simplicit.lab.evaluate import speed


def main() -> None:
    """Measure and print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", type=known, default=list(NETWORKS))
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--batch", nargs="+", type=int, default=list(speed.BATCHES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DATA")
    asked = parser.parse_args()
    for name in asked.networks:
        net, inputs = network(name, asked.data)
        print(f"\n{name}, microseconds a sample, and times faster than the fastest dense way\n")
        print(
            "| sparsity | threads | batch | fastest dense | µs | way | µs | times | compiled, s |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for sparsity in asked.sparsity:
            model = simplicit.implicitize(
                net, inputs, sparsity=sparsity, structure="layered", sweeps=0, workers=2
            )
            begin = time.monotonic()
            simplicit.compile(model, batch=64, threads=1)
            seconds = time.monotonic() - begin
            rows = speed.measure(
                name, net, model, inputs, batches=asked.batch, threads=asked.threads
            )
            for row in rows:
                least = speed.best(rows, True, row["threads"], row["batch"])
                assert least is not None
                before, after = (1e3 * r["milliseconds"] for r in (least, row))
                print(
                    f"| {sparsity:.0%} | {row['threads']} | {row['batch']} | "
                    f"{'network' if row['dense'] else 'model'} | {row['way']} | {after:.3g} | "
                    f"{before / after:.2f} | {seconds:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
