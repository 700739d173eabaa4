"""Clean and certified accuracy of a run's models at one radius, on the whole test set.

    simplicit run configs/fashion-mnist-certified.yaml --out RUN
    python benchmarks/certified.py RUN [--eps 0.1] [--samples 10000]

Of every model of a finished run and of all its seeds: what is classified right, and what `proved`
proves in the ball cut at [0, 1], by boxes alone and with backward substitution where boxes do not
decide and PGD leaves a sample right. Beside them what PGD leaves right, and how many proofs by
boxes it contradicts. It gates nothing.
"""

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import simplicit
from simplicit.bounds.certify import proved
from simplicit.data import datasets
from simplicit.lab.config import config
from simplicit.lab.evaluate.attacks import pgd
from simplicit.lab.run.run import folder_of
from simplicit.lab.run.seed import SeedRun

BOUNDS = (0.0, 1.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--samples", type=int, default=10_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = config.load_kept(asked.run)
    dataset = datasets.load(settings.evaluation.dataset, settings.data_dir)
    table = Table("seed", "model", "clean", "PGD", "boxes", "substitution", "contradicted", "s")
    for seed in settings.seeds:
        folder = folder_of(settings, asked.run, seed)
        run = SeedRun(settings, dataset, seed, folder)
        explicit = run.build()
        x, y = (t[: asked.samples] for t in (run.dataset.test_inputs, run.dataset.test_labels))
        models: dict[str, nn.Module] = {"explicit": explicit, "implicit": simplicit.load(folder)}
        if settings.implicit.finetune:
            models["finetuned"] = simplicit.load(folder / "finetuned")
        for name, model in models.items():
            begin = time.process_time()
            table.add_row(str(seed), name, *_row(model, x, y, asked.eps), _seconds(begin))
    Console(width=100).print(table)


def _row(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> list[str]:
    model = model.double().eval().requires_grad_(False)
    x = x.double()
    clean = model(x).argmax(1) == y
    moved = torch.cat([
        pgd(model, u, own, eps, BOUNDS) for u, own in zip(x.split(500), y.split(500), strict=True)
    ])  # fmt: skip
    stays = clean & (model(moved).argmax(1) == y)
    boxes = proved(model, x, y, eps, BOUNDS, methods=["interval"])
    rest = (stays & ~boxes).nonzero()[:, 0]
    every = boxes.clone()
    every[rest] = proved(model, x[rest], y[rest], eps, BOUNDS, methods=["linear"])
    shares = [f"{100 * float(part.double().mean()):.2f}" for part in (clean, stays, boxes, every)]
    return [*shares, str(int((boxes & ~stays).sum()))]


def _seconds(begin: float) -> str:
    return f"{time.process_time() - begin:.0f}"


if __name__ == "__main__":
    main()
