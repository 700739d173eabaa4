"""Attacks with gradients: inputs near given ones, chosen so that the class changes.

FGSM is one signed step (Goodfellow, Shlens, Szegedy 2015), PGD many projected ones from random
starts (Madry, Makelov, Schmidt, Tsipras, Vladu 2018). Restarts take turns with two losses: the
cross-entropy, and the margin to the best other class, whose gradient does not vanish where a sample
is classified with confidence (Carlini, Wagner 2017). What stands them is climbed towards each wrong
class by itself (Gowal et al. 2019), in long steps that become shorter.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.bounds.branches.falsify import counterexample, relaxed
from simplicit.bounds.exact import equations_of
from simplicit.bounds.intervals import around
from simplicit.bounds.layer_boxes import prepared
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel

Predict = Callable[[Tensor], Tensor]
"""Inputs (m, *shape) to logits (m, q), differentiable."""

Norm = Literal["linf", "l2"]

TARGETS = 9
"""Wrong classes that are climbed towards, those with the largest logits."""

LENGTHS = 2.0, 0.05
"""First and last step towards a class, in radii: the first reaches a corner of the ball."""

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
    at = u.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(predict(at), y, reduction="sum"), at)
    moved = u + eps * slope.sign()
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
    targets: int = TARGETS,
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
        targets: How many wrong classes are then climbed towards, from the sample itself.
        seed: Of the starts.

    Returns:
        Other inputs in the balls: misclassified ones where any were found, else the last ones.
    """
    generator = torch.Generator().manual_seed(seed)
    steady = [STEP * eps / max(steps, 1)] * steps
    # drawn for all samples, so that a sample's start does not depend on the others' luck
    climbs = [
        (u + _draw(u, eps, norm, generator), _entropy if k % 2 == 0 else _margin, steady)
        for k in range(restarts)
    ]
    with torch.no_grad():
        logits = predict(u)
    wrong = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    first, last = (eps * length for length in LENGTHS)
    shorter = [
        first * (last / first) ** (k / max(steps - 1, 1)) if eps else 0.0 for k in range(steps)
    ]
    climbs += [
        (u, _towards(wrong[:, k]), shorter) for k in range(min(targets, logits.shape[1] - 1))
    ]
    found, open_ = u.clone(), torch.ones(len(u), dtype=torch.bool, device=u.device)
    for start, loss, lengths in climbs:
        start = start if bounds is None else start.clamp(*bounds)
        found[open_] = start[open_]
        for length in (*lengths, None):
            index = open_.nonzero()[:, 0]
            if len(index) == 0:
                return found
            at, centre, label = found[index], u[index], y[index]
            at = at.detach().requires_grad_()
            logits = predict(at)
            open_[index] = logits.argmax(1) == label
            if length is None:
                break
            (slope,) = torch.autograd.grad(loss(logits, label, index), at)
            moved = _project(at.detach() + length * _unit(slope, norm), centre, eps, norm)
            moved = moved if bounds is None else moved.clamp(*bounds)
            still = open_[index]
            found[index[still]] = moved[still]
    return found


def relaxation(
    model: ImplicitModel,
    u: Float[Tensor, "m *shape"],
    y: Int[Tensor, "m"],
    eps: float,
    bounds: tuple[float, float] | None = None,
) -> Float[Tensor, "m *shape"]:
    """Begin where the bound of backward substitution has its least value, and climb from there.

    Args:
        model: In float64, on the CPU, without feedback.
        u: Inputs.
        y: Their classes.
        eps: Radius of the l∞ ball.
        bounds: Least and largest value of an input.

    Returns:
        Other inputs in the balls: misclassified ones where any were found, else the inputs.

    Raises:
        InputError: If the model has feedback.
    """
    if model.equations.feedback:
        raise InputError("attack relaxation of a model with feedback: accepted are others")
    layers, moved = prepared(equations_of(model)), u.flatten(1).clone()
    for k, one in enumerate(u.flatten(1).split(1)):
        box = around(one, one.new_full((1,), eps), bounds)
        starts = relaxed(layers, box, int(y[k]))
        point = counterexample(model.outputs, box, int(y[k]), starts)
        moved[k] = moved[k] if point is None else point
    return moved.reshape(u.shape)


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


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits and classes of some samples, and which they are, to what is climbed, summed."""


def _entropy(logits: Tensor, y: Tensor, _: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="sum")


def _margin(logits: Tensor, y: Tensor, _: Tensor) -> Tensor:
    own = logits.gather(1, y[:, None])[:, 0]
    return (logits.scatter(1, y[:, None], -torch.inf).amax(1) - own).sum()


def _towards(wanted: Tensor) -> Loss:
    def loss(logits: Tensor, y: Tensor, index: Tensor) -> Tensor:
        pair = torch.stack([wanted[index], y], 1)
        other, own = logits.gather(1, pair).unbind(1)
        return (other - own).sum()

    return loss


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
