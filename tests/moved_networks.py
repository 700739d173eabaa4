"""Networks of every kind for the tests of outputs, as they are and with their weights moved."""

from functools import cache

import torch
from torch import Tensor, nn

import teachers
from conv_networks import CONVOLUTIONAL, Stages, images, structured
from example_networks import captured, seeded
from simplicit.calibration.rows import rows_of
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.equations.operators import with_weights
from simplicit.outputs.sweeps.sweeps import Sweeps

MANY = "many outputs"
RESNET = "shortcut convolutions"

MATRICES = ["residual", "concatenation"]
KINDS = [
    *MATRICES,
    *("functional", "in place, reused", "concatenation, images"),
    *("grouped, dilated, uneven", "transposed convolutions", "convolution at the end", "tokens"),
    *("group norm", "encoder layer", MANY),
]
"""Shortcuts, max-pools, groups, shared positions, kept operations, sources read together."""


@cache
def many() -> StateEquations:
    """More outputs than have their derivatives computed one by one."""
    net = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 3, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 6)),
            *(nn.ReLU(), nn.Linear(6, 20)),
        )
    )
    return capture(net, images())


@cache
def resnet() -> StateEquations:
    """Three blocks, of which two have a convolution in their shortcut."""
    return capture(seeded(lambda: Stages(3, 1, 4, 5)), images())


def network(name: str) -> StateEquations:
    if name in teachers.PHIS:
        return teachers.read(name)
    if name == MANY:
        return many()
    if name == RESNET:
        return resnet()
    if name == "concatenation, images":
        return structured("concatenation")
    return structured(name) if name in CONVOLUTIONAL and name not in MATRICES else captured(name)


def inputs(equations: StateEquations, m: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(m, equations.p, generator=random, dtype=torch.float64).to(equations.like)


def moved(equations: StateEquations, shift: float, seed: int = 0) -> StateEquations:
    """The network with other weights, relative to their size; shared ones stay shared."""
    random, new = torch.Generator().manual_seed(seed), {}
    for e in equations.layers:
        for term in e.terms:
            own = term.weight
            change = torch.randn(own.shape, generator=random, dtype=torch.float64).to(own)
            size = own.square().mean().sqrt()
            new.setdefault(id(own), own + shift * size * change * (own != 0))
    weights = [[new[id(t.weight)] for t in e.terms] for e in equations.layers]
    return with_weights(equations, weights, [None] * len(equations.layers))


def job(name: str, shift: float = 0.0, m: int = 60, **options) -> tuple[Sweeps, Tensor]:
    """Sweeps of a moved network, and their inputs."""
    return job_of(network(name), shift, m, **options)


def job_of(
    teacher: StateEquations, shift: float = 0.0, m: int = 60, bias: bool = True, **options
) -> tuple[Sweeps, Tensor]:
    u = inputs(teacher, m)
    with torch.no_grad():
        T = teacher.replay(u)[1]
    model = moved(teacher, shift)
    return Sweeps(model, rows_of(model, bias=bias), u, T, **options), u
