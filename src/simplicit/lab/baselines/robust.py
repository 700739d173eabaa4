"""Training on labels for robustness: on attacked inputs, on intervals, with small weights.

`adversarial` is by Madry et al. ("Towards deep learning models resistant to adversarial attacks",
ICLR 2018), `ibp` by Gowal et al. ("On the effectiveness of interval bound propagation", 2018),
`decay` by Krogh and Hertz ("A simple weight decay can improve generalization", 1991).
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplicit.errors import InputError
from simplicit.explicit.training import evaluating
from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.finetune import hold, keep_largest, train
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.evaluate.attacks import pgd
from simplicit.refine.worst_case import Ramp, mixed

STEPS = 7
"""PGD steps a batch, from one random start, as in the paper."""

DECAY = 1e-3
"""Weight of ½‖w‖² in the loss; on 5 epochs of Fashion-MNIST ten times as much costs accuracy."""

SLOWER = 0.1
"""The learning rate of `ibp` is the task's divided by this; chosen on held-out training images."""

MONOTONE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Flatten)
"""Modules that map a box by its two ends."""


def adversarial(task: Task, sparsity: float) -> nn.Module:
    """Train the network on attacked inputs: cross-entropy at the point that PGD finds.

    Args:
        task: The network, its labelled training set, the radius and the epochs that may be used.
        sparsity: Fraction of its weights, those of least magnitude, to remove first; 0 for none.

    Returns:
        A trained copy with exactly round((1 − sparsity) N₀) non-zero weights.
    """
    seed = torch.tensor(task.seed)

    def objective(net: nn.Module, u: Tensor, y: Tensor) -> Tensor:
        seed.add_(1)
        with evaluating(net):
            moved = pgd(
                    net, u, y, task.eps, (0.0, 1.0),
                    steps=STEPS, restarts=1, targets=0, seed=int(seed),
                )  # fmt: skip
        return F.cross_entropy(net(moved), y)

    return _trained(task, sparsity, objective, also={"seed": seed})


def decay(task: Task, sparsity: float) -> nn.Module:
    """Train the network on with the squared weights in the loss.

    Args:
        task: The network, its labelled training set and the epochs that may be used.
        sparsity: Fraction of its weights, those of least magnitude, to remove first; 0 for none.

    Returns:
        A trained copy with exactly round((1 − sparsity) N₀) non-zero weights.
    """

    def objective(net: nn.Module, u: Tensor, y: Tensor) -> Tensor:
        squares = [layer.weight.square().sum() for layer in weights.layers(net)]
        return F.cross_entropy(net(u), y) + DECAY / 2 * torch.stack(squares).sum()

    return _trained(task, sparsity, objective)


def ibp(task: Task, sparsity: float) -> nn.Module:
    """Train the network on the worst logits that intervals allow.

    Args:
        task: A plain feed-forward network, its labelled training set, the radius and the epochs
            that may be used.
        sparsity: Fraction of its weights, those of least magnitude, to remove first; 0 for none.

    Returns:
        A trained copy with exactly round((1 − sparsity) N₀) non-zero weights.

    Raises:
        InputError: If the network is not a chain of linear layers and monotone activations.
    """
    if not isinstance(task.net, nn.Sequential) or not isinstance(task.net[-1], nn.Linear):
        raise InputError("baseline ibp: accepted is a network of type fnn")
    ramp = Ramp(task.epochs * math.ceil(len(task.train_inputs) / task.batch_size))

    def objective(net: nn.Module, u: Tensor, y: Tensor) -> Tensor:
        assert isinstance(net, nn.Sequential)
        part = ramp()
        worst = worst_logits(net, u, y, part * task.eps)
        return mixed(F.cross_entropy(net(u), y), worst, y, part)

    return _trained(task, sparsity, objective, slower=SLOWER, also={"ramp": ramp.done})


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


def _trained(
    task: Task,
    sparsity: float,
    objective: Callable[[nn.Module, Tensor, Tensor], Tensor],
    slower: float = 1.0,
    also: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    net, stay = weights.begin(task, sparsity)
    held = keep_largest(net, stay)
    train(
        task,
        net,
        task.epochs,
        slower=slower,
        objective=lambda u, y: objective(net, u, y),
        after_step=lambda: hold(held),
        also=also,
    )
    return net
