"""Inputs of a box that are given another class: signed gradients, for every wrong class.

Each wrong class has its own climb of y_k − y_label, as the difference to one class has gradients
where that to the best of many changes from step to step (Gowal et al., "An alternative surrogate
loss for PGD-based adversarial testing", 2019). Steps go to the corners of the box at first, where a
linear function has its maximum, and become shorter.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.bounds.branches.slopes import Ascent
from simplicit.bounds.intervals import Box
from simplicit.bounds.layer_boxes import Layer
from simplicit.bounds.linear_bounds import refined

STEPS = 24
"""Steps of a climb."""

STARTS = 6
"""Climbs of a class: from the middle, and from random corners."""

SHORTEST = 0.03
"""Length of the last step, in widths of the box."""


def counterexample(
    predict: Callable[[Tensor], Tensor],
    box: Box,
    label: int,
    starts: Float[Tensor, "r p"] | None = None,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> Float[Tensor, " p"] | None:
    """Search for an input whose class is another.

    Args:
        predict: Inputs (m, p) to logits (m, q), differentiable.
        box: Of one sample, (1, p).
        label: The class that should be kept.
        starts: Inputs to begin with, moved into the box; the middle and random corners by default.
        steps: Steps of each climb.
        seed: Of the corners.

    Returns:
        An input in the box where another logit is larger; None if none was found.
    """
    if starts is None:
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(STARTS - 1, box.low.shape[1], generator=generator) < 0.5
        starts = torch.cat([box.centre, torch.where(corner, box.low, box.high)])
    u = starts.to(box.low).clamp(box.low, box.high)  # those of an ascent are rounded to float32
    q = predict(u[:1]).shape[1]
    others = torch.tensor([k for k in range(q) if k != label])
    wanted = others.repeat_interleave(len(u))
    u = u.repeat(len(others), 1)
    lengths = torch.logspace(0, torch.tensor(SHORTEST).log10().item(), max(steps, 1))
    for step in range(steps + 1):
        u = u.detach().requires_grad_()
        y = predict(u)
        wrong = (y.argmax(1) != label).nonzero()[:, 0]
        if len(wrong):
            return u[wrong[0]].detach()
        if step == steps:
            return None
        ahead = y.gather(1, wanted[:, None])[:, 0] - y[:, label]
        (slope,) = torch.autograd.grad(ahead.sum(), u)
        with torch.no_grad():
            width = box.high - box.low
            u = (u + lengths[step] * width * slope.sign()).clamp(box.low, box.high)
    return None


def relaxed(layers: Sequence[Layer], box: Box, label: int) -> Float[Tensor, "k p"]:
    """Find where the bound of each margin by backward substitution has its least value.

    Args:
        layers: Of a network without feedback.
        box: Of one sample.
        label: Its class.

    Returns:
        An input for each wrong class.
    """
    with torch.no_grad():
        network = refined(layers, box)
    ascent = Ascent(network)
    return ascent.climbed(ascent.begun(margins(layers, label)), 0).inputs


def margins(layers: Sequence[Layer], label: int) -> Float[Tensor, "k q"]:
    """Write the margins of a class as functions of the outputs.

    Args:
        layers: Of the network.
        label: The class.

    Returns:
        Coefficients of y_label − y_k for every other class k.
    """
    q = layers[-1].equation.size
    one = torch.eye(q, dtype=torch.float64)
    return torch.stack([one[label] - one[k] for k in range(q) if k != label])
