"""Adversarial training: cross-entropy on what PGD makes of each batch (Madry et al., 2018)."""

import torch.nn.functional as F
from torch import Tensor, nn

from simplicit.explicit.training import evaluating
from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.finetune import hold, keep_largest, train
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.evaluate.attacks import pgd

STEPS = 7
"""PGD steps a batch, from one random start, as in the paper."""


def adversarial(task: Task, sparsity: float) -> nn.Module:
    """Train the network on attacked inputs, from its trained weights.

    Args:
        task: The network, its labelled training set and the epochs that may be used.
        sparsity: Fraction of its weights, those of least magnitude, to remove first; 0 for none.

    Returns:
        A trained copy with exactly round((1 − sparsity) N₀) non-zero weights.
    """
    net, count = weights.begin(task, sparsity)
    held = keep_largest(net, count)
    batches = 0

    def objective(u: Tensor, y: Tensor) -> Tensor:
        nonlocal batches
        batches += 1
        with evaluating(net):
            seed = task.seed + batches
            moved = pgd(net, u, y, task.eps, (0.0, 1.0), steps=STEPS, restarts=1, seed=seed)
        return F.cross_entropy(net(moved), y)

    train(task, net, task.epochs, objective=objective, after_step=lambda: hold(held))
    return net
