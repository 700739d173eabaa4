"""Two lines that hold φ between them over an interval: below ≤ φ(z) ≤ above.

For a piecewise linear φ: the chord on one side and, on the other, a line through the kink
(Zhang, Weng, Chen, Hsieh, Daniel, "Efficient Neural Network Robustness Certification with General
Activation Functions", NeurIPS 2018: CROWN, with its adaptive slope). For tanh and the sigmoid: two
parallel lines of the least slope in the interval, since φ(z) − d z rises where d is at most that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .equilibrium import Block
from .errors import InputError
from .intervals import EPS, PHI_ROUNDING, TINY, Box
from .phi import Phi


class Lines(NamedTuple):
    """slope · z + offset below and above φ."""

    slope_below: Float[Tensor, "m n"]
    below: Float[Tensor, "m n"]
    slope_above: Float[Tensor, "m n"]
    above: Float[Tensor, "m n"]


def lines(blocks: Sequence[Block], z: Box) -> Lines:
    """Hold every state between two lines in its pre-activation.

    Args:
        blocks: Layers in the order of x.
        z: Boxes of all pre-activations.

    Returns:
        The lines; with them offsets rounded outward.
    """
    sizes = [block.size for block in blocks]
    parts = [
        _lines(block.phi, Box(low, high))
        for block, low, high in zip(
            blocks, z.low.split(sizes, 1), z.high.split(sizes, 1), strict=True
        )
    ]
    return Lines(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))


def _lines(phi: Phi, z: Box) -> Lines:
    match phi.name:
        case "identity":
            one, zero = torch.ones_like(z.low), torch.zeros_like(z.low)
            return Lines(one, zero, one, zero)
        case "relu":
            return _kinked(0.0, z)
        case "leaky_relu":
            return _kinked(phi.slope, z)
        case "tanh" | "sigmoid":
            return _parallel(phi, z)
        case _:
            raise InputError(f"activation {phi.name!r}: no lines around it are known here")


# φ = z above 0 and slope · z below: the chord is above it if slope < 1, below it otherwise
def _kinked(slope: float, z: Box) -> Lines:
    width = (z.high - z.low).clamp_min(TINY)
    left = slope * z.low
    chord = ((z.high - left) / width).clamp(min(slope, 1.0), max(slope, 1.0))
    # the smaller of the two areas between the lines; a ReLU that is surely on or off is exact
    through = torch.where(z.high >= -z.low, 1.0, slope).to(z.low)
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


# tanh and the sigmoid are steepest at 0, so the least slope of an interval is at one of its ends
def _parallel(phi: Phi, z: Box) -> Lines:
    slope = torch.minimum(phi.derivative(z.low), phi.derivative(z.high))
    slope = (slope - PHI_ROUNDING).clamp_min(0.0)
    spread = PHI_ROUNDING * (1 + slope * z.size)
    below = phi(z.low) - slope * z.low - spread
    above = phi(z.high) - slope * z.high + spread
    return Lines(slope, below, slope, above)
