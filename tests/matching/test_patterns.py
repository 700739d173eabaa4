"""Patterns of zeros in whole models: they hold for every kind of layer, and through every stage."""

from functools import cache
from itertools import cycle, product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import simplicit
from example_networks import seeded
from shapes import unchecked
from simplicit import InputError
from simplicit import fit as fits
from simplicit.calibration.batches import batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.rows import rows_of
from simplicit.capture.read import capture
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.equations.network import StateEquations
from simplicit.matching.plan import anchor, row_problem, teacher_moments
from simplicit.matching.ways.patterns import patterned
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe
from simplicit.refine.finetune import finetune
from simplicit.sparsity.choice import METHODS, choose
from simplicit.sparsity.near import refit_near
from simplicit.sparsity.pattern import Blocks


class Recurrent(nn.Module):
    """One cell, used four times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(4, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x[:, 0]))
        for step in x[:, 1:].unbind(1):
            h = torch.relu(self.first(step) + self.again(h))
        return self.last(h)


NETWORKS = {
    "dense": lambda: nn.Sequential(
        *(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    ),
    "tokens": lambda: nn.Sequential(
        *(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    ),
    "convolutions": lambda: nn.Sequential(
        *(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, (2, 1)), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)),
    ),
    "groups": lambda: nn.Sequential(
        *(nn.Conv2d(8, 12, 3, 1, 1, groups=2), nn.ReLU()), *(nn.Flatten(), nn.Linear(108, 4))
    ),
    "transposed": lambda: nn.Sequential(
        *(nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.ReLU()), *(nn.Flatten(), nn.Linear(128, 4))
    ),
    "shared": Recurrent,
}

SHAPES = {
    "dense": (16,),
    "tokens": (3, 8),
    "convolutions": (4, 7, 6),
    "groups": (8, 3, 3),
    "transposed": (8, 2, 2),
    "shared": (4, 4),
}

PATTERNS: dict[str, dict[str, Any]] = {
    "2:4": {"pattern": "2:4"},
    "1:4, and a budget": {"pattern": "1:4", "sparsity": 0.85},
    "blocks along rows": {"blocks": (4, 1), "sparsity": 0.6},
    "blocks along channels": {"blocks": (1, 4), "sparsity": 0.5},
    "uneven blocks": {"blocks": (3, 3), "sparsity": 0.5},
}


@cache
def network(kind: str) -> nn.Module:
    return seeded(NETWORKS[kind]).eval()


def inputs(kind: str, seed: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(60, *SHAPES[kind], generator=random, dtype=torch.float64)


@cache
def read(kind: str) -> StateEquations:
    """The equations of `network`; kept, since reading takes as long as a fit."""
    return capture(network(kind), inputs(kind))


def quick_fit(equations: StateEquations, kind: str, recipe: Recipe) -> fits.Fit:
    """`fit` of a network that has been read."""
    with patch.object(fits, "capture", lambda *_: equations), unchecked():
        return fits.fit(network(kind), inputs(kind), recipe, workers=1)


@cache
def fitted(kind: str, name: str, support: str = "auto", sweeps: int = 0) -> ImplicitModel:
    # a recipe's own check of what would change nothing
    recipe = Recipe(structure="layered", support=support, sweeps=sweeps, **PATTERNS[name])  # pyright: ignore[reportArgumentType]
    return quick_fit(read(kind), kind, recipe).model


def grids(model: ImplicitModel) -> list[tuple[Tensor, Tensor]]:
    """Of each group of each weight, which weights there are: (channels, reads, places).

    Beside it the same for all of the block's rows and columns that are dead: what nothing reads,
    or a constant, may be zero in a block that is not.
    """
    found = []
    for equation in model.equations.layers:
        for term in equation.terms:
            on = (term.weight.detach() != 0).flatten(2) if term.weight.ndim > 2 else (
                term.weight.detach() != 0)[..., None]  # fmt: skip
            for group in on.chunk(term.map.groups):
                live = group.flatten(1).any(1)[:, None, None] & group.any(0)[None]
                found.append((group, live))
    return found


def holds(model: ImplicitModel, name: str) -> bool:
    options = PATTERNS[name]
    if "pattern" in options:
        n, m = (int(part) for part in options["pattern"].split(":"))
        return all(int(on.unflatten(1, (-1, m)).sum(2).max()) <= n for on, _ in grids(model))
    r, c = options["blocks"]
    for on, live in grids(model):
        for rows, alive in zip(on.split(r), live.split(r), strict=True):
            for block, lives in zip(rows.split(c, 1), alive.split(c, 1), strict=True):
                for place in range(block.shape[2]):
                    own = block[..., place][lives[..., place]]
                    if own.any() and not own.all():
                        return False
    return True


# every pattern with every kind, each by one of the methods in turn
@pytest.mark.parametrize(
    ("kind", "name", "support"),
    [(*pair, method) for pair, method in zip(product(NETWORKS, PATTERNS), cycle(METHODS))],
)
def test_a_pattern_holds_and_so_does_the_budget(kind, name, support):
    model = fitted(kind, name, support)
    assert holds(model, name)
    sparsity = PATTERNS[name].get("sparsity", 0.5)
    budget = round((1 - sparsity) * model.reference_nonzeros)
    largest = 9 if "blocks" in PATTERNS[name] else 1
    assert budget - 2 * largest < model.nonzeros <= budget
    blocked = "blocks" in PATTERNS[name]
    # not a pattern that any model of this sparsity has
    assert not holds(fitted(kind, "1:4, and a budget" if blocked else "uneven blocks"), name)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", PATTERNS)
def test_no_worse_than_the_largest_weights_of_the_pattern_refitted(kind, name):
    recipe = Recipe(structure="layered", **PATTERNS[name])
    stream, equations = batches(inputs(kind), 1000), read(kind)
    layers = rows_of(equations)
    frontier = Frontier(equations, stream, False, lambda *_: torch.zeros(0), None, None)
    with torch.no_grad():
        grams = teacher_moments(equations, layers, frontier, recipe, [0.0] * len(layers), None)
    patterns = patterned(recipe, layers, equations.layers)
    chosen: dict[str, float] = dict.fromkeys((*METHODS, "largest"), 0.0)
    for rows, pattern, groups in zip(layers, patterns, grams, strict=True):
        size = float(sum(gram.t2.sum() for gram in groups))
        for gram, W in zip(groups, rows.weights(equations.layers[rows.index]), strict=True):
            problem = row_problem(gram, recipe, rows.sources(equations), rows.biased)
            start = anchor(W, rows.biased)
            keep = min(pattern.most(W.shape[1]), W.shape[1] // 2)
            if isinstance(pattern, Blocks):
                keep = keep // 3 * 3
            found: dict[str, Tensor] = {
                m: choose(problem, [keep] * len(W), m, None, start, pattern) for m in METHODS
            }
            counts = found["elimination"][:, ~problem.free].count_nonzero(1)
            ranked = pattern.scores(start[:, ~problem.free]).argsort(
                dim=1, descending=True, stable=True
            )
            support = torch.ones_like(problem.gram.R, dtype=torch.bool)
            for row, order, count in zip(support, ranked, counts.tolist(), strict=True):
                row[order[count:]] = False
            found["largest"] = refit_near(problem, support, start)
            bare = RowProblem(problem.gram, Penalty())
            for method, own in found.items():
                chosen[method] += float(bare.objective(own).sum()) / size
    # neither is the best: where a row has two blocks, the larger one may be
    assert chosen["elimination"] <= 1.01 * chosen["largest"]
    assert chosen["splitting"] <= 1.01 * chosen["largest"]


@cache
def with_a_dead_state() -> StateEquations:
    """The dense network with one whose weights are spent again."""
    net = seeded(NETWORKS["dense"]).eval()
    first = next(net.children())
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight[3] = 0.0
        first.bias[3] = -1.0
    return capture(net, inputs("dense"))


@pytest.mark.parametrize("structure", ["layered", "triangular"])
@pytest.mark.parametrize("name", PATTERNS)
def test_sweeps_hold_a_pattern_and_grow_in_it(name, structure):
    recipe = Recipe(structure=structure, sweeps=5, **PATTERNS[name])
    found = quick_fit(with_a_dead_state(), "dense", recipe)
    assert {row["stage"] for row in found.budgets} >= {"sweep 1", "sweep 5"}
    assert holds(found.model, name)
    sparsity = PATTERNS[name].get("sparsity", 0.5)
    budget = round((1 - sparsity) * found.model.reference_nonzeros)
    assert found.model.nonzeros <= budget


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", ["2:4", "blocks along rows"])
def test_files_the_network_itself_and_training_keep_a_pattern(tmp_path, kind, name):
    model, net = fitted(kind, name), seeded(NETWORKS[kind]).eval()
    model.save(tmp_path / "model")
    assert holds(simplicit.load(tmp_path / "model"), name)
    # inputs that were not matched: on those that were, the outputs may be the network's already
    tuned = finetune(model, network(kind), inputs(kind, seed=4), epochs=3, lr=1e-3)
    assert holds(tuned, name) and not torch.equal(tuned.learned[0], model.learned[0])
    model.load_into(net)
    again = capture(net, inputs(kind)[:2])
    assert holds(ImplicitModel.from_equations(again, model.reference_nonzeros, "layered"), name)


def test_a_layer_that_m_does_not_divide_is_refused_by_name_and_may_be_skipped():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    u = torch.randn(50, 6)
    with pytest.raises(InputError, match=r"0 reads 6 .*skip=\['0'\] and structure='layered'"):
        simplicit.implicitize(net, u, pattern="2:4")
    model = simplicit.implicitize(net, u, pattern="2:4", skip=["0"], structure="layered")
    assert model.nonzeros <= 48 + 32 + 12
    for term in (e.terms[0] for e in model.equations.layers[1:]):
        assert int((term.weight != 0).unflatten(1, (-1, 4)).sum(2).max()) <= 2


@pytest.mark.parametrize(("pattern", "least"), [("2:4", "0.5"), ("1:4", "0.75"), ("3:8", "0.625")])
def test_a_sparsity_below_what_a_pattern_gives_is_refused_with_the_figure(pattern, least):
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    u = torch.randn(50, 16)
    with pytest.raises(InputError, match=f"sparsity=0.4: pattern {pattern} alone gives {least};"):
        simplicit.implicitize(net, u, pattern=pattern, sparsity=0.4)
    model = simplicit.implicitize(net, u, pattern=pattern, sparsity=float(least))
    assert model.sparsity >= float(least)  # what dead states had may find no room


@pytest.mark.parametrize("options", [
    {"structure": "full"}, {"constraint": "row"}, {"support": "relaxation"},
    {"objective": "robustness", "preset": "seed"},
])  # fmt: skip
@pytest.mark.parametrize("asked", [{"pattern": "2:4"}, {"blocks": (2, 1), "sparsity": 0.5}])
def test_what_cannot_hold_a_pattern_refuses_it_by_name(options, asked):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(InputError, match=rf"^{next(iter(asked))}="):
        simplicit.implicitize(net, torch.randn(50, 8), **options, **asked)


@pytest.mark.parametrize("wrong", [
    {"pattern": "4:2"}, {"pattern": "0:4"}, {"pattern": "2-4"}, {"pattern": "2:2"},
    {"blocks": (1, 1)}, {"blocks": (0, 4)},
    {"pattern": "2:4", "blocks": (4, 1)}, {"blocks": (4, 1), "sparsity": None},
])  # fmt: skip
def test_what_is_no_pattern_is_refused(wrong):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(InputError, match=r"^(pattern|blocks)=.*accepted"):
        simplicit.implicitize(net, torch.randn(50, 8), **{"sparsity": 0.5, **wrong})
