"""The worst case that intervals allow, to be trained for.

Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
Models" (2018). Rounding is not bounded here: `certify` does that for the model that comes out.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel

RAMP = 0.5
"""Part of the steps over which the radius, and the weight of the worst case, grow from 0."""

SHARE = 0.5
"""Weight of the worst case in the loss after the ramp, as in the paper; the rest is the inputs'."""


class Ramp:
    """Grows from 0 to 1 over a part of the steps, once a call.

    Args:
        steps: Steps of the whole training.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.done = max(1.0, RAMP * steps), 0

    def __call__(self) -> float:
        """Take a step.

        Returns:
            How far the ramp is, in [0, 1].
        """
        self.done += 1
        return min(1.0, self.done / self.steps)


def mixed(clean: Tensor, worst: Tensor, y: Int[Tensor, "m"], part: float) -> Tensor:
    """Mix the loss of the inputs with the cross-entropy of the worst case.

    Args:
        clean: Loss of the inputs, a scalar.
        worst: Bounds on y_k − y_class, (m, q).
        y: Classes.
        part: How far the ramp is.

    Returns:
        The loss.
    """
    return (1 - part * SHARE) * clean + part * SHARE * F.cross_entropy(worst, y)


def worst_logits(
    model: ImplicitModel, u: Float[Tensor, "m *shape"], y: Int[Tensor, "m"], eps: float
) -> Float[Tensor, "m q"]:
    """Bound every logit's lead over that of the class from above, differentiably in the weights.

    Args:
        model: A `triangular` or `layered` model with monotone φ.
        u: Inputs in [0, 1].
        y: Classes.
        eps: Radius of the l∞ ball, cut at [0, 1].

    Returns:
        Bounds on y_k − y_class over the ball; 0 for the class itself.

    Raises:
        InputError: If the model has feedback.
    """
    if model.structure == "full":
        raise InputError("finetune_eps: accepted are structures triangular and layered")
    u = u.to(model.A).flatten(1)
    low, high = (u - eps).clamp(0, 1), (u + eps).clamp(0, 1)
    middle, half = (low + high) / 2, (high - low) / 2
    z = middle @ model.B.T if model.b is None else middle @ model.B.T + model.b
    spread, stop = half @ model.B.abs().T, model.n
    centre = radius = u[:, :0]
    for block in reversed(model.blocks):
        rows = slice(stop - block.size, stop)
        A = model.A[rows, stop:]
        c, r = z[:, rows] + centre @ A.T, spread[:, rows] + radius @ A.abs().T
        low, high = block.phi(c - r), block.phi(c + r)
        centre = torch.cat([(low + high) / 2, centre], 1)
        radius, stop = torch.cat([(high - low) / 2, radius], 1), rows.start
    y_centre = centre @ model.C.T + middle @ model.D.T
    y_centre = y_centre if model.d is None else y_centre + model.d
    lead = _leads(model.C, radius) + _leads(model.D, half)
    every = torch.arange(len(y), device=y.device)
    return y_centre - y_centre[every, y, None] + lead[every, y]


# how far the difference of any two rows of W moves over the box, (m, q, q): less than both do
def _leads(W: Tensor, radius: Tensor) -> Tensor:
    return (radius @ (W[:, None] - W).abs().flatten(0, 1).T).unflatten(1, (len(W), -1))
