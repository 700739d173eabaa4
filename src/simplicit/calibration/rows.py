"""Rows of a layer: one problem per unit or channel, over what it reads at every position.

A dense layer on flattened samples has one position; a convolution has a position for every place of
its kernel, a dense layer on tokens one for every token.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import lcm

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.equations.equation import Equation, Term
from simplicit.equations.network import StateEquations
from simplicit.equations.stacked import Stacked

Slots = tuple[tuple[int, ...], ...]
"""Terms of an equation. Those in one slot share their weight: what they read adds up."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of an equation that are solved together.

    Row c of them is channel c of every slot's weight, one behind the other, and a correction of the
    channel's bias. Channels of one group share their features.

    Args:
        name: The equation's.
        index: Which equation.
        slots: Which of its terms.
        groups: Groups of channels that do not share features.
        biased: Whether the channels may have biases.
        uses: The same rows in later equations that share all of their weights: steps of a
            recurrence, a second input.
    """

    name: str
    index: int
    slots: Slots
    groups: int
    biased: bool = True
    uses: tuple["Rows", ...] = ()

    @property
    def terms(self) -> tuple[int, ...]:
        """All of the terms."""
        return tuple(chain(*self.slots))

    def features(
        self, equation: Equation, sources: Sequence[Tensor], positions: Tensor | None = None
    ) -> Float[Tensor, "groups samples d"]:
        """List what the channels read, at every position of every sample.

        Args:
            equation: The equation, the teacher's or the model's.
            sources: The states it reads.
            positions: Which positions; all without.

        Returns:
            Features of each group.
        """
        parts = []
        for slot in self.slots:
            terms = [equation.terms[t] for t in slot]
            part = sum(
                term.map.patches(term.reads(sources[term.source]), positions) for term in terms
            )
            assert isinstance(part, Tensor)
            repeats = self.groups // part.shape[2]
            parts.append(part.repeat_interleave(repeats, 2) if repeats > 1 else part)
        together = torch.cat(parts, 3) if len(parts) > 1 else parts[0]
        return together.permute(2, 0, 1, 3).flatten(1, 2)

    def targets(
        self, equation: Equation, z: Float[Tensor, "m rows"], positions: Tensor | None = None
    ) -> Float[Tensor, "groups samples K"]:
        """Sort pre-activations, or anything else per row of the equation, like the features.

        Args:
            equation: The equation.
            z: One number per row and sample.
            positions: Which positions; all without.

        Returns:
            One number per sample and channel of each group.
        """
        part = self.by_channel(equation, z)
        part = part if positions is None else part[:, :, positions]
        return part.flatten(1, 2)

    def places(
        self, equation: Equation, group: int, channels: slice
    ) -> Int[Tensor, "channels positions"]:
        """Say where some channels are in the equation's pre-activations.

        Args:
            equation: The equation.
            group: The channels' group.
            channels: Which channels of the group.

        Returns:
            An index for every channel and position.
        """
        device = equation.terms[0].weight.device
        every = torch.arange(equation.size, dtype=torch.float64, device=device)
        return self.by_channel(equation, every[None])[group, 0, :, channels].T.long()

    def by_channel(
        self, equation: Equation, z: Float[Tensor, "m rows"]
    ) -> Float[Tensor, "groups m positions K"]:
        """Sort pre-activations, or anything else per row of the equation, by channel.

        Args:
            equation: The equation.
            z: One number per row and sample.

        Returns:
            A view of them.
        """
        part = equation.terms[self.slots[0][0]].map.by_channel(z)
        return part.unflatten(2, (self.groups, -1)).permute(2, 0, 1, 3)

    def weights(self, equation: Equation) -> Float[Tensor, "groups K d"]:
        """Read the weights.

        Args:
            equation: The equation.

        Returns:
            A row per channel, in the order of the features.
        """
        parts = [equation.terms[slot[0]].weight.flatten(1) for slot in self.slots]
        return torch.cat(parts, 1).unflatten(0, (self.groups, -1))

    def put(
        self, equation: Equation, W: Float[Tensor, "groups K d"], shift: Float[Tensor, "groups K"]
    ) -> Equation:
        """Exchange the weights and move the biases.

        Args:
            equation: The equation.
            W: Weights, as `weights` returns them.
            shift: Added to the channels' biases.

        Returns:
            The equation with them.
        """
        terms = list(equation.terms)
        widths = [terms[slot[0]].weight[0].numel() for slot in self.slots]
        for slot, part in zip(self.slots, W.flatten(0, 1).split(widths, 1), strict=True):
            old = terms[slot[0]].weight
            weight = part.reshape(old.shape).to(old)
            for t in slot:
                terms[t] = replace(terms[t], map=replace(terms[t].map, weight=weight))
        bias = equation.full_bias
        if bool(shift.any()):
            moved = terms[self.slots[0][0]].map.spread(shift.flatten().to(terms[0].weight))
            bias = moved if bias is None else bias + moved
        return replace(equation, terms=tuple(terms), bias=bias)

    def positions(self, equation: Equation) -> int:
        """Count the positions.

        Args:
            equation: The equation.

        Returns:
            How often a sample applies the weights.
        """
        return equation.terms[self.slots[0][0]].map.positions

    def sources(self, equations: StateEquations) -> list[tuple[int, int]]:
        """Split the features by where they come from.

        States of one layer, and the inputs, are in one unit each.

        Args:
            equations: All equations.

        Returns:
            For every part of the features its source, and how many they are.
        """
        parts: list[tuple[int, int]] = []
        for slot in self.slots:
            term = equations.layers[self.index].terms[slot[0]]
            phi = equations.hidden[term.source].phi if term.source >= 0 else None
            if isinstance(phi, Stacked) and term.fixed is None:
                parts += [(term.source, block.size) for block in phi.blocks]
            else:
                parts.append((term.source, term.weight[0].numel()))
        return parts


def rows_of(
    equations: StateEquations,
    without: Collection[tuple[int, int]] = (),
    bias: bool = True,
    own: bool = False,
) -> list[Rows]:
    """List what there is to solve, first equation first.

    A weight that several equations share is solved where it is used first; see `follow`.

    Args:
        equations: The network.
        without: Terms that stay as they are, see `skipped`.
        bias: Whether rows may have biases at all.
        own: Whether only those may whose layer has a bias in the network, so that the model's
            weights fit into the network's own class.

    Returns:
        Its rows. Terms of one equation whose channels or positions are in different orders are
        solved one after the other.
    """
    found: list[Rows] = []
    seen: set[str] = set()
    moved: set[str] = set()
    for index, equation in enumerate(equations.layers):
        adjust = equation.adjust
        # a bias moves where its parameter is used first
        free = bias and not (adjust and (adjust.name in moved or (own and not adjust.name)))
        moved |= {adjust.name} - {""} if adjust else set()
        layouts: dict[tuple[str, int, int], dict[int, list[int]]] = {}
        for t, term in enumerate(equation.terms):
            if term.parameter in seen or (index, t) in without:
                continue
            slots = layouts.setdefault(term.map.layout, {})
            slots.setdefault(id(term.weight), []).append(t)
        for slots in layouts.values():
            terms = [equation.terms[members[0]] for members in slots.values()]
            groups = lcm(*(term.map.groups for term in terms))
            every = tuple(map(tuple, slots.values()))
            found.append(Rows(equation.name, index, every, groups, free))
        seen |= {term.parameter for term in equation.terms if term.parameter}
    return [replace(rows, uses=tuple(_uses(rows, equations.layers))) for rows in found]


def _uses(rows: Rows, layers: Sequence[Equation]) -> Iterator[Rows]:
    first = layers[rows.index]
    own = [first.terms[slot[0]] for slot in rows.slots]
    if any(not term.parameter or term.gain is not None for term in own):
        return
    for index, equation in enumerate(layers[rows.index + 1 :], rows.index + 1):
        slots = [tuple(t for t, o in enumerate(equation.terms) if _alike(o, term)) for term in own]
        # the bias moves with them, or not at all
        alike = not rows.biased or _same_bias(first, equation)
        if alike and all(slots):
            yield Rows(equation.name, index, tuple(slots), rows.groups, rows.biased)


def _alike(term: Term, other: Term) -> bool:
    same = (term.parameter, term.transposed, term.gain) == (other.parameter, other.transposed, None)
    kinds = type(term.map) is type(other.map) and term.map.layout[0] == other.map.layout[0]
    return same and kinds


def _same_bias(first: Equation, other: Equation) -> bool:
    if first.adjust is None or other.adjust is None or not first.adjust.name:
        return False
    factors = first.adjust.factor, other.adjust.factor
    return first.adjust.name == other.adjust.name and torch.equal(*factors)


def shared(rows: Rows, layers: Sequence[Equation]) -> bool:
    """Say whether other equations use a weight of some rows.

    Args:
        rows: The rows.
        layers: All equations.

    Returns:
        Whether one of them does.
    """
    own = {layers[rows.index].terms[t].parameter for t in rows.terms} - {""}
    return any(
        term.parameter in own
        for index, equation in enumerate(layers)
        for term in equation.terms
        if index != rows.index
    )


def follow(
    equation: Equation, solved: Sequence[Equation], without: Collection[int] = ()
) -> Equation:
    """Take over the weights that an equation shares with earlier ones.

    Args:
        equation: The equation.
        solved: The model's equations before it.
        without: Terms that stay as they are.

    Returns:
        The equation with the model's weights where they are known, in its own batch norm's units,
        and with the bias that it shares.
    """
    shared = {term.parameter: term for other in reversed(solved) for term in other.terms}
    shared.pop("", None)
    terms = list(equation.terms)
    for t, term in enumerate(terms):
        if (first := shared.get(term.parameter)) is None or t in without:
            continue
        weight = _scaled(first.weight, first.gain, inverse=True)
        alike = (first.transposed, first.map.groups) == (term.transposed, term.map.groups)
        weight = weight if alike else term.stored(first.stored(weight))
        weight = _scaled(weight, term.gain, inverse=False)
        terms[t] = replace(term, map=replace(term.map, weight=weight))
    return _biased(replace(equation, terms=tuple(terms)), solved)


def _biased(equation: Equation, solved: Sequence[Equation]) -> Equation:
    own = equation.adjust
    alike = [e for e in solved if own and own.name and e.adjust and e.adjust.name == own.name]
    if not alike or alike[0].bias is None or (change := alike[0].bias_change) is None:
        return equation
    assert own is not None and alike[0].adjust is not None
    factor = alike[0].adjust.factor
    return equation.with_bias_change(own.factor * torch.where(factor == 0, 0.0, change / factor))


def _scaled(weight: Tensor, gain: Tensor | None, inverse: bool) -> Tensor:
    if gain is None:
        return weight
    factor = torch.where(gain == 0, 0.0, 1 / gain) if inverse else gain
    return weight * factor.view(-1, *[1] * (weight.ndim - 1))
