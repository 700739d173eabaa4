"""The worst case that intervals allow, to be trained for.

Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
Models" (2018). Rounding is not bounded here: `certify` does that for the model that comes out.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .errors import InputError
from .model import ImplicitModel

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
    centre, radius, stop = (low + high) / 2, (high - low) / 2, model.n
    for block in reversed(model.blocks):
        rows = slice(stop - block.size, stop)
        W = torch.cat([model.A[rows, stop:], model.B[rows]], 1)
        z, spread = centre @ W.T, radius @ W.abs().T
        z = z if model.b is None else z + model.b[rows]
        low, high = block.phi(z - spread), block.phi(z + spread)
        centre = torch.cat([(low + high) / 2, centre], 1)
        radius, stop = torch.cat([(high - low) / 2, radius], 1), rows.start
    CD = torch.cat([model.C, model.D], 1)
    W = CD - CD[y][:, None]  # (m, q, n + p)
    lead = (W @ centre[:, :, None] + W.abs() @ radius[:, :, None])[:, :, 0]
    return lead if model.d is None else lead + model.d - model.d[y, None]
