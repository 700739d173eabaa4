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

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.bounds.intervals import TINY, Box, Boxes, affine, image, slack
from simplicit.bounds.layer_boxes import Layer
from simplicit.bounds.lipschitz import resolvent, steepest
from simplicit.equations.layer_phi import StatePhi
from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Stacked
from simplicit.model.certificate import Certificate
from simplicit.model.fixed_point import anderson

STEPS = 60
"""Steps at most. At a rate of 0.9 the distance to the fixed point falls to 2e-3 of the first."""

SETTLED = 1e-4
"""Relative gain of all radii together at which the steps end."""

SHORT = 1e-12
"""By how much a proposed end stays short of the root, relative to the terms of z, so that its check
does not fail by rounding."""


WARM_UP = 20
"""Plain steps before the accelerated ones, as in `model.equilibrium`."""


class Start(NamedTuple):
    """Where the first box is put.

    Args:
        u: Inputs (m, p), each in its box.
        x: States of them that a solver found, (m, n).
        resolvent: Of the layer, see `lipschitz.resolvent`.
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


def start(layer: Layer, u: Float[Tensor, "m p"], found: Certificate) -> Start:
    """Solve for the states that first boxes are put around.

    Args:
        layer: The layer that reads itself.
        u: Inputs, flattened.
        found: Its certificate; it is well-posed.

    Returns:
        The start.
    """
    A, phi = layer.feedback, layer.equation.phi
    with torch.no_grad():
        c = layer.rest.equation.preactivation([u])
        x = anderson(lambda x, c: phi(x @ A.T + c), torch.zeros_like(c), c, warm_up=WARM_UP).states
    return Start(u, x.nan_to_num(0.0), resolvent(A, steepest(phi, len(A)), found))


def equilibrium_boxes(layer: Layer, u: Box, begin: Start, *, hold: bool = True) -> Boxes:
    """Bound the equilibria of all inputs of a box, sample by sample.

    Args:
        layer: The layer that reads itself.
        u: Boxes of inputs, flattened.
        begin: The same samples' start.
        hold: Whether states hold their own value (mixed-monotone), or boxes are plain intervals.

    Returns:
        Boxes of pre-activations and states.
    """
    A, phi = layer.feedback, layer.equation.phi
    diagonal = A.diagonal()
    off = A - torch.diag(diagonal)
    c = layer.rest.box([u])
    x = first_box(layer, u, begin)
    for _ in range(STEPS):
        before = float(x.radius.sum())
        x = x.meet(image(phi, affine(A, x) + c))
        if hold:
            x = _hold(diagonal, affine(off, x) + c, x, phi)
        if before - float(x.radius.sum()) <= SETTLED * before:
            break
    return Boxes(affine(A, x) + c, x)


def first_box(layer: Layer, u: Box, begin: Start) -> Box:
    """Bound the equilibria by the contraction alone.

    With r = |φ(Ax + Bu + b) − x| at the start, |x* − x| ≤ diag(L)(|A| |x* − x| + |B| |u* − u|) + r.
    So a residual that the solver left only widens the box.

    Args:
        layer: The layer that reads itself.
        u: Boxes of inputs, flattened.
        begin: The same samples' start.

    Returns:
        Boxes of states.
    """
    x, phi = begin.x, layer.equation.phi
    k, L = slack(layer.products), steepest(phi, x.shape[1])
    z, size = layer.equation.preactivation([x, begin.u]), layer.size([x.abs(), begin.u.abs()])
    fx = phi(z)
    residual = (fx - x).abs() + L * k * size + k * (fx.abs() + x.abs()) + TINY
    away = torch.maximum(u.high - begin.u, begin.u - u.low) * (1 + k) + TINY
    moved = layer.rest.absolute.preactivation([away])
    reach = (L * moved + residual) * (1 + k)
    radius = reach @ begin.resolvent.T * (1 + k) + k * x.abs() + TINY
    return Box(x - radius, x + radius)


# raises lower ends and lowers upper ends to where t = φ(a t + s), wherever the check holds
def _hold(a: Float[Tensor, " n"], s: Box, x: Box, phi: StatePhi) -> Box:
    low, high = _root(a, s.low, x.low, phi), _root(a, s.high, x.high, phi)
    low = low - SHORT * ((1 + a.abs()) * low.abs() + s.low.abs()) - TINY
    high = high + SHORT * ((1 + a.abs()) * high.abs() + s.high.abs()) + TINY
    low = torch.where(low <= _held(a, s, low, phi).low, low, x.low)
    high = torch.where(high >= _held(a, s, high, phi).high, high, x.high)
    return x.meet(Box(low, high))


def _held(a: Float[Tensor, " n"], s: Box, t: Tensor, phi: StatePhi) -> Box:
    own = a * t
    spread = slack(1) * own.abs() + TINY
    return image(phi, Box(own - spread, own + spread) + s)


# Newton's steps for t = φ(a t + s): two end at a root of a piecewise linear φ, and what they miss
# the next steps of the box make good
def _root(a: Float[Tensor, " n"], s: Tensor, t: Tensor, phi: StatePhi) -> Tensor:
    assert isinstance(phi, Phi | Stacked)
    for _ in range(3):
        z = a * t + s
        t = t - (t - phi(z)) / (1 - a * phi.derivative(z))
    return t
