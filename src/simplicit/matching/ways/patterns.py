"""The patterns of zeros of a network's rows, and the budget that they leave."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from math import ceil

import torch
from jaxtyping import Int
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.calibration.skipped import Layer, Place, weights
from simplicit.equations.equation import Equation, Term
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.recipe import Recipe
from simplicit.sparsity.budget import wanted
from simplicit.sparsity.pattern import UNSTRUCTURED, Blocks, NofM, Pattern


def patterned(recipe: Recipe, rows: Sequence[Rows], every: Sequence[Equation]) -> list[Pattern]:
    """Lay the recipe's pattern over the features of each layer's rows.

    Args:
        recipe: What is asked for; a layer that does not read a multiple of m channels is refused.
        rows: The layers' rows.
        every: All equations.

    Returns:
        The pattern of each.
    """
    if recipe.blocks is not None:
        r, c = recipe.blocks
        return [Blocks(r, _numbers(own, every[own.index], c)) for own in rows]
    if recipe.n_of_m is None:
        return [UNSTRUCTURED for _ in rows]
    n, m = recipe.n_of_m
    _require_divided(recipe, m, rows, every)
    return [NofM(n, m, _numbers(own, every[own.index], m)) for own in rows]


def spending(
    network: StateEquations,
    recipe: Recipe,
    rows: Sequence[Rows],
    every: Sequence[Equation],
    skipped: Mapping[Place, Layer],
) -> tuple[Recipe, int | None, list[Pattern]]:
    """Say how many weights there are to spend, in which patterns.

    Args:
        network: The network as captured.
        recipe: What is asked for.
        rows: The layers' rows.
        every: All equations, in the structure that is solved.
        skipped: Terms that stay as they are.

    Returns:
        The recipe, with the sparsity that a pattern gives where it has none; the budget of the
        rows, None without one; and the pattern of each layer.

    Raises:
        InputError: If weights that stay as they are exceed the budget, or the pattern has no room
            for it, or a layer does not fit the pattern.
    """
    patterns, N0 = patterned(recipe, rows, every), network.nonzeros
    budget, left = None, weights(skipped)
    if recipe.units:  # all weights of the units that stay
        return recipe, sum(own.weights(every[own.index]).numel() for own in rows), patterns
    if recipe.sparsity is not None:
        budget = wanted(N0, recipe.sparsity, network.kept_weights, left)
    if recipe.n_of_m is None:
        return recipe, budget, patterns
    room = sum(
        _room(pattern, own.weights(every[own.index]).flatten(0, 1))
        for own, pattern in zip(rows, patterns, strict=True)
    )
    sparsity = 1 - (room + sum(network.kept_weights.values()) + sum(left.values())) / N0
    if budget is None:
        return replace(recipe, sparsity=max(sparsity, 0.0)), room, patterns
    if budget > room:
        raise InputError(
            f"sparsity={recipe.sparsity:g}: pattern {recipe.pattern} alone gives "
            f"{ceil(1e4 * sparsity) / 1e4:g}; accepted is at least that, or no sparsity"
        )
    return recipe, budget, patterns


# weights of the network that the pattern has room for
def _room(pattern: Pattern, W: Tensor) -> int:
    assert isinstance(pattern, NofM)
    return int((pattern.first(W.abs()) & (W != 0)).sum())


# Features in the order of a row, slot by slot, input channel, then kernel place; so many
# neighbouring channels at one place have one number.
def _numbers(rows: Rows, equation: Equation, together: int) -> Int[Tensor, " d"]:
    parts = []
    for slot in rows.slots:
        weight = equation.terms[slot[0]].weight
        channels, places = weight.shape[1], weight[0, 0].numel()
        parts.append(torch.arange(channels)[:, None] // together * places + torch.arange(places))
    starts = accumulate((int(part.max()) + 1 for part in parts), initial=0)
    return torch.cat([(part + start).flatten() for part, start in zip(parts, starts, strict=False)])


def _require_divided(
    recipe: Recipe, m: int, rows: Sequence[Rows], every: Sequence[Equation]
) -> None:
    wrong: dict[str, int] = {}
    added = False
    for own in rows:
        for slot in own.slots:
            term = every[own.index].terms[slot[0]]
            if term.weight.shape[1] % m == 0:
                continue
            if term.parameter or bool(term.weight.any()):
                wrong.setdefault(_name(own, term), term.weight.shape[1])
            else:
                added = True  # a connection that the network does not have
    if not wrong and not added:
        return
    reads = ", ".join(f"{name} reads {count}" for name, count in wrong.items())
    accepted = [f"skip={[*recipe.skip, *wrong]}"] * bool(wrong) + ["structure='layered'"] * added
    raise InputError(
        f"pattern={recipe.pattern!r}: {reads or 'added connections have'} input channels "
        f"a row, no multiple of {m}; accepted is another m, or {' and '.join(accepted)}"
    )


# what `skip` calls the layer
def _name(rows: Rows, term: Term) -> str:
    return term.parameter.rpartition(".")[0] or rows.name.split("@")[0]
