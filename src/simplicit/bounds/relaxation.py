"""Two lines that hold φ between them over an interval: below ≤ φ(z) ≤ above.

For a piecewise linear φ: the chord on one side and, on the other, a line through the kink
(Zhang, Weng, Chen, Hsieh, Daniel, "Efficient Neural Network Robustness Certification with General
Activation Functions", NeurIPS 2018: CROWN, with its adaptive slope). For tanh and the sigmoid: two
parallel lines of the least slope in the interval, since φ(z) − d z rises where d is at most that;
the same for SiLU and GELU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.bounds.intervals import EPS, PHI_ROUNDING, TINY, Box
from simplicit.equations.layer_phi import StatePhi
from simplicit.equations.phi import Phi
from simplicit.errors import InputError
from simplicit.model.equilibrium import Block

FLATTEST = {"silu": -2.3994, "gelu": -1.4142, "gelu_tanh": -1.4185}
"""Where φ' is least, to 1e-3."""


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
        _lines(block.elementwise, Box(low, high))
        for block, low, high in zip(
            blocks, z.low.split(sizes, 1), z.high.split(sizes, 1), strict=True
        )
    ]
    return Lines(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))


def _lines(phi: StatePhi, z: Box) -> Lines:
    if not isinstance(phi, Phi):
        raise InputError(f"{phi.name}: lines are known around elementwise activations only")
    match phi.name:
        case "identity":
            one, zero = torch.ones_like(z.low), torch.zeros_like(z.low)
            return Lines(one, zero, one, zero)
        case "relu":
            return _kinked(0.0, z)
        case "leaky_relu":
            return _kinked(phi.slope, z)
        case "relu6":
            return _clipped(z)
        case "tanh" | "sigmoid" | "silu" | "gelu" | "gelu_tanh":
            return _parallel(phi, z)


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


# as a ReLU where the upper kink is out of reach, else between its least and its largest value
def _clipped(z: Box) -> Lines:
    relu, flat = _kinked(0.0, z), torch.zeros_like(z.low)
    box = Lines(flat, z.low.clamp(0, 6), flat, z.high.clamp(0, 6))
    reach = z.high > 6
    return Lines(*(torch.where(reach, b, r) for b, r in zip(box, relu, strict=True)))


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
