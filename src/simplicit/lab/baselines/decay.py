"""Weight decay: the plainest way to small weights (Krogh, Hertz, 1991)."""

import torch
from torch import nn

from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.finetune import hold, keep_largest, train
from simplicit.lab.baselines.tools.task import Task

DECAY = 1e-3
"""Weight of ½‖w‖² in the loss; on 5 epochs of Fashion-MNIST ten times as much costs accuracy."""


def decay(task: Task, sparsity: float) -> nn.Module:
    """Train the network on with the squared weights in the loss.

    Args:
        task: The network, its labelled training set and the epochs that may be used.
        sparsity: Fraction of its weights, those of least magnitude, to remove first; 0 for none.

    Returns:
        A trained copy with exactly round((1 − sparsity) N₀) non-zero weights.
    """
    net, count = weights.begin(task, sparsity)
    held = keep_largest(net, count)

    def penalty() -> torch.Tensor:
        squares = [layer.weight.square().sum() for layer in weights.layers(net)]
        return DECAY / 2 * torch.stack(squares).sum()

    train(task, net, task.epochs, penalty=penalty, after_step=lambda: hold(held))
    return net
