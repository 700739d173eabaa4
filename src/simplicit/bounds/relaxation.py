"""Two lines that hold φ between them over an interval: below ≤ φ(z) ≤ above.

For a piecewise linear φ: the chord on one side and, on the other, a line through the kink
(Zhang, Weng, Chen, Hsieh, Daniel, "Efficient Neural Network Robustness Certification with General
Activation Functions", NeurIPS 2018: CROWN, with its adaptive slope). Every slope between those of
the two sides is sound there, so that it can be chosen for what is bounded (Xu et al., "Fast and
Complete", ICLR 2021: α-CROWN). For tanh and the sigmoid: two
parallel lines of the least slope in the interval, since φ(z) − d z rises where d is at most that;
the same for SiLU and GELU. For the maximum of a window: below, its entry with the largest lower
end; above, the same entry if no other can be larger, otherwise the largest upper end.
"""

from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.bounds.intervals import EPS, PHI_ROUNDING, TINY, Box
from simplicit.equations.layer_phi import MaxPool, StatePhi
from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Stacked
from simplicit.errors import InputError

FLATTEST = {"silu": -2.3994, "gelu": -1.4142, "gelu_tanh": -1.4185}
"""Where φ' is least, to 1e-3."""


class Lines(NamedTuple):
    """slope · z + offset below and above φ.

    Args:
        slope_below: Slope of the line below.
        below: Its offset, rounded down.
        slope_above: Slope of the line above.
        above: Its offset, rounded up.
        entry: For a maximum, the entry of z that the lines of each state speak of.
        held: Multipliers λ of z, where its sign is known to make λ z at most 0: what is bounded
            from below may have λ z added (Wang et al., NeurIPS 2021: β-CROWN).
    """

    slope_below: Float[Tensor, "m states"]
    below: Float[Tensor, "m states"]
    slope_above: Float[Tensor, "m states"]
    above: Float[Tensor, "m states"]
    entry: Int[Tensor, "m states"] | None = None
    held: Float[Tensor, "m rows"] | None = None


def lines(phi: StatePhi, z: Box, slope: Float[Tensor, "m rows"] | None = None) -> Lines:
    """Hold every state of a layer between two lines in its pre-activation.

    Args:
        phi: φ of the layer.
        z: Boxes of its pre-activations.
        slope: Of the line through a kink, where there is a choice (`chosen`); otherwise the one
            with the smaller area.

    Returns:
        The lines.

    Raises:
        InputError: If φ is an operation that was kept as it is.
    """
    match phi:
        case Stacked():
            sizes = [block.size for block in phi.blocks]
            slopes = [None] * len(sizes) if slope is None else slope.split(sizes, 1)
            every = zip(_split(phi, z), slopes, strict=True)
            parts = [lines(block.phi, part, own)[:4] for (block, part), own in every]
            return Lines(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))
        case MaxPool():
            return _largest(phi, z)
        case Phi("identity"):
            one, zero = torch.ones_like(z.low), torch.zeros_like(z.low)
            return Lines(one, zero, one, zero)
        case Phi("relu"):
            return _kinked(0.0, z, slope)
        case Phi("leaky_relu"):
            return _kinked(phi.slope, z, slope)
        case Phi("relu6"):
            return _clipped(z)
        case Phi():
            return _parallel(phi, z)
    raise InputError(f"{phi.name}: no lines around it are known")


def unsettled(phi: StatePhi, z: Box) -> Bool[Tensor, "m rows"]:
    """Say which pre-activations have a box whose size the lines depend on.

    Args:
        phi: φ of the layer.
        z: Boxes of its pre-activations.

    Returns:
        False where φ is linear over the box, or the entry cannot be the largest, or no other can.
    """
    match phi:
        case Stacked():
            return torch.cat([unsettled(block.phi, part) for block, part in _split(phi, z)], 1)
        case MaxPool():
            table = windows(phi)
            high = _entries(z.high, table)
            rival = high > _entries(z.low, table).amax(2, keepdim=True)
            rival &= rival.sum(2, keepdim=True) > 1
            count = torch.zeros(len(z.low), z.low.shape[1] + 1, dtype=torch.int64)
            places = table.clamp_min(-1).flatten().expand(len(z.low), -1) + 1
            return count.scatter_add(1, places, rival.flatten(1).long())[:, 1:] > 0
        case Phi("identity"):
            return torch.zeros_like(z.low, dtype=torch.bool)
        case Phi("relu" | "leaky_relu"):
            return (z.low < 0) & (z.high > 0)
        case Phi("relu6"):
            return ((z.low < 0) & (z.high > 0)) | ((z.low < 6) & (z.high > 6))
    return z.low < z.high


def chosen(phi: StatePhi, z: Box) -> tuple[Bool[Tensor, "m rows"], Float[Tensor, "m rows"]]:
    """Say where the slope of the line below φ may be chosen.

    Args:
        phi: φ of the layer.
        z: Boxes of its pre-activations.

    Returns:
        Where, and the least slope there; the largest is 1.
    """
    match phi:
        case Stacked():
            parts = [chosen(block.phi, part) for block, part in _split(phi, z)]
            return torch.cat([where for where, _ in parts], 1), torch.cat([a for _, a in parts], 1)
        case Phi("relu") | Phi("leaky_relu"):
            least = phi.slope if phi.name == "leaky_relu" else 0.0
            return (z.low < 0) & (z.high > 0) & (least < 1), torch.full_like(z.low, least)
    return torch.zeros_like(z.low, dtype=torch.bool), torch.zeros_like(z.low)


def windows(phi: MaxPool) -> Int[Tensor, "states reads"]:
    """List the entries of z that each state is the largest of.

    Args:
        phi: The maximum.

    Returns:
        Their indices, −1 where a window is over the edge.
    """
    table = torch.arange(phi.shape[0])[:, None]
    for size, places, k, step, pad, apart in zip(
        phi.shape[1:], phi.output_shape[1:], phi.kernel, phi.stride, phi.padding, phi.dilation,
        strict=True,
    ):  # fmt: skip
        at = torch.arange(places)[:, None] * step - pad + torch.arange(k) * apart
        at = at.where((at >= 0) & (at < size), -prod(phi.shape))
        table = (table[:, None, :, None] * size + at[None, :, None, :]).flatten(2).flatten(0, 1)
    return table.clamp_min(-1)


# those of every window, −∞ over the edge
def _entries(z: Float[Tensor, "m rows"], table: Tensor) -> Float[Tensor, "m states reads"]:
    padded = torch.nn.functional.pad(z, (1, 0), value=-torch.inf)
    return padded[:, table + 1]


def _split(phi: Stacked, z: Box) -> list:
    sizes = [block.size for block in phi.blocks]
    ends = zip(z.low.split(sizes, 1), z.high.split(sizes, 1), strict=True)
    return list(zip(phi.blocks, [Box(low, high) for low, high in ends], strict=True))


def _largest(phi: MaxPool, z: Box) -> Lines:
    table = windows(phi)
    low, high = _entries(z.low, table), _entries(z.high, table)
    best, which = low.max(2)
    others = high.scatter(2, which[:, :, None], -torch.inf).amax(2)
    only, one = others <= best, torch.ones_like(best)
    entry = table.expand(len(best), -1, -1).gather(2, which[:, :, None])[:, :, 0]
    # what is not finite has no entry that is known to be the largest
    above = torch.where(only, 0.0, high.amax(2))
    return Lines(one, 0 * one, only.to(one), above, entry.clamp_min(0))


# φ = z above 0 and slope · z below: the chord is above it if slope < 1, below it otherwise
def _kinked(slope: float, z: Box, through: Tensor | None = None) -> Lines:
    width = (z.high - z.low).clamp_min(TINY)
    left = slope * z.low
    chord = ((z.high - left) / width).clamp(min(slope, 1.0), max(slope, 1.0))
    # the smaller of the two areas between the lines; a ReLU that is surely on or off is exact
    if through is None or slope >= 1:
        through = torch.where(z.high >= -z.low, 1.0, slope).to(z.low)
    through = through.clamp(min(slope, 1.0), max(slope, 1.0))
    on, off = z.low >= 0, z.high <= 0
    chord, through = (
        torch.where(on, 1.0, torch.where(off, slope, t)).to(z.low) for t in (chord, through)
    )
    # a linear function's largest and least value over the interval are at its ends and the kink
    ends = torch.stack([z.low, z.high, torch.zeros_like(z.low).clamp(z.low, z.high)])
    value = torch.where(ends > 0, ends, slope * ends)
    spread = 4 * EPS * (value.abs() + (1 + slope) * ends.abs()).amax(0)
    spread = torch.where(on | ((slope == 0) & off), 0.0, spread)

    def line(d: Tensor, above: bool) -> Tensor:
        apart = value - d * ends
        return apart.amax(0) + spread if above else apart.amin(0) - spread

    above, below = (chord, through) if slope <= 1 else (through, chord)
    return Lines(below, line(below, False), above, line(above, True))


# as a ReLU where the upper kink is out of reach, else between its least and its largest value
def _clipped(z: Box) -> Lines:
    relu, flat = _kinked(0.0, z), torch.zeros_like(z.low)
    box = Lines(flat, z.low.clamp(0, 6), flat, z.high.clamp(0, 6))
    reach = z.high > 6
    return Lines(*(torch.where(reach, b, r) for b, r in zip(box[:4], relu[:4], strict=True)))


# the slope of tanh and the sigmoid has no minimum inside an interval; that of SiLU and GELU has
# one, 1 − (its largest value), since φ'(z) + φ'(−z) = 1
def _parallel(phi: Phi, z: Box) -> Lines:
    slope = torch.minimum(phi.derivative(z.low), phi.derivative(z.high)) - 1e-12
    if phi.name in FLATTEST:
        at = FLATTEST[phi.name]
        slope = torch.where((z.low < at + 0.01) & (z.high > at - 0.01), 1 - phi.lipschitz, slope)
    else:
        slope = slope.clamp_min(0.0)
    spread = PHI_ROUNDING * (1 + (1 + slope.abs()) * z.size)
    below = phi(z.low) - slope * z.low - spread
    above = phi(z.high) - slope * z.high + spread
    return Lines(slope, below, slope, above)
