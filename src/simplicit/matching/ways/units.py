"""Which units of a network go, and what each layer of the smaller one is to be matched with."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.calibration.skipped import Layer, Place
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.matching.estimate import PRICES
from simplicit.matching.plan import Plan, Posed, Share, anchor
from simplicit.matching.records import Row
from simplicit.recipe import Recipe
from simplicit.sparsity.near import normal_equations
from simplicit.system import memory, progress
from simplicit.units.clock import faster, worth
from simplicit.units.elimination import Order, Reader, Use, eliminate
from simplicit.units.found import STAYS, Units
from simplicit.units.narrow import Narrow, narrow


def readers_of(
    equations: StateEquations,
    layers: Sequence[Rows],
    units: Units,
    posed: Posed,
) -> list[Reader]:
    """Write what the outputs lose by units, layer by layer.

    Args:
        equations: The network.
        layers: Its rows.
        units: Its units.
        posed: The row problems on the network's own states, and what weighs them.

    Returns:
        Those whose rows all read the same features; kernels of groups go with their rows.
    """
    found = []
    for rows, own, felt in zip(layers, posed.problems, posed.coupling, strict=True):
        if rows.groups > 1:
            continue
        e = equations.layers[rows.index]
        G, R = normal_equations(own[0], anchor(rows.weights(e)[0], rows.biased))
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


def plan_units(
    network: StateEquations,
    equations: StateEquations,
    layers: Sequence[Rows],
    units: Units,
    left: Mapping[Place, Layer],
    recipe: Recipe,
    posed: Posed,
    example: Tensor,
) -> Bool[Tensor, " units"]:
    """Choose the units that go, for the budget of a recipe.

    Args:
        network: The network as captured.
        equations: The same in the structure that is solved.
        layers: Its rows.
        units: Its units.
        left: Terms that stay as they are.
        recipe: With one of sparsity, flops and speedup.
        posed: The row problems on the network's own states.
        example: Some samples.

    Returns:
        True for the units that stay.

    Raises:
        InputError: If there are no units, or the budget cannot be met by taking them out.
    """
    if not units.count:
        raise InputError(
            "pattern='channels': the network has no units that can go: all of its states are read "
            "or written by skipped layers or by operations that are kept as they are"
        )
    numbers = sum(4.0 * r.shape[0] ** 2 for r in (p[0].gram.G for p in posed.problems))
    memory.require(8 * numbers, "the prices of all units", equations.like.device)
    readers = readers_of(equations, layers, units, posed)
    each = [1.0] * len(equations.layers) if recipe.sparsity is not None else products(equations)
    if recipe.speedup is not None:
        each = worth(equations)
    uses = uses_of(equations, layers, units, left, each)
    whole, goal = sum(use.whole for use in uses), 0.0
    if recipe.flops is not None:
        goal = (1 - recipe.flops) * whole
    elif recipe.sparsity is not None:
        goal = (1 - recipe.sparsity) * network.nonzeros - sum(network.kept_weights.values())
    with progress.task(PRICES, total=1) as step:
        order = eliminate(units.count, readers, uses, goal)
        step(1, f"{len(order.units)} of {units.count} units")
    least = order.left[-1] if order.left else whole
    if recipe.speedup is not None:
        return _by_the_clock(equations, units, order, recipe.speedup, example)
    if least > goal:
        name = "flops" if recipe.flops is not None else "sparsity"
        most = 1 - least / whole if name == "flops" else 1 - least / network.nonzeros
        raise InputError(
            f"{name}={getattr(recipe, name):g}: with one unit of each layer left it would be "
            f"{max(most, 0.0):.3f}; accepted is less than that"
        )
    return _staying(units.count, order.units)


# the fewest units without which the modules are fast enough
def _by_the_clock(
    equations: StateEquations, units: Units, order: Order, speedup: float, example: Tensor
) -> Tensor:
    def measured(count: int) -> float:
        stay = _staying(units.count, order.units[:count])
        return faster(equations, narrow(equations, units, stay).equations, example)

    low, high = 0, len(order.units)
    if (most := measured(high)) < speedup:
        raise InputError(
            f"speedup={speedup:g}: with one unit of each layer left it is {most:.2f} here; "
            "accepted is less than that"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if measured(middle) >= speedup else (middle, high)
    return _staying(units.count, order.units[:high])


def _staying(count: int, gone: Sequence[int]) -> Bool[Tensor, " units"]:
    stay = torch.ones(count, dtype=torch.bool)
    stay[list(gone)] = False
    return stay


def whole_shares(
    before: Sequence[Rows], layers: Sequence[Rows], fewer: Narrow, posed: Posed
) -> Plan:
    """Give the rows that are left all of their weights.

    Args:
        before: The rows of the network.
        layers: Those of the smaller one, in the same order.
        fewer: What is left of it.
        posed: The row problems of the network.

    Returns:
        The plan.
    """
    shares = []
    for old, rows, coupling in zip(before, layers, posed.coupling, strict=True):
        left = fewer.channels[rows.index][rows.terms[0]].unflatten(0, (old.groups, -1))
        d = rows.weights(fewer.equations.layers[rows.index]).shape[2]
        own = [S[kept][:, kept] for S, kept in zip(coupling, left, strict=True) if kept.any()]
        shares.append([Share(S, [d] * len(S), 0) for S in own])
    return Plan(0.0, 0.0, shares, posed.coherence)


def unit_records(before: StateEquations, after: StateEquations) -> list[Row]:
    """Write down how many channels and multiply-adds each layer has, and had.

    Args:
        before: The network.
        after: The same without some of its units.

    Returns:
        One record a layer with weights.
    """
    pairs = zip(before.layers, after.layers, strict=True)
    return [
        {
            "layer": old.name,
            "channels_before": len(old.terms[0].weight),
            "channels": len(new.terms[0].weight),
            "products_before": sum(t.map.positions * t.weight.numel() for t in old.terms),
            "products": sum(t.map.positions * t.weight.numel() for t in new.terms),
        }
        for old, new in pairs
        if old.terms
    ]


def _features(rows: Rows, units: Units) -> Tensor:
    return torch.cat([units.features[rows.index][slot[0]][0] for slot in rows.slots])
