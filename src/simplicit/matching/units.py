"""Which units of a network go, and what each layer of the smaller one is to be matched with."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.calibration.skipped import Layer, Place
from simplicit.convex.gram import Gram
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.matching.plan import anchor, row_problem
from simplicit.recipe import Recipe
from simplicit.sparsity.near import normal_equations
from simplicit.units.elimination import Order, Reader, Use, eliminate
from simplicit.units.found import STAYS, Units

Coupling = Sequence[Sequence[Tensor]]
"""For each layer and group, how the outputs couple its rows."""


def readers_of(
    equations: StateEquations,
    layers: Sequence[Rows],
    units: Units,
    grams: Sequence[Sequence[Gram]],
    coupling: Coupling,
    recipe: Recipe,
) -> list[Reader]:
    """Write what the outputs lose by units, layer by layer.

    Args:
        equations: The network.
        layers: Its rows.
        units: Its units.
        grams: Moments of each layer's groups, on the network's own states.
        coupling: How the outputs couple the rows of each.
        recipe: What is asked for.

    Returns:
        Those whose rows all read the same features; kernels of groups go with their rows.
    """
    found = []
    for rows, own, felt in zip(layers, grams, coupling, strict=True):
        if rows.groups > 1:
            continue
        e = equations.layers[rows.index]
        problem = row_problem(own[0], recipe, rows.sources(equations), rows.biased)
        G, R = normal_equations(problem, anchor(rows.weights(e)[0], rows.biased))
        read = F.pad(_features(rows, units), (0, int(rows.biased)), value=STAYS)
        channels = units.channels[rows.index][rows.terms[0]]
        found.append(Reader(G, R, felt[0], channels.to(G.device), read.to(G.device)))
    return found


def uses_of(
    equations: StateEquations,
    layers: Sequence[Rows],
    units: Units,
    left: Mapping[Place, Layer],
    worth: Sequence[float],
) -> list[Use]:
    """Write what units take of the products of each layer.

    Args:
        equations: The network.
        layers: Its rows.
        units: Its units.
        left: Terms that stay as they are.
        worth: For each equation, what a product of one weight is worth.

    Returns:
        One entry a layer, those that stay as they are included.
    """
    found = []
    for rows in layers:
        e, total = equations.layers[rows.index], sum(worth[u.index] for u in (rows, *rows.uses))
        read = _features(rows, units) if rows.groups == 1 else torch.full((1,), STAYS)
        each = rows.weights(e).shape[2]
        found.append(Use(units.channels[rows.index][rows.terms[0]], read, each, total))
    for (index, _), layer in left.items():
        count, each = layer.weight.flatten(1).shape
        stays = torch.full((1,), STAYS)
        found.append(Use(stays.expand(count), stays.expand(each), each, worth[index]))
    return found


def products(equations: StateEquations) -> list[float]:
    """Count how often each equation applies a weight.

    Args:
        equations: The network.

    Returns:
        Positions of its terms.
    """
    return [float(e.terms[0].map.positions) if e.terms else 0.0 for e in equations.layers]


def chosen(
    count: int, readers: Sequence[Reader], uses: Sequence[Use], part: float, name: str
) -> Order:
    """Choose the units that go.

    Args:
        count: Units.
        readers: What the outputs lose by them.
        uses: What is saved by them.
        part: Part of all products that is to go.
        name: Of the option that asks for it.

    Returns:
        The order, down to the budget.

    Raises:
        InputError: If the units do not suffice.
    """
    whole = sum(use.whole for use in uses)
    order = eliminate(count, readers, uses, (1 - part) * whole)
    least = order.left[-1] if order.left else whole
    if least > (1 - part) * whole:
        raise InputError(
            f"{name}={part:g}: the network's units allow {1 - least / whole:.3g} at most"
        )
    return order


def staying(count: int, order: Order) -> Bool[Tensor, " units"]:
    """Say which units stay.

    Args:
        count: Units.
        order: Those that go.

    Returns:
        True for the others.
    """
    stay = torch.ones(count, dtype=torch.bool)
    stay[order.units] = False
    return stay


def _features(rows: Rows, units: Units) -> Tensor:
    return torch.cat([units.features[rows.index][slot[0]][0] for slot in rows.slots])
