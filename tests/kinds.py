"""One small network of every kind, its calibration inputs, and quick fits of it."""

from collections.abc import Callable
from functools import cache
from typing import Any, get_args
from unittest.mock import patch

import torch
from torch import Tensor, nn

from conv_networks import MatrixPerChannel, images
from example_networks import seeded
from shapes import unchecked
from simplicit import fit
from simplicit.calibration.structure import Structure
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "matrices": lambda: nn.Sequential(
        *(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    ),
    "convolutions": lambda: nn.Sequential(
        *(nn.Conv2d(1, 2, 2, 2), nn.BatchNorm2d(2), nn.ReLU()),
        *(nn.Conv2d(2, 4, (2, 1), groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
    ),
    "tokens": lambda: nn.Sequential(
        *(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU()),
        *(nn.Linear(3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)),
    ),
    "kept operations": lambda: nn.Sequential(
        *(nn.Linear(6, 4), nn.ReLU(), MatrixPerChannel(2, 4, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2, 4)),
    ),
}
"""All with ReLU. The last one keeps 8 of its 40 weights as they are."""

SHAPES = {
    "matrices": (4,),
    "convolutions": (1, 4, 4),
    "tokens": (3, 4),
    "kept operations": (2, 6),
}
"""Of a sample."""

STRUCTURES: tuple[Structure, ...] = get_args(Structure)

CASES = [
    *(("matrices", structure) for structure in STRUCTURES),
    *((kind, "layered") for kind in NETWORKS if kind != "matrices"),
]
"""Every kind in every structure it can have."""


@cache
def network(kind: str) -> nn.Module:
    """The network in evaluation mode, its classes all there; kept: tests do not change it."""
    net = seeded(NETWORKS[kind]).eval()
    *_, last = net.children()
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias -= net(inputs(kind)).mean(0)
    return net


@cache
def inputs(kind: str) -> Tensor:
    return images(40, SHAPES[kind])


@cache
def read(kind: str) -> StateEquations:
    """The equations of `network`; kept, since reading takes a while."""
    return capture(network(kind), inputs(kind))


def quick_fit(kind: str, recipe: Recipe, u: Tensor | None = None, **options: Any) -> fit.Fit:
    """`fit` of `network`, which is not read again; with checks it runs where `fit` is called."""
    with patch.object(fit, "capture", lambda *_: read(kind)), unchecked():
        given = inputs(kind) if u is None else u
        return fit.fit(network(kind), given, recipe, **{"workers": 1, **options})


@cache
def fitted(kind: str, recipe: Recipe) -> fit.Fit:
    """`quick_fit` of a recipe, kept: tests do not change it."""
    return quick_fit(kind, recipe)


def numbers(model: ImplicitModel) -> Tensor:
    """All weights and full biases, one behind the other."""
    parts = [torch.zeros(0, dtype=torch.float64)]
    for equation in model.equations.layers:
        parts += [term.weight.detach().flatten() for term in equation.terms]
        parts += [] if equation.full_bias is None else [equation.full_bias.detach()]
    return torch.cat(parts)


def same(one: ImplicitModel, two: ImplicitModel) -> bool:
    """Whether two models are the same to the bit."""
    return one.structure == two.structure and torch.equal(numbers(one), numbers(two))
