"""Units of a network: states that can only go together, with all that writes and reads them.

A neuron is one, or a channel at all of its places, or a head of an attention. Where states are
added up, as along a residual stream, the channels of all summands are one unit. The inputs and the
outputs cannot go, nor can what is read or written by an operation that is kept as a whole.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from simplicit.equations.compose import Fixed
from simplicit.equations.equation import Equation, Term
from simplicit.equations.layer_phi import Kept, MaxPool
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Gather
from simplicit.units.apart import parts_of

STAYS = -1
"""Unit of what cannot go."""

NOTHING = -1
"""Node of an entry that reads no state."""


@dataclass(frozen=True, eq=False)
class Units:
    """The units of a network. A number is that of a unit, or `STAYS`.

    Attributes:
        count: How many there are.
        rows: For each equation, one number an entry of z.
        states: For each hidden equation, one number a state.
        channels: For each equation and term, one number a channel of its weight.
        features: For each equation and term, one number for all that a row of it reads,
            (groups, reads).
    """

    count: int
    rows: list[Int[Tensor, "_"]]
    states: list[Int[Tensor, "_"]]
    channels: list[list[Int[Tensor, "_"]]]
    features: list[list[Int[Tensor, "_ _"]]]


def units_of(equations: StateEquations, without: Collection[tuple[int, int]] = ()) -> Units:
    """Find the units of a network.

    Args:
        equations: The network, without feedback.
        without: Terms that stay as they are, by equation and place; what they read and write stays.

    Returns:
        Its units, in the order of the layers that write them.
    """
    nodes = _Nodes()
    shared: dict[object, _Shared] = {}
    rows: list[Tensor] = []
    states: list[Tensor] = []
    channels: list[list[Tensor]] = []
    features: list[list[_Shared]] = []
    inputs = torch.full((equations.p,), nodes.stays)
    for k, e in enumerate(equations.layers):
        sources = [*states, inputs]
        own, read, parts = [], [], []
        for t, term in enumerate(e.terms):
            channel = nodes.new(len(term.weight))
            feature = _features(nodes, term, sources[term.source])
            if term.map.groups > 1:  # a group goes as a whole: kernels have one width
                each = channel.view(term.map.groups, -1)
                nodes.join(feature, each[:, :1].expand_as(feature))
                nodes.join(each, each[:, :1].expand_as(each))
            if (k, t) in without:
                nodes.keep(channel, feature)
            own.append(channel)
            read.append(_share(nodes, shared, term, channel, feature))
            parts.append(term.map.spread(channel.double()).long())
        parts += [_moved(nodes, s.map, sources[s.source]) for s in e.fixed]
        z = _joined(nodes, parts, e.size)
        if k == len(equations.hidden):
            nodes.keep(z)
        else:
            states.append(_activated(nodes, e, z))
        rows.append(z)
        channels.append(own)
        features.append(read)
    flat = nodes.numbered([*rows, *states, *(c for own in channels for c in own)])
    reads = nodes.numbered([f.features for read in features for f in read], flat.names)
    count, found, more = len(flat.names), iter(flat.found), iter(reads.found)
    return Units(
        count,
        [next(found) for _ in rows],
        [next(found) for _ in states],
        [[next(found) for _ in own] for own in channels],
        [[next(more) for _ in read] for read in features],
    )


@dataclass
class _Shared:
    term: Term
    channels: Tensor
    features: Tensor


@dataclass
class _Numbered:
    found: list[Tensor]
    names: dict[int, int]


class _Nodes:
    """Nodes that are joined to units: a forest, each node below the first that it was joined to."""

    def __init__(self) -> None:
        self._above = [0]
        self.stays = 0

    def new(self, count: int) -> Tensor:
        first = len(self._above)
        self._above += range(first, first + count)
        return torch.arange(first, first + count)

    def root(self, node: int) -> int:
        while (above := self._above[node]) != node:
            self._above[node] = self._above[above]
            node = above
        return node

    def join(self, a: Tensor, b: Tensor) -> None:
        pairs = torch.stack([a.flatten(), b.flatten()], 1)
        pairs = pairs[(pairs >= 0).all(1) & (pairs[:, 0] != pairs[:, 1])]
        for one, other in pairs.unique(dim=0).tolist():
            one, other = self.root(one), self.root(other)
            self._above[max(one, other)] = min(one, other)

    def keep(self, *nodes: Tensor) -> None:
        for some in nodes:
            self.join(some, torch.full_like(some, self.stays))

    def roots(self, nodes: Tensor) -> Tensor:
        every, places = nodes.unique(return_inverse=True)
        return torch.tensor([n if n < 0 else self.root(n) for n in every.tolist()])[places]

    def numbered(self, some: Iterable[Tensor], names: dict[int, int] | None = None) -> _Numbered:
        found = [self.roots(nodes) for nodes in some]
        if names is None:
            every = torch.cat([nodes.flatten() for nodes in found]).unique().tolist()
            names = {root: number for number, root in enumerate(n for n in every if n > 0)}
        result = []
        for nodes in found:
            every, places = nodes.unique(return_inverse=True)
            result.append(torch.tensor([names.get(n, STAYS) for n in every.tolist()])[places])
        return _Numbered(result, names)


# nodes of what a fixed map makes of states: entries that are added up are joined
def _moved(nodes: _Nodes, fixed: Fixed, source: Tensor) -> Tensor:
    if isinstance(fixed, Gather):
        index = fixed.index.cpu()
        return source[index.clamp_min(0)].where(index >= 0, NOTHING)
    row, read = fixed.row.cpu(), source[fixed.column.cpu()]
    found = torch.full((fixed.rows,), NOTHING)
    found[row] = read
    nodes.join(found[row], read)
    return found


# nodes of what each weight of a row reads, at whatever position
def _features(nodes: _Nodes, term: Term, source: Tensor) -> Tensor:
    read = source if term.fixed is None else _moved(nodes, term.fixed, source)
    like = term.weight
    every = term.map.patches((read + 1).double()[None].to(like.device))[0].cpu().long() - 1
    found = every.amax(0)
    nodes.join(found.expand_as(every), every)
    return found


# One of the terms that share a weight may read nothing where another one reads a state: together
# they read that state.
def _share(
    nodes: _Nodes, shared: dict[object, _Shared], term: Term, channel: Tensor, feature: Tensor
) -> _Shared:
    own = _Shared(term, channel, feature)
    first = shared.setdefault(term.parameter or id(term.weight), own)
    if first is own:
        return own
    if first.term.transposed != term.transposed or first.features.shape != feature.shape:
        nodes.keep(first.channels, first.features, channel, feature)
        return own
    nodes.join(first.channels, channel)
    nodes.join(first.features, feature)
    first.features = first.features.where(first.features >= 0, feature)
    return first


def _joined(nodes: _Nodes, parts: list[Tensor], size: int) -> Tensor:
    z = torch.full((size,), NOTHING)
    for part in parts:
        nodes.join(z, part)
        z = z.where(z >= 0, part)
    return z.where(z >= 0, nodes.stays)  # constants stay


def _activated(nodes: _Nodes, e: Equation, z: Tensor) -> Tensor:
    if isinstance(e.phi, Phi):
        return z
    if isinstance(e.phi, MaxPool):
        by_channel = z.view(e.phi.shape[0], -1)
        nodes.join(by_channel, by_channel[:, :1].expand_as(by_channel))
        return by_channel[:, 0].repeat_interleave(e.states // e.phi.shape[0])
    if isinstance(e.phi, Kept) and (parts := parts_of(e.phi)) is not None:
        read, written = parts
        each = nodes.new(int(read.max()) + 1)
        nodes.join(z, each[read])
        return each[written]
    nodes.keep(z)
    return torch.full((e.states,), nodes.stays)
