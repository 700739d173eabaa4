"""Layers by factors at equal weights: regressions beside two decompositions of the weights.

    python benchmarks/low_rank.py configs/cifar10-resnet20.yaml --sparsity 0.5
    python benchmarks/low_rank.py configs/fashion-mnist-300-100.yaml --sparsity 0.5 0.75

`svd` cuts the singular values of each layer's weights, `weighted svd` those of the weights in the
metric of what the layer reads, on the same calibration inputs, with the ranks that `rank: auto`
finds. Batch norm is folded into the weights before. Nothing is trained. `benchmarks/structured` has
those that leave every layer the same part. `--held-out` measures on training images that
are not among the calibration inputs, in place of the test set: choices are made there.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from simplicit.calibration.batches import batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.moments import Readings
from simplicit.calibration.rows import rows_of
from simplicit.capture.read import capture
from simplicit.data import datasets as data
from simplicit.data.augment import augmented
from simplicit.equations.network import StateEquations
from simplicit.explicit import accuracy
from simplicit.fit import fit
from simplicit.lab.config import config
from simplicit.lab.run.seed import SeedRun
from simplicit.model.factored import CHANNELS, Factors, factored
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe
from simplicit.sparsity.low_rank import Regression, regress
from simplicit.sparsity.near import RIDGE

HELD_OUT = 3000
"""Images at most."""

Ranks = Mapping[str, int]


def main() -> None:
    """Print a line a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5])
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument(
        "--single",
        type=int,
        help="also factors of this rank and single weights, and single weights alone",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = config.load(options.config, ["implicit.sparsity=0.5", "evaluation.speed=false"])
    dataset = data.load(settings.evaluation.dataset, settings.data_dir)
    with TemporaryDirectory() as folder:
        run = SeedRun(settings, dataset, settings.seeds[0], Path(folder))
        run.explicit_row()  # trains, or loads
        net = run.build().eval()
    dataset, wanted = run.dataset, settings.implicit
    chosen = data.sample(len(dataset.train_labels), wanted.training_size, settings.seeds[0])
    u = augmented(dataset.train_inputs[chosen], wanted.augmentation, settings.seeds[0])
    judged = dataset.test_inputs, dataset.test_labels
    if options.held_out:
        others = torch.ones(len(dataset.train_labels), dtype=torch.bool)
        others[chosen] = False
        some = others.nonzero()[:HELD_OUT, 0]
        judged = dataset.train_inputs[some], dataset.train_labels[some]

    def show(name: str, model: torch.nn.Module, seconds: float = 0.0) -> None:
        found = 100 * accuracy(model, *judged, 100)
        kept = f"{model.nonzeros:9,}" if isinstance(model, ImplicitModel) else " " * 9
        print(f"{name:32} {kept} {found:7.2f} % {seconds:7.1f} s", flush=True)

    show("network", net)
    equations = capture(net, u[:2])
    plain, weighted = decomposed(equations, u)
    for sparsity in options.sparsity:
        print(f"sparsity {sparsity}")

        def matched(name: str, recipe: Recipe) -> ImplicitModel:
            begin = time.monotonic()
            model = fit(net, u, recipe, workers=1, batch_size=settings.evaluation.bs).model
            show(name, model, time.monotonic() - begin)
            return model

        ranks = ranks_of(matched("rank auto", Recipe(rank="auto", sparsity=sparsity)))
        show("svd, same ranks", cut(equations, plain, ranks))
        show("weighted svd, same ranks", cut(equations, weighted, ranks))
        if options.single:
            name = f"rank {options.single} and single weights"
            matched(name, Recipe(rank=options.single, sparsity=sparsity))
            matched("single weights", Recipe(sparsity=sparsity, structure="layered"))


def decomposed(
    equations: StateEquations, u: Tensor
) -> tuple[dict[str, Regression], dict[str, Regression]]:
    """Decompose the weights of all layers.

    Returns:
        By layer the regressions without a metric, and in that of what the layer reads.
    """
    plain, weighted = {}, {}
    frontier = Frontier(equations, batches(u, 100), own=False)
    for rows in rows_of(equations):
        while frontier.index < rows.index:
            frontier.advance(equations.layers[frontier.index])
        equation = equations.layers[rows.index]
        (W,) = rows.weights(equation).double()
        (gram, *_) = Readings(rows, equation, frontier, False).moments()
        G = gram.G.clone()
        G.diagonal().add_(RIDGE * G.diagonal().mean())
        eye = torch.eye(len(W), dtype=torch.float64)
        plain[rows.name] = regress(torch.eye(len(G), dtype=torch.float64), W, eye)
        weighted[rows.name] = regress(G, W @ G, eye)
    return plain, weighted


def ranks_of(model: ImplicitModel) -> Ranks:
    """Read the ranks of a model's layers.

    Returns:
        By layer; layers without factors are not among them.
    """
    channels = (e for e in model.equations.hidden if e.name.endswith(CHANNELS))
    return {e.name.removesuffix(CHANNELS): len(e.terms[0].weight) for e in channels}


def cut(equations: StateEquations, found: Mapping[str, Regression], ranks: Ranks) -> ImplicitModel:
    """Write layers by the first singular triples of their weights.

    Returns:
        The model; layers without a rank are as they were.
    """
    factors = []
    for rows in rows_of(equations):
        if rank := ranks.get(rows.name):
            own = found[rows.name]
            left, right = own.left[None, :, :rank], own.right[None, :rank]
            factors.append(Factors(rows.index, rows.slots, left, right, 0 * (left @ right)))
    return ImplicitModel.from_equations(factored(equations, factors))


if __name__ == "__main__":
    main()
