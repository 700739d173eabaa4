"""Certified radii of a run's networks: by backward substitution, and on branches.

    simplicit run configs/sparsity.yaml --out RUN
    python benchmarks/radii.py RUN [--samples 16]

The explicit network and the implicit model of a finished run, on its first test samples: the mean
l∞ radius in which the class provably stays, and seconds of a processor a sample. It gates nothing.
"""

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import simplicit
from simplicit.data import datasets
from simplicit.lab.config import config
from simplicit.lab.run.seed import SeedRun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=16)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = config.load_kept(asked.run)
    dataset = datasets.load(settings.evaluation.dataset, settings.data_dir)
    run = SeedRun(settings, dataset, settings.seeds[0], asked.run)
    x = run.dataset.test_inputs[: asked.samples]
    y = run.dataset.test_labels[: asked.samples]
    table = Table("model", "bound", "mean radius", "times", "s a sample")
    for name, model in (("explicit", run.build()), ("implicit", simplicit.load(asked.run))):
        first = 0.0
        for method in ("linear", "branches"):
            begin = time.process_time()
            mean = float(simplicit.certify(model, x, y, 0.01, methods=[method]).radius.mean())
            seconds = (time.process_time() - begin) / len(x)
            first = first or mean
            table.add_row(name, method, f"{mean:.4f}", f"{mean / first:.2f}", f"{seconds:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
