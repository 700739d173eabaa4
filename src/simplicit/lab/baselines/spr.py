"""Structured perspective regularisation (Cacciola, Frangioni, Li and Lodi, 2022)."""

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simplicit.data import datasets as data
from simplicit.explicit import training as explicit
from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.finetune import hold, train
from simplicit.lab.baselines.tools.search import Found, nearest
from simplicit.lab.baselines.tools.structures import Structures, hidden, remove
from simplicit.lab.baselines.tools.task import Task

ALPHAS = (0.1, 0.5, 0.9)
"""Values of α that are tried."""

REGULARISED = 0.6
"""Part of the epochs with the regulariser: 300 of the paper's 500."""

ZERO = 1e-4
"""Weights up to this are zero after them, as in the paper."""

SLOWER = 100.0
"""In the last third of them Adam makes steps below `ZERO`: else no weight would stay there."""

TRAININGS = 4
"""Trainings for the search of λ, for each α; the next α begins at the λ of the one before."""

STRENGTH = 10.0
"""The first λ of the search."""

VALIDATION = 0.1
"""Part of the training set that chooses α."""


def spr(task: Task, sparsity: float) -> nn.Module:
    """Train with the perspective regulariser, remove rows that are zero, and train without it.

    The loss is cross-entropy + λ Σ |w_g| r(w_g) / Σ |w_g| over groups w_g, the weights into one
    hidden neuron or channel, of size |w_g|. λ is searched for each α; of those α whose networks
    reach the sparsity, the one that predicts the held-out part of the training set best is taken.

    Args:
        task: The network, its labelled training set and the epochs of one training.
        sparsity: Fraction of its non-zero weights to remove, in [0, 1).

    Returns:
        A copy with zero rows and columns: at or above the sparsity where a training reaches it.
    """
    start, _ = weights.begin(task, sparsity)
    total = weights.nonzeros(start)
    size = len(task.train_inputs)
    held_out = data.sample(size, VALIDATION, task.seed)
    rest = torch.ones(size, dtype=torch.bool).index_fill(0, held_out, False).nonzero().squeeze(1)
    epochs = math.ceil(REGULARISED * task.epochs)
    found: list[Found] = []
    for alpha in ALPHAS:

        def run(strength: float, alpha: float = alpha) -> Found:
            net = _regularised(task, copy.deepcopy(start), alpha, strength, epochs, rest)
            groups, stays = _left(task, net)
            remove(task, net, groups, stays)
            return Found(net, 1 - weights.nonzeros(net) / total, strength)

        first = found[-1].strength if found else STRENGTH
        found.append(nearest(run, sparsity, start=first, trainings=TRAININGS))

    def merit(one: Found) -> tuple[float, float]:
        inputs, labels = task.train_inputs[held_out], task.train_labels[held_out]
        return min(one.sparsity, sparsity), explicit.accuracy(one.net, inputs, labels)

    net = max(found, key=merit).net
    held = remove(task, net, *_left(task, net))
    train(task, net, task.epochs - epochs, after_step=lambda: hold(held))
    return net


def perspective(
    W: Float[Tensor, "groups d"], alpha: float, M: float | Float[Tensor, ""]
) -> Float[Tensor, " groups"]:
    """r(w) = min over y of α ‖w‖² / y + (1 − α) y, where ‖w‖∞ / M ≤ y ≤ 1.

    The least is at y = min(max(‖w‖∞ / M, √(α / (1 − α)) ‖w‖), 1). So r(w) is, in this order,
    α ‖w‖² + 1 − α where y = 1; 2 √(α (1 − α)) ‖w‖; and α M ‖w‖² / ‖w‖∞ + (1 − α) ‖w‖∞ / M.

    Args:
        W: One group a row.
        alpha: Weight of the ridge against the count, in (0, 1).
        M: Bound on the weights.

    Returns:
        r of each row; 0 for a row of zeros.
    """
    norm = W.norm(dim=1)
    y = torch.maximum(W.abs().amax(dim=1) / M, math.sqrt(alpha / (1 - alpha)) * norm)
    y = y.clamp(max=1)
    # a row of zeros has y = 0 and no ridge
    return alpha * norm.square() / y.clamp(min=torch.finfo(W.dtype).tiny) + (1 - alpha) * y


def _regularised(
    task: Task, net: nn.Module, alpha: float, strength: float, epochs: int, part: Tensor
) -> nn.Module:
    rows = [entry.layer.weight for entry in hidden(task, net)]
    bounds = [weight.detach().abs().max() for weight in rows]  # of the trained network
    total = sum(weight.numel() for weight in rows)

    def penalty() -> Tensor:
        each = [
            weight[0].numel() * perspective(weight.flatten(1), alpha, M).sum()
            for weight, M in zip(rows, bounds, strict=True)
        ]
        return strength / total * torch.stack(each).sum()

    slow = math.ceil(epochs / 3)
    train(task, net, epochs - slow, part=part, penalty=penalty)
    train(task, net, slow, part=part, penalty=penalty, slower=SLOWER)
    return net


def _left(task: Task, net: nn.Module) -> tuple[list[Structures], list[Tensor]]:
    groups = hidden(task, net)
    return groups, [
        (entry.layer.weight.detach().flatten(1).abs() > ZERO).any(dim=1) for entry in groups
    ]
