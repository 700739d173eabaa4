"""Small networks with random weights, their calibration inputs, and quick fits of them."""

from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from simplicit import fit
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.recipe import Recipe

PHIS: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "leaky relu": nn.LeakyReLU(0.2),
    "steep": nn.LeakyReLU(1.5),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
}

SIZES = (6, 5, 4, 3)
N0 = 62
"""Weights of a network 6-5-4-3."""


def teacher(phi: str = "relu", *, bias: bool = True, seed: int = 0) -> nn.Sequential:
    """A network 6-5-4-3."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in zip(SIZES[:-1], SIZES[1:], strict=True):
        linear = nn.Linear(inputs, outputs, bias=bias)
        with torch.no_grad():
            linear.weight.normal_(std=1.5 * inputs**-0.5, generator=generator)
            if bias:
                linear.bias.normal_(std=0.3, generator=generator)
        layers += [linear, PHIS[phi]]
    return nn.Sequential(*layers[:-1])


def samples(m: int = 200, seed: int = 1) -> Tensor:
    return torch.rand(m, SIZES[0], generator=torch.Generator().manual_seed(seed)) * 2 - 1


@cache
def read(phi: str = "relu", *, bias: bool = True) -> StateEquations:
    """The equations of `teacher`; kept, since reading takes a while."""
    return capture(teacher(phi, bias=bias), samples(8))


def quick_fit(
    recipe: Recipe, phi: str = "relu", *, bias: bool = True, inputs: Any = None, **options: Any
) -> fit.Fit:
    """`fit` of `teacher`, which is not read again."""
    net, inputs = teacher(phi, bias=bias), samples() if inputs is None else inputs
    with patch.object(fit, "capture", lambda *_: read(phi, bias=bias)):
        return fit.fit(net, inputs, recipe, **options)
