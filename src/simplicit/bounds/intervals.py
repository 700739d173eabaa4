"""Boxes of inputs, pre-activations and states in float64, rounded outward: interval propagation.

A sum of N products in any order is within N u / (1 − N u) of the exact one, relative to the sum of
the products' sizes, u = 2⁻⁵³ (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
section 3.1). Every product here is widened by more than twice that, `slack`, and by the smallest
normal number for underflow, so a box holds all values of the exact formula over the box it came
from, for the weights as they are stored.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.equations.layer_phi import Kept, MaxPool, StatePhi
from simplicit.equations.stacked import Stacked
from simplicit.errors import InputError

EPS = torch.finfo(torch.float64).eps
TINY = torch.finfo(torch.float64).tiny

PHI_ROUNDING = 8 * EPS
"""Relative error of torch's tanh and sigmoid in float64, with a margin: their libraries promise
less than 4 units of 2⁻⁵³."""

LEAST = {
    "silu": (-1.278465, -0.278465),
    "gelu": (-0.751792, -0.169972),
    "gelu_tanh": (-0.752462, -0.170041),
}
"""Where φ turns, to 1e-5, and its least value, rounded down; found by bounded minimisation."""


def slack(terms: int) -> float:
    """Relative widening that covers a sum of products and what is done with its result.

    Args:
        terms: Number of products.

    Returns:
        (terms + 16) ε with ε = 2⁻⁵², twice the usual bound and a few operations more.
    """
    return (terms + 16) * EPS


@dataclass(frozen=True, eq=False)
class Box:
    """All x with low ≤ x ≤ high, one box a sample.

    Args:
        low: Lower ends.
        high: Upper ends.
    """

    low: Float[Tensor, "m n"]
    high: Float[Tensor, "m n"]

    @cached_property
    def centre(self) -> Float[Tensor, "m n"]:
        """A point inside, the middle up to rounding."""
        return self.low + (self.high - self.low) / 2

    @cached_property
    def radius(self) -> Float[Tensor, "m n"]:
        """Distance from `centre` to the farther end, rounded up."""
        centre = self.centre
        return torch.maximum(self.high - centre, centre - self.low) * (1 + EPS) + TINY

    @cached_property
    def size(self) -> Float[Tensor, "m n"]:
        """Largest absolute value."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def meet(self, other: "Box") -> "Box":
        """Intersect with a box that holds the same values.

        Returns:
            The intersection.
        """
        return Box(torch.maximum(self.low, other.low), torch.minimum(self.high, other.high))

    def __add__(self, other: "Box") -> "Box":
        return Box(_down(self.low + other.low), _up(self.high + other.high))


class Boxes(NamedTuple):
    """Boxes of one layer's pre-activations z and states x."""

    z: Box
    x: Box


def around(
    u: Float[Tensor, "m p"],
    eps: Float[Tensor, "m"],
    bounds: tuple[Tensor, Tensor] | tuple[float, float] | None = None,
) -> Box:
    """Write the l∞ balls around samples as boxes.

    Args:
        u: Samples, float64.
        eps: Radius of each ball.
        bounds: Least and largest value an input can have, or each of them; the balls are cut there.

    Returns:
        Boxes that hold the balls. A sample outside the bounds has the bound nearest to it.
    """
    low, high = u - eps[:, None], u + eps[:, None]
    # without a radius the box is the sample itself
    low, high = torch.where(low < u, _down(low), u), torch.where(high > u, _up(high), u)
    if bounds is not None:
        least, most = (torch.as_tensor(bound, dtype=u.dtype) for bound in bounds)
        low, high = low.clamp(least, most), high.clamp(least, most)
    return Box(low, high)


def affine(W: Float[Tensor, "k n"], box: Box, b: Float[Tensor, "k"] | None = None) -> Box:
    """Bound W x + b over a box.

    Args:
        W: Weights, float64.
        box: Of x.
        b: Bias, or None.

    Returns:
        The tightest box but for rounding.
    """
    k = slack(W.shape[1])
    centre, size = box.centre @ W.T, W.abs()
    radius = (box.radius + k * box.centre.abs()) @ size.T * (1 + k)
    if b is not None:
        centre, radius = centre + b, radius + k * b.abs()
    return rounded_outward(centre, radius)


def rounded_outward(centre: Float[Tensor, "m k"], radius: Float[Tensor, "m k"]) -> Box:
    """Make the box of a centre and a radius.

    Args:
        centre: The middle.
        radius: Half of the width, but for underflow.

    Returns:
        A box that holds it.
    """
    radius = radius + TINY
    return Box(_down(centre - radius), _up(centre + radius))


def image(phi: StatePhi, z: Box) -> Box:
    """Bound φ over a box.

    Args:
        phi: Elementwise activations, or a maximum.
        z: Box of its arguments.

    Returns:
        Box of its values.

    Raises:
        InputError: If φ is an operation that was kept as it is.
    """
    if isinstance(phi, Kept):
        raise InputError(f"{phi.name}: its range over an interval is not known")
    if isinstance(phi, Stacked):
        sizes = [block.size for block in phi.blocks]
        ends = zip(phi.blocks, z.low.split(sizes, 1), z.high.split(sizes, 1), strict=True)
        parts = [image(block.phi, Box(low, high)) for block, low, high in ends]
        return Box(torch.cat([p.low for p in parts], 1), torch.cat([p.high for p in parts], 1))
    low, high = phi(z.low), phi(z.high)
    if isinstance(phi, MaxPool):
        return Box(low, high)
    match phi.name:
        case "relu" | "relu6" | "identity":
            return Box(low, high)
        case "silu" | "gelu" | "gelu_tanh":
            # falls to its least value, then rises
            turn, least = LEAST[phi.name]
            inside = (z.low < turn + 1e-4) & (z.high > turn - 1e-4)
            spread = PHI_ROUNDING * z.size + TINY
            bottom = torch.where(inside, least, torch.minimum(low, high) - spread)
            return Box(_down(bottom), _up(torch.maximum(low, high) + spread))
        case "leaky_relu":
            return Box(_down(low), _up(high))
        case "tanh" | "sigmoid":
            return Box(
                _down(low - PHI_ROUNDING * low.abs() - TINY),
                _up(high + PHI_ROUNDING * high.abs() + TINY),
            )


def _down(t: Tensor) -> Tensor:
    return t.nextafter(torch.full_like(t, -torch.inf))


def _up(t: Tensor) -> Tensor:
    return t.nextafter(torch.full_like(t, torch.inf))
