"""The worst case that intervals allow, to be trained for.

Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
Models" (2018). Rounding is not bounded here: `certify` does that for the model that comes out.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.bounds.intervals import LEAST
from simplicit.equations.equation import Equation
from simplicit.equations.layer_phi import StatePhi
from simplicit.errors import InputError
from simplicit.model.certificate import absolute
from simplicit.model.implicit import ImplicitModel

RAMP = 0.5
"""Part of the steps over which the radius, and the weight of the worst case, grow from 0."""

SHARE = 0.5
"""Weight of the worst case in the loss after the ramp, as in the paper; the rest is the inputs'."""


class Ramp:
    """Grows from 0 to 1 over a part of the steps, once a call.

    Args:
        steps: Steps of the whole training.

    Attributes:
        done: Calls so far; a tensor, since it is part of a training's state.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.done = max(1.0, RAMP * steps), torch.zeros((), dtype=torch.int64)

    def __call__(self) -> float:
        """Take a step.

        Returns:
            How far the ramp is, in [0, 1].
        """
        self.done.add_(1)
        return min(1.0, int(self.done) / self.steps)


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


def require_bounds(model: ImplicitModel) -> None:
    """Do nothing if `worst_logits` knows bounds of a model.

    Raises:
        InputError: If the model has feedback or an operation that was kept as it is.
    """
    if model.equations.feedback:
        raise InputError("finetune_eps: accepted are structures triangular and layered")
    if kept := model.equations.kept:
        raise InputError(
            f"finetune_eps: no bounds are known of {', '.join(kept)}; accepted are linear layers, "
            "convolutions, max-pooling and elementwise activations"
        )


def worst_logits(
    model: ImplicitModel, u: Float[Tensor, "m *shape"], y: Int[Tensor, "m"], eps: float
) -> Float[Tensor, "m q"]:
    """Bound every logit's lead over that of the class from above, differentiably in the weights.

    Intervals pass through the equations map by map: centres through the maps, radii through their
    absolute values.

    Args:
        model: A model that `require_bounds` accepts.
        u: Inputs in [0, 1].
        y: Classes.
        eps: Radius of the l∞ ball, cut at [0, 1].

    Returns:
        Bounds on y_k − y_class over the ball; 0 for the class itself.
    """
    require_bounds(model)
    equations = model.equations
    sizes = absolute(equations)
    u = u.to(equations.like).flatten(1)
    low, high = (u - eps).clamp(0, 1), (u + eps).clamp(0, 1)
    middle, half = (low + high) / 2, (high - low) / 2
    centres: list[Tensor] = []
    radii: list[Tensor] = []
    for e, size in zip(equations.hidden, sizes.hidden, strict=True):
        c, r = e.preactivation([*centres, middle]), size.preactivation([*radii, half])
        low, high = _image(e.phi, c - r, c + r)
        centres.append((low + high) / 2)
        radii.append((high - low) / 2)
    outputs = equations.output.preactivation([*centres, middle])
    lead = _leads(equations.output, sizes.output, [*radii, half])
    every = torch.arange(len(y), device=y.device)
    return outputs - outputs[every, y, None] + lead[every, y]


# SiLU and GELU fall to their least value, then rise; all others rise
def _image(phi: StatePhi, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    first, last = phi(low), phi(high)
    if phi.name not in LEAST:
        return first, last
    turn, least = LEAST[phi.name]
    inside = (low < turn) & (turn < high)
    return torch.minimum(first, last).where(~inside, least), torch.maximum(first, last)


# how far the difference of any two outputs moves over the box, (m, q, q): with a matrix the
# difference of its rows, less than both do
def _leads(output: Equation, sizes: Equation, radii: list[Tensor]) -> Tensor:
    parts = []
    for term, size in zip(output.terms, sizes.terms, strict=True):
        reads = size.reads(radii[term.source])
        if term.is_matrix:
            rows = (term.weight[:, None] - term.weight).abs().flatten(0, 1)
            parts.append((reads @ rows.T).unflatten(1, (len(term.weight), -1)))
        else:
            parts.append(_pairs(size.map(reads)))
    parts += [_pairs(summand.map(radii[summand.source])) for summand in sizes.fixed]
    return sum(parts[1:], parts[0])


def _pairs(radius: Tensor) -> Tensor:
    same = torch.eye(radius.shape[1], dtype=torch.bool, device=radius.device)
    return (radius[:, :, None] + radius[:, None]).masked_fill(same, 0.0)
