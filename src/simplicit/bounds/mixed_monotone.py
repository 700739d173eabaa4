"""Boxes around the equilibria of a model with feedback, over boxes of inputs.

The embedding of Jafarpour, Davydov, Abate, Bullo, Coogan, "Robust Training and Verification of
Implicit Neural Networks: a Non-Euclidean Contractive Approach" (arXiv 2208.03889, section 4): the
lower ends of the box follow the Metzler part of A (its diagonal and what is positive off it) with
the lower ends, the rest with the upper ends. It differs from plain intervals on the diagonal: where
a_ii < 0, state i sees its own value, not an interval of it.

No convergence is taken on trust. The first box is proved by the contraction; and given a box that
holds the equilibria x* of all inputs of a sample, for a state i and the range [s, s̄] of
Σ_{j≠i} a_ij x_j + (Bu + b)_i,

    t ≤ φ(a_ii t + s) for all s in the range  ⟹  t ≤ x*_i,

because t ↦ φ(a_ii t + s) − t falls strictly (|a_ii| L < 1) and x*_i is its root. So a step moves an
end only where that inequality is checked, and stopping at any step is sound.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.bounds.intervals import TINY, Box, Layers, affine, images, slack
from simplicit.bounds.lipschitz import resolvent, slopes
from simplicit.equations.phi import Phi
from simplicit.model.equilibrium import Block, apply_phi
from simplicit.model.implicit import ImplicitModel

STEPS = 60
"""Steps at most. At a rate of 0.9 the distance to the fixed point falls to 2e-3 of the first."""

SETTLED = 1e-4
"""Relative gain of all radii together at which the steps end."""

SHORT = 1e-12
"""By how much a proposed end stays short of the root, relative to the terms of z, so that its check
does not fail by rounding."""


class Start(NamedTuple):
    """Where the first box is put.

    Args:
        u: Inputs (m, p), each in its box.
        x: States of them that a solver found, (m, n).
        resolvent: Of the model, see `lipschitz.resolvent`.
    """

    u: Float[Tensor, "m p"]
    x: Float[Tensor, "m n"]
    resolvent: Float[Tensor, "n n"]

    def rows(self, which: Tensor | slice) -> "Start":
        """Take some samples.

        Returns:
            Their start.
        """
        return Start(self.u[which], self.x[which], self.resolvent)


def start(model: ImplicitModel, u: Float[Tensor, "m p"]) -> Start:
    """Solve for the states that first boxes are put around.

    Args:
        model: A model in float64 whose well-posedness is certified.
        u: Inputs, flattened.

    Returns:
        The start.
    """
    with torch.no_grad():
        x = model.equilibrium(u.unflatten(1, model.input_shape)).states.nan_to_num(0.0)
    return Start(u, x, resolvent(model.A.detach(), slopes(model), model.certificate))


def equilibrium_boxes(model: ImplicitModel, u: Box, begin: Start, *, hold: bool = True) -> Layers:
    """Bound the equilibria of all inputs of a box, sample by sample.

    Args:
        model: A model in float64.
        u: Boxes of inputs, flattened.
        begin: The same samples' start.
        hold: Whether states hold their own value (mixed-monotone), or boxes are plain intervals.

    Returns:
        Boxes of pre-activations and states.
    """
    A, B = model.A.detach(), model.B.detach()
    b = None if model.b is None else model.b.detach()
    diagonal = A.diagonal()
    off = A - torch.diag(diagonal)
    c = affine(B, u, b)
    x = first_box(model, u, begin)
    for _ in range(STEPS):
        before = float(x.radius.sum())
        x = x.meet(images(model.blocks, affine(A, x) + c))
        if hold:
            x = _hold(diagonal, affine(off, x) + c, x, model.blocks)
        if before - float(x.radius.sum()) <= SETTLED * before:
            break
    return Layers(affine(A, x) + c, x)


def first_box(model: ImplicitModel, u: Box, begin: Start) -> Box:
    """Bound the equilibria by the contraction alone.

    With r = |φ(Ax + Bu + b) − x| at the start, |x* − x| ≤ diag(L)(|A| |x* − x| + |B| |u* − u|) + r.
    So a residual that the solver left only widens the box.

    Args:
        model: A model in float64.
        u: Boxes of inputs, flattened.
        begin: The same samples' start.

    Returns:
        Boxes of states.
    """
    A, B, x = model.A.detach(), model.B.detach(), begin.x
    k, L = slack(model.n + model.p), slopes(model)
    z, size = x @ A.T + begin.u @ B.T, x.abs() @ A.abs().T + begin.u.abs() @ B.abs().T
    if model.b is not None:
        z, size = z + model.b.detach(), size + model.b.detach().abs()
    fx = apply_phi(z, model.blocks)
    residual = (fx - x).abs() + L * k * size + k * (fx.abs() + x.abs()) + TINY
    away = torch.maximum(u.high - begin.u, begin.u - u.low) * (1 + k) + TINY
    reach = (L * (away @ B.abs().T) + residual) * (1 + k)
    radius = reach @ begin.resolvent.T * (1 + k) + k * x.abs() + TINY
    return Box(x - radius, x + radius)


# raises lower ends and lowers upper ends to where t = φ(a t + s), wherever the check holds
def _hold(a: Float[Tensor, " n"], s: Box, x: Box, blocks: Sequence[Block]) -> Box:
    low, high = _root(a, s.low, x.low, blocks), _root(a, s.high, x.high, blocks)
    low = low - SHORT * ((1 + a.abs()) * low.abs() + s.low.abs()) - TINY
    high = high + SHORT * ((1 + a.abs()) * high.abs() + s.high.abs()) + TINY
    low = torch.where(low <= _held(a, s, low, blocks).low, low, x.low)
    high = torch.where(high >= _held(a, s, high, blocks).high, high, x.high)
    return x.meet(Box(low, high))


def _held(a: Float[Tensor, " n"], s: Box, t: Tensor, blocks: Sequence[Block]) -> Box:
    own = a * t
    spread = slack(1) * own.abs() + TINY
    return images(blocks, Box(own - spread, own + spread) + s)


# Newton's steps for t = φ(a t + s): two end at a root of a piecewise linear φ, and what they miss
# the next steps of the box make good
def _root(a: Float[Tensor, " n"], s: Tensor, t: Tensor, blocks: Sequence[Block]) -> Tensor:
    sizes = [block.size for block in blocks]
    for _ in range(3):
        z = a * t + s
        slope = torch.cat(
            [
                b.phi.derivative(p) if isinstance(b.phi, Phi) else torch.zeros_like(p)
                for b, p in zip(blocks, z.split(sizes, 1), strict=True)
            ],
            1,
        )
        t = t - (t - apply_phi(z, blocks)) / (1 - a * slope)
    return t
