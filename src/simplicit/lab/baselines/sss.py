"""Sparse structure selection (Huang and Wang, ECCV 2018)."""

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.finetune import train
from simplicit.lab.baselines.tools.search import Found, nearest
from simplicit.lab.baselines.tools.structures import Structures, hidden, remove
from simplicit.lab.baselines.tools.task import Task

MOMENTUM = 0.9
"""μ of the authors' release."""

RATE = 0.1
"""Step η of the scales, that of the authors' release; the weights' rate is Adam's and says nothing
about it. With much smaller steps only a γ far above the gradients brings scales to 0, all alike."""

TRAININGS = 8
"""Trainings for the search of γ, each of `Task.epochs`."""


def sss(task: Task, sparsity: float) -> nn.Module:
    """Train with scales on structures, and remove those whose scale ends at 0.

    A hidden neuron or channel has a scale, and so has a whole residual block, the branch that is
    added to what bypasses it.

    The loss is cross-entropy + γ ‖λ‖₁ over all scales λ; γ is searched. No fine-tuning: removing
    what is multiplied by zero changes nothing.

    Args:
        task: The network, its labelled training set and the epochs of one training.
        sparsity: Fraction of its non-zero weights to remove, in [0, 1).

    Returns:
        A copy with zero rows and columns and the scales in its weights: of the trainings that
        reach the sparsity, the densest; if none does, the sparsest.
    """
    start, _ = weights.begin(task, sparsity)
    total = weights.nonzeros(start)
    steps = max(1, task.epochs * math.ceil(len(task.train_inputs) / task.batch_size))

    def run(gamma: float) -> Found:
        net = _trained(task, copy.deepcopy(start), gamma)
        return Found(net, 1 - weights.nonzeros(net) / total, gamma)

    # three times the γ that alone takes the scales from 1 to 0 in these steps, with the momentum
    gamma = (1 - MOMENTUM) / (steps * RATE)
    return nearest(run, sparsity, start=3 * gamma, trainings=TRAININGS).net


def apg_step(
    scale: Float[Tensor, " n"],
    velocity: Float[Tensor, " n"],
    gradient: Float[Tensor, " n"],
    eta: float,
    gamma: float,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """One step of the stochastic accelerated proximal gradient of the authors' release.

    v ← μ v;  z = λ − η g;  z ← sign(z) max(|z| − η γ, 0);  v ← z − λ + v;  λ ← max(0, z + μ v).

    Args:
        scale: λ.
        velocity: v.
        gradient: g, of the loss without the penalty.
        eta: Step size η.
        gamma: Weight γ of the penalty.

    Returns:
        The new λ and v.
    """
    z = scale - eta * gradient
    z = z.sign() * (z.abs() - eta * gamma).clamp(min=0)
    velocity = z - scale + MOMENTUM * velocity
    return (z + MOMENTUM * velocity).clamp(min=0), velocity


def _trained(task: Task, net: nn.Module, gamma: float) -> nn.Module:
    groups = hidden(task, net)
    # of each structure and, last, of the block
    sizes = [entry.layer.weight.shape[0] + entry.branch for entry in groups]
    scales = [torch.ones(n, device=task.device, requires_grad=True) for n in sizes]
    velocities = [torch.zeros_like(scale) for scale in scales]
    also = {f"scale {k}": scale for k, scale in enumerate(scales)}
    also |= {f"velocity {k}": velocity for k, velocity in enumerate(velocities)}
    handles = []

    def of(entry: Structures, scale: Tensor) -> Tensor:
        return scale[:-1] * scale[-1] if entry.branch else scale

    for entry, scale in zip(groups, scales, strict=True):

        def hook(_: nn.Module, __: tuple, out: Tensor, entry=entry, scale=scale) -> Tensor:
            return out * entry.spread(of(entry, scale), out)

        handles.append(entry.last.register_forward_hook(hook))

    def after_step() -> None:
        with torch.no_grad():
            for i, scale in enumerate(scales):
                gradient = torch.zeros_like(scale) if scale.grad is None else scale.grad
                new = apg_step(scale, velocities[i], gradient, RATE, gamma)
                scale.copy_(new[0])
                velocities[i].copy_(new[1])
                scale.grad = None

    try:
        train(task, net, task.epochs, after_step=after_step, also=also)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        factors = [of(entry, scale) for entry, scale in zip(groups, scales, strict=True)]
        for entry, factor in zip(groups, factors, strict=True):
            for parameter in entry.last.parameters(recurse=False):
                parameter.mul_(factor.view(-1, *[1] * (parameter.dim() - 1)))
    remove(task, net, groups, [factor > 0 for factor in factors])
    return net
