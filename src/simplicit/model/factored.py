"""Layers by factors: z = W (F s + c) + … as x₁ = V (F s + c) and z = U x₁ + ….

V has the map of the layer itself with few channels, so that of a convolution has its kernel; U
mixes the channels at each position.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.equations.equation import Equation, Summand, Term
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Conv, Dense, WeightedMap

CHANNELS = "@channels"
"""What the name of the equation of the channels ends with."""

Slots = tuple[tuple[int, ...], ...]
"""Terms of an equation, those that share their weight together."""

NOWHERE = -2
"""Source of a term that is left out."""


@dataclass(frozen=True, eq=False)
class Factors:
    """Weights of some terms of an equation, left right + sparse, group by group.

    Args:
        index: Which equation.
        slots: Its terms; those in one slot share their weight.
        left: Rows from channels.
        right: Channels from what the terms read, slot after slot.
        sparse: Single weights beside them, likewise; zeros where there are none.
    """

    index: int
    slots: Slots
    left: Float[Tensor, "groups K r"]
    right: Float[Tensor, "groups r d"]
    sparse: Float[Tensor, "groups K d"]

    @classmethod
    def of_flat(
        cls, index: int, slots: Slots, shape: tuple[int, int, int], rank: int, flat: Tensor
    ) -> "Factors":
        """Undo `flat`.

        Args:
            index: Which equation.
            slots: Its terms.
            shape: Of the weights: groups, K, d.
            rank: Of the factors.
            flat: All numbers.

        Returns:
            The factors.
        """
        groups, K, d = shape
        shapes = (groups, K, rank), (groups, rank, d), shape
        parts = flat.flatten().split([prod(own) for own in shapes])
        return cls(index, slots, *(p.view(own) for p, own in zip(parts, shapes, strict=True)))

    @property
    def flat(self) -> Float[Tensor, "numbers 1"]:
        """All numbers, one behind the other."""
        return torch.cat([part.flatten() for part in (self.left, self.right, self.sparse)])[:, None]

    @property
    def rank(self) -> int:
        """Channels of a group."""
        return self.left.shape[2]

    @property
    def nonzeros(self) -> tuple[list[int], list[int]]:
        """Non-zero weights of every row, and of every channel."""
        rows = self.left.count_nonzero(2) + self.sparse.count_nonzero(2)
        return rows.flatten().tolist(), self.right.count_nonzero(2).flatten().tolist()


def factored(equations: StateEquations, factors: Sequence[Factors]) -> StateEquations:
    """Write layers by their factors.

    Args:
        equations: The network with any weights in these places.
        factors: Of some layers.

    Returns:
        The network with one more equation for each of the factors: its states are the channels,
        and no function is applied to them.
    """
    by_layer = [[f for f in factors if f.index == k] for k in range(len(equations.layers))]
    # where the states of each equation are now, behind the channels that it reads
    place = [k + n for k, n in enumerate(accumulate(map(len, by_layer)))]
    layers: list[Equation] = []
    for equation, own in zip(equations.layers, by_layer, strict=True):
        moved = _moved(equation, place)
        for part in own:
            layers.append(_channels(moved, part))
        for k, part in enumerate(own, len(layers) - len(own)):
            moved = _reading(moved, part, k)
        # terms that others took the place of
        terms = tuple(term for term in moved.terms if term.source != NOWHERE)
        layers.append(replace(moved, terms=terms))
    return replace(equations, hidden=tuple(layers[:-1]), output=layers[-1])


def _moved(equation: Equation, place: Sequence[int]) -> Equation:
    def now(part: Term | Summand) -> int:
        return part.source if part.source < 0 else place[part.source]

    terms = tuple(replace(term, source=now(term)) for term in equation.terms)
    fixed = tuple(replace(summand, source=now(summand)) for summand in equation.fixed)
    return replace(equation, terms=terms, fixed=fixed)


def _channels(equation: Equation, part: Factors) -> Equation:
    terms = [
        Term(term.source, replace(term.map, weight=weight), term.fixed, term.offset)
        for _, term, weight in _weights(equation, part, part.right)
    ]
    return Equation(f"{equation.name}{CHANNELS}", tuple(terms), None, Phi("identity"))


def _reading(equation: Equation, part: Factors, channels: int) -> Equation:
    terms, first = list(equation.terms), part.slots[0][0]
    single = bool(part.sparse.any())
    own = Term(channels, _mixing(terms[first].map, part.left))
    for t, term, weight in _weights(equation, part, part.sparse):
        map_ = replace(term.map, weight=weight)
        terms[t] = replace(term, map=map_) if single else replace(term, source=NOWHERE)
    if not single:  # the first term says how a bias by channel is spread
        terms[first] = own
        return replace(equation, terms=tuple(terms))
    return replace(equation, terms=(*terms, own))


# the terms of some factors, and each one's part of a weight with a row per channel
def _weights(
    equation: Equation, part: Factors, weight: Float[Tensor, "groups rows d"]
) -> list[tuple[int, Term, Tensor]]:
    widths = [equation.terms[slot[0]].weight[0].numel() for slot in part.slots]
    found = []
    for slot, own in zip(part.slots, weight.flatten(0, 1).split(widths, 1), strict=True):
        like = equation.terms[slot[0]].weight
        shaped = own.reshape(len(own), *like.shape[1:]).to(like)
        found += [(t, equation.terms[t], shaped) for t in slot]
    return found


# at each position, channels of the result from those of its group
def _mixing(own: WeightedMap, left: Float[Tensor, "groups K r"]) -> WeightedMap:
    groups, _, rank = left.shape
    weight = left.flatten(0, 1).to(own.weight)
    if own.layout[0] == "position, channel":
        return Dense(weight, own.positions)
    size = own.output_shape[1:]
    ones, none = (1,) * len(size), ((0, 0),) * len(size)
    kernel = weight.reshape(*weight.shape, *ones)
    return Conv(kernel, (groups * rank, *size), ones, none, ones, groups)
