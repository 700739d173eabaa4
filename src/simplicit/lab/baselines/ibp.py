"""Interval-bound training (Gowal et al., "On the Effectiveness of Interval Bound Propagation")."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from simplicit.errors import InputError
from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.finetune import hold, keep_largest, train
from simplicit.lab.baselines.tools.task import Task
from simplicit.refine.worst_case import Ramp, mixed

SLOWER = 0.1
"""What the task's learning rate is divided by; chosen on held-out training images."""

MONOTONE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Flatten)
"""Modules that map a box by its two ends."""


def ibp(task: Task, sparsity: float) -> nn.Module:
    """Train the network on the worst logits that intervals allow, from its trained weights.

    Args:
        task: A plain feed-forward network, its labelled training set and the epochs to use.
        sparsity: Fraction of its weights, those of least magnitude, to remove first; 0 for none.

    Returns:
        A trained copy with exactly round((1 − sparsity) N₀) non-zero weights.

    Raises:
        InputError: If the network is not a chain of linear layers and monotone activations.
    """
    net, count = weights.begin(task, sparsity)
    if not isinstance(net, nn.Sequential) or not isinstance(net[-1], nn.Linear):
        raise InputError("baseline ibp: accepted is a network of type fnn")
    held = keep_largest(net, count)
    ramp = Ramp(task.epochs * math.ceil(len(task.train_inputs) / task.batch_size))

    def objective(u: Tensor, y: Tensor) -> Tensor:
        part = ramp()
        worst = worst_logits(net, u, y, part * task.eps)
        return mixed(F.cross_entropy(net(u), y), worst, y, part)

    train(task, net, task.epochs, slower=SLOWER, objective=objective, after_step=lambda: hold(held))
    return net


def worst_logits(net: nn.Sequential, u: Tensor, y: Tensor, eps: float) -> Tensor:
    """Bound every logit's lead over that of the class, over the ball, from above.

    Args:
        net: Linear layers and monotone activations; the last is linear.
        u: Inputs.
        y: Their classes.
        eps: Radius of the l∞ ball, cut at [0, 1].

    Returns:
        Bounds on y_k − y_class, (m, q); 0 for the class itself.

    Raises:
        InputError: On another module.
    """
    low, high = (u - eps).clamp(0, 1), (u + eps).clamp(0, 1)
    *body, last = net
    for module in body:
        if isinstance(module, nn.Linear):
            centre, radius = module((low + high) / 2), (high - low) / 2 @ module.weight.abs().T
            low, high = centre - radius, centre + radius
        elif isinstance(module, MONOTONE):
            low, high = module(low), module(high)
        else:
            raise InputError(f"baseline ibp: {type(module).__name__} is not a monotone activation")
    assert isinstance(last, nn.Linear)
    # the difference of two rows over the box is less than the difference of their bounds
    W = last.weight - last.weight[y][:, None]  # (m, q, n)
    centre = (W @ ((low + high) / 2)[:, :, None])[:, :, 0]
    radius = (W.abs() @ ((high - low) / 2)[:, :, None])[:, :, 0]
    bound = centre + radius
    return bound if last.bias is None else bound + last.bias - last.bias[y, None]
