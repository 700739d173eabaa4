"""Attacks with gradients: inputs near given ones, chosen so that the class changes.

FGSM is one signed step (Goodfellow, Shlens, Szegedy 2015), PGD many projected ones from random
starts (Madry, Makelov, Schmidt, Tsipras, Vladu 2018). Restarts take turns with two losses: the
cross-entropy, and the margin to the best other class, whose gradient does not vanish where a sample
is classified with confidence (Carlini, Wagner 2017).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Predict = Callable[[Tensor], Tensor]
"""Inputs (m, *shape) to logits (m, q), differentiable."""

Norm = Literal["linf", "l2"]

STEP = 2.5
"""Length of a PGD step times the number of steps, in radii: Madry et al. reach any point of the
ball from any other."""


def fgsm(
    predict: Predict,
    u: Float[Tensor, "m *shape"],
    y: Int[Tensor, "m"],
    eps: float,
    bounds: tuple[float, float] | None = None,
) -> Float[Tensor, "m *shape"]:
    """Move every entry by eps, up the gradient of the cross-entropy.

    Args:
        predict: What is attacked.
        u: Inputs.
        y: Their classes.
        eps: Radius of the l∞ ball.
        bounds: Least and largest value of an input.

    Returns:
        Other inputs in the balls.
    """
    moved = u + eps * _gradient(predict, u, y, F.cross_entropy).sign()
    return moved if bounds is None else moved.clamp(*bounds)


def pgd(
    predict: Predict,
    u: Float[Tensor, "m *shape"],
    y: Int[Tensor, "m"],
    eps: float,
    bounds: tuple[float, float] | None = None,
    *,
    norm: Norm = "linf",
    steps: int = 20,
    restarts: int = 2,
    seed: int = 0,
) -> Float[Tensor, "m *shape"]:
    """Climb inside the ball, from several random points; samples that have changed class stop.

    Args:
        predict: What is attacked.
        u: Inputs.
        y: Their classes.
        eps: Radius of the ball.
        bounds: Least and largest value of an input.
        norm: Of the ball, `linf` or `l2`.
        steps: Gradient steps of a restart.
        restarts: How many starts; odd ones climb the cross-entropy, even ones the margin.
        seed: Of the starts.

    Returns:
        Other inputs in the balls: misclassified ones where any were found, else the last ones.
    """
    generator = torch.Generator().manual_seed(seed)
    found, open_ = u.clone(), torch.ones(len(u), dtype=torch.bool, device=u.device)
    for restart in range(restarts):
        loss = F.cross_entropy if restart % 2 == 0 else _margin
        # drawn for all samples, so that a sample's start does not depend on the others' luck
        start = u + _draw(u, eps, norm, generator)
        start = start if bounds is None else start.clamp(*bounds)
        for step in range(steps + 1):
            index = open_.nonzero()[:, 0]
            if len(index) == 0:
                return found
            if step == 0:
                found[index] = start[index]
            at, centre, label = found[index], u[index], y[index]
            at = at.detach().requires_grad_()
            logits = predict(at)
            open_[index] = logits.argmax(1) == label
            if step == steps:
                break
            (slope,) = torch.autograd.grad(loss(logits, label, reduction="sum"), at)
            moved = _project(
                at.detach() + STEP * eps / steps * _unit(slope, norm), centre, eps, norm
            )
            moved = moved if bounds is None else moved.clamp(*bounds)
            still = open_[index]
            found[index[still]] = moved[still]
    return found


def right(predict: Predict, u: Float[Tensor, "m *shape"], y: Int[Tensor, "m"]) -> Bool[Tensor, "m"]:
    """Say which samples are classified correctly.

    Args:
        predict: The model.
        u: Inputs.
        y: Their classes.

    Returns:
        True where the largest logit is that of the class.
    """
    with torch.no_grad():
        return predict(u).argmax(1) == y


Loss = Callable[..., Tensor]


def _gradient(predict: Predict, u: Tensor, y: Tensor, loss: Loss) -> Tensor:
    at = u.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(predict(at), y, reduction="sum"), at)
    return slope


def _margin(logits: Tensor, y: Tensor, reduction: str = "sum") -> Tensor:
    own = logits.gather(1, y[:, None])[:, 0]
    other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return (other - own).sum() if reduction == "sum" else other - own


def _lengths(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1)).clamp_min(1e-30)


def _unit(slope: Tensor, norm: Norm) -> Tensor:
    return slope.sign() if norm == "linf" else slope / _lengths(slope)


def _project(point: Tensor, centre: Tensor, eps: float, norm: Norm) -> Tensor:
    if norm == "linf":
        return torch.minimum(torch.maximum(point, centre - eps), centre + eps)
    away = point - centre
    return centre + away * (eps / _lengths(away)).clamp(max=1.0)


# uniform in the l∞ ball; in the l2 ball a random direction, uniform in length
def _draw(u: Tensor, eps: float, norm: Norm, generator: torch.Generator) -> Tensor:
    if norm == "linf":
        part = torch.rand(u.shape, generator=generator, dtype=u.dtype)
        return (eps * (2 * part - 1)).to(u.device)
    way = torch.randn(u.shape, generator=generator, dtype=u.dtype)
    length = torch.rand((len(u), *[1] * (u.ndim - 1)), generator=generator, dtype=u.dtype)
    return (eps * length * way / _lengths(way)).to(u.device)
