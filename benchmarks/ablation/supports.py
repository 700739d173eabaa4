"""How good supports are beside those of exact elimination, layer by layer, and how long they take.

    python benchmarks/ablation/supports.py configs/cifar10-resnet20.yaml
    python benchmarks/ablation/supports.py configs/cifar10-resnet20.yaml --parts 0.05 --rows 16

For each layer of at least `--features` weights a row, prints the loss of the splitting's supports,
refitted, as a part of that of elimination's, mean over the rows, with other levels and steps beside
the defaults; and processor seconds on one thread. Rows are those of the network's own states.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch

from simplicit.calibration.batches import batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.moments import Readings
from simplicit.calibration.rows import rows_of
from simplicit.capture.read import capture
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.data import datasets as data
from simplicit.lab.config import config
from simplicit.lab.run.seed import SeedRun
from simplicit.matching.plan import row_problem
from simplicit.recipe import Recipe
from simplicit.sparsity import splitting
from simplicit.sparsity.elimination import of_rows
from simplicit.sparsity.refit import refit

DEFAULT = splitting.LEVELS
VARIANTS = {
    "default": (DEFAULT, splitting.STEPS),
    "60 steps": (DEFAULT, 60),
    "factors of 4": (DEFAULT[::2], 2 * splitting.STEPS),
    "first 6 levels": (DEFAULT[:6], splitting.STEPS),
    "10 steps": (DEFAULT, 10),
}
"""Levels ρ, and steps at each."""


def main() -> None:
    """Print a line a layer and part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="a YAML file whose network is trained already")
    parser.add_argument("--parts", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = config.load(options.config, ["implicit.sparsity=0.5"])
    dataset = data.load(settings.evaluation.dataset, settings.data_dir)
    with TemporaryDirectory() as folder:
        run = SeedRun(settings, dataset, settings.seeds[0], Path(folder))
        net = run.build().eval()
    u = run.dataset.train_inputs[: options.samples]
    equations, recipe = capture(net, u[:2]), Recipe(sparsity=0.5)
    frontier = Frontier(equations, batches(u, 100), own=False)
    print(f"{'layer':18} {'d':>5} {'keep':>5} {'elimination':>12}", end=" ")
    print(" ".join(f"{name:>22}" for name in VARIANTS))
    for rows in rows_of(equations):
        while frontier.index < rows.index:
            frontier.advance(equations.layers[frontier.index])
        if rows.weights(equations.layers[rows.index]).shape[2] < options.features:
            continue
        (gram, *_) = Readings(rows, equations.layers[rows.index], frontier, True).moments()
        problem = row_problem(gram, recipe, rows.sources(equations))
        compare(rows.name, problem.select(slice(0, options.rows)), options.parts)


def compare(name: str, problem: RowProblem, parts: list[float]) -> None:
    """Print the lines of one layer."""
    d = int((~problem.free).sum())
    for part in parts:
        keep = [round(part * d)] * len(problem.gram.R)
        exact, seconds = measured(of_rows, problem, keep)
        line = f"{name:18} {d:5} {keep[0]:5} {seconds:10.2f} s"
        for levels, steps in VARIANTS.values():
            splitting.LEVELS, splitting.STEPS = levels, steps
            found, seconds = measured(splitting, problem, keep)
            line += f" {float((found / exact).mean()):11.3f}, {seconds:7.2f} s"
        print(line, flush=True)


def measured(
    method: ModuleType, problem: RowProblem, keep: list[int]
) -> tuple[torch.Tensor, float]:
    """Choose supports, and time it.

    Returns:
        The losses after a refit, and processor seconds of the choice.
    """
    begin = time.process_time()
    support = method.supports(problem, keep)
    seconds = time.process_time() - begin
    bare = RowProblem(problem.gram, Penalty())
    return bare.objective(refit(problem, support)), seconds


if __name__ == "__main__":
    main()
