"""Gradual magnitude pruning (Zhu and Gupta, "To prune, or not to prune", 2017)."""

import math

import torch
from torch import nn

from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.finetune import hold, keep_largest, train
from simplicit.lab.baselines.tools.task import Task

PRUNED_BY = 0.75
"""Part of the steps over which the sparsity rises; in the rest the mask stays."""

PRUNINGS = 100
"""Times the mask is drawn anew, n of the paper."""


def gmp(task: Task, sparsity: float) -> nn.Module:
    """Train, and remove ever more of the weights of least magnitude of all layers together.

    Args:
        task: The network, its labelled training set and the epochs that may be used.
        sparsity: Fraction of its non-zero weights to remove, in [0, 1).

    Returns:
        A pruned copy with exactly round((1 − sparsity) N₀) non-zero weights.
    """
    net, count = weights.begin(task, sparsity)
    total = weights.nonzeros(net)
    steps = task.epochs * math.ceil(len(task.train_inputs) / task.batch_size)
    span = PRUNED_BY * steps
    interval = max(1, round(span / PRUNINGS))
    held, done = keep_largest(net, total), torch.zeros((), dtype=torch.int64)

    def after_step() -> None:
        done.add_(1)
        step = int(done)
        hold(held)
        if step % interval == 0 and step < span + interval:
            stay = keep_largest(net, round((1 - cubic(step, span, sparsity)) * total))
            for (_, mask), (_, new) in zip(held, stay, strict=True):
                mask.copy_(new)

    also = {"steps": done} | {f"mask {k}": mask for k, (_, mask) in enumerate(held)}
    train(task, net, task.epochs, after_step=after_step, also=also)
    keep_largest(net, count)  # nothing new, unless there was no step at all
    return net


def cubic(
    t: int | float, span: int | float, final: float, initial: float = 0.0, begin: int | float = 0
) -> float:
    """Sparsity at a step: s_f + (s_0 − s_f) (1 − (t − t₀)/(n Δt))³.

    Args:
        t: The step.
        span: Steps over which it rises, n Δt.
        final: Sparsity from then on, s_f.
        initial: Sparsity before, s_0.
        begin: Step at which it begins to rise, t₀.

    Returns:
        The sparsity.
    """
    done = min(1.0, max(0.0, (t - begin) / span))
    return final + (initial - final) * (1 - done) ** 3
