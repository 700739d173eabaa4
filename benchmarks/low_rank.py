"""Layers by factors at equal weights: regressions beside two decompositions of the weights.

    python benchmarks/low_rank.py configs/cifar10-resnet20.yaml --sparsity 0.5
    python benchmarks/low_rank.py configs/fashion-mnist-300-100.yaml --sparsity 0.5 0.75
    python benchmarks/low_rank.py configs/sparsity.yaml --full 1 2 4 8 16 --held-out

`svd` cuts the singular values of each layer's weights, `weighted svd` those of the weights in the
metric of what the layer reads, on the same calibration inputs, with the ranks that `rank: auto`
finds. Batch norm is folded into the weights before. Nothing is trained. `benchmarks/structured` has
those that leave every layer the same part. `--held-out` measures on training images that
are not among the calibration inputs, in place of the test set: choices are made there.

`--full` is for a full A of these ranks, and nothing else: accuracy, seconds, and the relative gaps
of the convex problem and of the refit. Behind them are losses relative to that of A = 0, rows
weighed by what an error costs: of the convex solution, of the refits in its row space and in that
of the regression without a ball, and the least of any A of the rank, which no ball lets be beaten.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from simplicit.calibration.ball import RowConstraint
from simplicit.calibration.batches import batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.moments import Readings
from simplicit.calibration.rows import rows_of
from simplicit.calibration.structure import structured
from simplicit.capture.read import capture
from simplicit.data import datasets as data
from simplicit.data.augment import augmented
from simplicit.equations.network import StateEquations
from simplicit.explicit import accuracy
from simplicit.fit import fit
from simplicit.lab.config import config
from simplicit.lab.run.seed import SeedRun
from simplicit.matching.plan import anchor, row_problem
from simplicit.matching.ways.low_rank_full import Reduced
from simplicit.model.factored import CHANNELS, Factors, factored
from simplicit.model.implicit import ImplicitModel
from simplicit.outputs.sensitivity import sensitivity
from simplicit.recipe import Recipe
from simplicit.solvers.nuclear import solve_to_rank, solve_within
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
    parser.add_argument("--full", type=int, nargs="+", help="ranks of a full A")
    parser.add_argument("--kappa", type=float, default=0.99, help="of its ball")
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
    if options.full:
        for rank in options.full:
            recipe = Recipe(structure="full", rank=rank, kappa=options.kappa)
            begin = time.monotonic()
            found = fit(net, u, recipe, workers=1, batch_size=settings.evaluation.bs)
            show(f"full A of rank {rank}", found.model, time.monotonic() - begin)
            states = [row for row in found.rows if row["layer"] == "states"]
            gaps = [f"{row['relative_gap']:.1e}" for row in states[-2:]]
            print("    gaps", *gaps, "losses", *spaces(net, u, recipe), flush=True)
        return
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


def spaces(net: torch.nn.Module, u: Tensor, recipe: Recipe) -> list[str]:
    """Compare row spaces on the network's own states.

    Returns:
        Losses: of the convex solution, of the refit in its space, of that in the regression's
        space, and the bound.
    """
    assert isinstance(recipe.rank, int)
    network = capture(net, u[:2])
    full = structured(network, "full")
    constraint = RowConstraint(network, "states", recipe.kappa)
    states, outputs = rows_of(full)
    felt, _ = sensitivity(network, full, [states, outputs], batches(u, 1000))
    frontier = Frontier(full, batches(u, 1000), own=False)
    (gram,) = Readings(states, full.layers[0], frontier, True).moments()
    ball = constraint.ball(states, full, 1)
    problem = row_problem(gram, recipe, states.sources(full), True, ball)
    (W,) = states.weights(full.layers[0])
    rows = Reduced.of(problem, felt.coupling[0], anchor(W, True)).rows
    convex = solve_to_rank(rows, recipe.rank, recipe.tol)
    best = regress(rows.G, rows.R, rows.S)
    own = solve_within(rows, convex.basis, recipe.tol).objective
    other = torch.linalg.qr(best.right[: recipe.rank].T).Q
    losses = [
        rows.loss(convex.A),
        own,
        solve_within(rows, other, recipe.tol).objective,
        float(best.excess[recipe.rank]),
    ]
    return [f"{loss / rows.unit:.4f}" for loss in losses]


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
