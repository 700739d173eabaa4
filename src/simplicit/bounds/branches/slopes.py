"""Slopes and multipliers chosen for the function that is bounded: α-CROWN and β-CROWN.

A line through a kink may have any slope α in [0, 1], and where a branch knows the sign of z a
multiple −β z or β z of the right sign may be added: each choice gives a lower bound, and the best
one is found by ascent (Xu et al., "Fast and Complete", ICLR 2021; Wang et al., "Beta-CROWN",
NeurIPS 2021). The ascent is float32; what it finds is bounded again in float64, rounded outward, so
that nothing rests on how well it went.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.bounds.branches.reduced import reduced
from simplicit.bounds.intervals import Box, Boxes, image
from simplicit.bounds.linear_bounds import Substitution
from simplicit.bounds.relaxation import Lines, chosen, lines

RATES = 0.25, 0.1
"""Steps of α and β at first."""

DECAY = 0.9
"""What remains of a step's length after it."""


@dataclass(frozen=True, eq=False)
class Branches:
    """Functions of one layer, each on a part of its sample's box.

    Args:
        mu: Coefficients of the layer's pre-activations, a function a row.
        slopes: α by layer.
        signs: 1 where z ≥ 0 on this part, −1 where z ≤ 0, otherwise 0, by layer.
        multipliers: β ≥ 0 by layer, 0 where no sign is known.
    """

    mu: Float[Tensor, "s rows"]
    slopes: tuple[Float[Tensor, "s _"], ...]
    signs: tuple[Float[Tensor, "s _"], ...]
    multipliers: tuple[Float[Tensor, "s _"], ...]

    def taken(self, which: Tensor) -> "Branches":
        """Take some.

        Args:
            which: Their indices, or a mask.

        Returns:
            These.
        """
        parts = (self.slopes, self.signs, self.multipliers)
        return Branches(self.mu[which], *(tuple(t[which] for t in part) for part in parts))

    @classmethod
    def all_of(cls, some: Sequence["Branches"]) -> "Branches":
        """Put several behind each other.

        Args:
            some: Of the same layer.

        Returns:
            All.
        """

        def joined(every: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
            return tuple(torch.cat(layer) for layer in zip(*every, strict=True))

        return cls(
            torch.cat([b.mu for b in some]),
            joined([b.slopes for b in some]),
            joined([b.signs for b in some]),
            joined([b.multipliers for b in some]),
        )

    def split(self, layer: Int[Tensor, " s"], state: Int[Tensor, " s"]) -> "Branches":
        """Cut each where a pre-activation is 0.

        Args:
            layer: Of the pre-activation.
            state: Its index there.

        Returns:
            Those of z ≥ 0, then those of z ≤ 0.
        """
        halves = []
        for sign in (1.0, -1.0):
            signs = [t.clone() for t in self.signs]
            for at, t in enumerate(signs):
                mine = (layer == at).nonzero()[:, 0]
                t[mine, state[mine]] = sign
            halves.append(replace(self, signs=tuple(signs)))
        return Branches.all_of(halves)


@dataclass(frozen=True, eq=False)
class Found:
    """What the ascent ended with.

    Args:
        branches: With their best slopes and multipliers.
        bound: Their bounds in float32: an estimate.
        layer: Of the pre-activation that makes the bound loosest; −1 if there is none.
        state: Its index there.
        inputs: Where in the box of inputs bounds are reached, if they are: of those that were
            bounded last.
    """

    branches: Branches
    bound: Float[Tensor, " s"]
    layer: Int[Tensor, " s"]
    state: Int[Tensor, " s"]
    inputs: Float[Tensor, "_ p"]

    @classmethod
    def all_of(cls, some: Sequence["Found"]) -> "Found":
        """Put several behind each other.

        Args:
            some: At least one.

        Returns:
            All.
        """
        columns = ([f.bound, f.layer, f.state, f.inputs] for f in some)
        branches = Branches.all_of([f.branches for f in some])
        return cls(branches, *(torch.cat(column) for column in zip(*columns, strict=True)))


class Ascent:
    """A network on the box of one sample, and how functions of its next layer are bounded.

    Args:
        network: The network up to a layer, without feedback, one sample.
    """

    def __init__(self, network: Substitution) -> None:
        layer = network.layers[len(network.boxes)]
        size = layer.size([source.size for source in network.sources])
        self._network = replace(network, sizes=(*network.sizes, size))
        self._single, self._columns = reduced(network)

    def begun(self, mu: Float[Tensor, "s rows"]) -> Branches:
        """Begin with the lines of backward substitution.

        Args:
            mu: Functions of the layer's pre-activations.

        Returns:
            A branch for each, on the whole box.
        """
        count = len(mu)
        slopes = tuple(
            (z.low if one.entry is not None else one.slope_below).expand(count, -1)
            for one, (z, _) in zip(self._single.around, self._single.boxes, strict=True)
        )
        zero = tuple(torch.zeros_like(t) for t in slopes)
        return Branches(mu.float(), slopes, zero, zero)

    def bound(self, some: Branches) -> Float[Tensor, " s"]:
        """Bound each from below, in float64 and rounded outward.

        Args:
            some: Branches.

        Returns:
            The bounds.
        """
        with torch.no_grad():
            whole = self._network
            every = [z.low.new_zeros(len(some.mu), z.low.shape[1]) for z, _ in whole.boxes]
            slopes, signs, betas = (
                [
                    zero.index_copy(1, left, t.double())
                    for zero, left, t in zip(every, self._columns, part, strict=True)
                ]
                for part in (some.slopes, some.signs, some.multipliers)
            )
            on = _on(whole, signs)
            around = [
                lines(layer.equation.phi, z, slope)._replace(held=_held(sign, beta))
                for layer, (z, _), slope, sign, beta in zip(
                    whole.layers, on.boxes, slopes, signs, betas, strict=False
                )
            ]
            on = replace(on, around=tuple(around))
            return on.lowest(some.mu.double())

    def climbed(self, some: Branches, steps: int) -> Found:
        """Choose slopes and multipliers.

        Args:
            some: Branches to begin with.
            steps: Of the ascent.

        Returns:
            Better ones; none is worse than it was.
        """
        on = _on(self._single, some.signs)
        where = [
            chosen(layer.equation.phi, z)
            for layer, (z, _) in zip(on.layers, on.boxes, strict=False)
        ]
        slopes = [t.clone().requires_grad_() for t in some.slopes]
        betas = [t.clone().requires_grad_() for t in some.multipliers]
        groups = [{"params": slopes, "lr": RATES[0]}, {"params": betas, "lr": RATES[1]}]
        adam = torch.optim.Adam(groups)
        shorter = torch.optim.lr_scheduler.ExponentialLR(adam, DECAY)
        best = torch.full((len(some.mu),), -torch.inf)
        kept = some
        for step in range(steps + 1):
            around = tuple(
                _lined(base, free, slope, -sign * beta)
                for base, (free, _), slope, beta, sign in zip(
                    on.around, where, slopes, betas, some.signs, strict=True
                )
            )
            bound = replace(on, around=around).lowest(some.mu)
            with torch.no_grad():
                better = (bound > best)[:, None]
                best = torch.maximum(bound, best)
                kept = replace(
                    kept,
                    slopes=_where(better, slopes, kept.slopes),
                    multipliers=_where(better, betas, kept.multipliers),
                )
            if step == steps or not bound.requires_grad:
                break  # or nothing can be chosen
            adam.zero_grad()
            (-bound.sum()).backward()
            adam.step()
            with torch.no_grad():
                for slope, (_, least) in zip(slopes, where, strict=True):
                    slope.copy_(slope.clamp(max=1.0).maximum(least))
                for beta in betas:
                    beta.clamp_(min=0.0)
            shorter.step()
        return self._read(on, kept, where, best)

    # what the bound depends on: coefficients are the derivatives by offsets and by ends of the box
    def _read(self, on: Substitution, some: Branches, where: Sequence, bound: Tensor) -> Found:
        offsets, around, count = [], [], len(bound)
        for k, (base, (free, _)) in enumerate(zip(on.around, where, strict=True)):
            held = _held(some.signs[k], some.multipliers[k])
            line = _lined(base, free, some.slopes[k], held)
            line = line._replace(
                below=line.below.expand(count, -1).clone().requires_grad_(),
                above=line.above.expand(count, -1).clone().requires_grad_(),
            )
            offsets += [line.below, line.above]
            around.append(line)
        ends = [end.expand(count, -1).clone().requires_grad_() for end in (on.u.low, on.u.high)]
        last = replace(on, around=tuple(around), u=Box(*ends)).lowest(some.mu)
        found = torch.autograd.grad(last.sum(), [*offsets, *ends], allow_unused=True)
        zero = [torch.zeros_like(t) for t in [*offsets, *ends]]
        *cs, low, high = (z if g is None else g for g, z in zip(found, zero, strict=True))
        inputs = torch.where(low + high > 0, on.u.low, on.u.high)
        scores = []
        for k, ((free, _), (z, _)) in enumerate(zip(where, on.boxes, strict=True)):
            if not bool(free.any()):  # also a maximum, whose lines are no rows of z
                scores.append(torch.full((count, z.low.shape[1]), -1.0))
                continue
            up, down, slope = cs[2 * k], cs[2 * k + 1], some.slopes[k]
            apart = torch.minimum(-slope * z.low, (1 - slope) * z.high).clamp_min(0)
            score = up * apart - down * on.around[k].above
            scores.append(torch.where(free, score, -1.0))
        sizes = [score.shape[1] for score in scores]
        if not sum(sizes):
            none = torch.full((len(bound),), -1)
            return Found(some, bound, none, none, inputs)
        most, flat = torch.cat(scores, 1).max(1)
        starts = torch.tensor([0, *sizes]).cumsum(0)
        layer = torch.bucketize(flat, starts[1:], right=True)
        state = flat - starts[layer]
        return Found(some, bound, torch.where(most < 0, -1, layer), state, inputs)


# boxes of branches: a known sign cuts a pre-activation's
def _on(network: Substitution, signs: Sequence[Tensor]) -> Substitution:
    boxes, around = list(network.boxes), list(network.around)
    for k, sign in enumerate(signs):
        if not bool(sign.any()):
            continue
        z, phi = boxes[k].z, network.layers[k].equation.phi
        low = torch.where(sign > 0, z.low.clamp_min(0), z.low)
        high = torch.where(sign < 0, z.high.clamp_max(0), z.high)
        z = Box(low, high)
        boxes[k] = Boxes(z, image(phi, z))
        around[k] = lines(phi, z)
    return replace(network, boxes=tuple(boxes), around=tuple(around))


def _lined(base: Lines, free: Tensor, slope: Tensor, held: Tensor | None) -> Lines:
    if base.entry is not None:
        return base
    return base._replace(
        slope_below=torch.where(free, slope, base.slope_below),
        below=torch.where(free, 0.0, base.below),
        held=held,
    )


def _held(sign: Tensor, beta: Tensor) -> Tensor | None:
    return -sign * beta if bool(sign.any()) else None


def _where(better: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.where(better, a.detach(), b) for a, b in zip(new, old, strict=True))
