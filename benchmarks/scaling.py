"""How far workers help on a network of usual size: simulated seconds, efficiency, what decides.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --network resnet18 --samples 4000 --workers 16 256
    python benchmarks/scaling.py --bandwidth 1000 --latency 0.0005

By default torchvision's ResNet-50 at 224 × 224, 1,000 inputs, 80 %, random weights; torchvision is
installed apart. Rates are timed on this machine, see `simplicit plan`. Prints the plan, then a line
for each number of workers with the seconds that the simulation itself takes. It gates nothing.
"""

import argparse
import sys
import time

from rich.console import Console
from rich.table import Table

from simplicit.lab.plan import plan as planning
from simplicit.lab.plan import tables as shown
from simplicit.lab.plan.makespan import makespan

WIDE = 160
"""Columns where no terminal says how many there are."""


def decided(found: planning.Plan) -> Table:
    """Write what decides with so many workers.

    Args:
        found: The plan.

    Returns:
        A table with a row for each of its numbers of workers.
    """
    table = Table(title="what decides")
    for heading in ("workers", "s", "efficiency", "simulated in s"):
        table.add_column(heading, justify="right")
    for heading in ("lost most to", "there most in"):
        table.add_column(heading)
    for run in found.runs:
        begin = time.perf_counter()
        for stage in found.stages:
            makespan(stage, run.workers, found.link)
        took, own = time.perf_counter() - begin, run.decides
        table.add_row(
            f"{run.workers}",
            f"{run.seconds:,.0f}",
            f"{100 * found.one.seconds / run.workers / run.seconds:.1f} %",
            f"{took:.2f}",
            f"{shown.REASONS[own.reason]}, {own.every:,.0f} s" if own else "–",
            f"{own.where}: {own.seconds:,.0f} s, a piece {own.longest:.2f} s" if own else "–",
        )
    return table


def main() -> None:
    """Plan and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50", help="a name of torchvision.models")
    parser.add_argument("--shape", default="3,224,224")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--bandwidth", type=float, help="MB/s; what is copied here without")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    chosen = parser.parse_args()
    target = f"torchvision.models:{chosen.network}"
    asked = planning.asked_of(target, [], chosen.shape, chosen.samples, chosen.sparsity)
    found = planning.plan(asked, chosen.workers, chosen.bandwidth, chosen.latency)
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for table in (*shown.tables(found), decided(found)):
        console.print(table)
    for note in shown.notes(found):
        print(note)


if __name__ == "__main__":
    main()
