"""Weights that rows are given back: those that would bring the outputs nearest, each by itself."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.equations.equation import Equation
from simplicit.equations.network import StateEquations
from simplicit.model.dead_states import moving
from simplicit.model.dead_states import pattern as marks
from simplicit.sparsity.pattern import UNSTRUCTURED, Blocks, NofM, Pattern


def grown(
    equations: StateEquations,
    layers: Sequence[Rows],
    gain: Callable[[Rows], Float[Tensor, "groups K d"]],
    count: int,
    patterns: Sequence[Pattern] | None = None,
) -> list[Equation]:
    """Spend weights where they bring the outputs nearest, and where a pattern has room for them.

    Args:
        equations: The model.
        layers: The rows that may have more weights.
        gain: How much nearer each of their weights would bring the outputs by itself.
        count: How many weights there are to spend.
        patterns: Which weights of each layer may be zero together; single ones without.

    Returns:
        All layers. The new weights are as small as numbers are: the next sweep finds their values.
    """
    every = list(equations.layers)
    if count < 1 or not layers:
        return every
    tiny = torch.finfo(torch.float32).tiny
    marked, sources = marks(equations), moving(equations)[0]
    gains, numbers, first = [], [], 0
    for rows, pattern in zip(layers, patterns or [UNSTRUCTURED] * len(layers), strict=True):
        # what does not move is a constant, as the bias is
        moves = (rows.features(marked.layers[rows.index], sources) != 0).any(1)
        W = rows.weights(every[rows.index])
        absent = (W == 0) & moves[:, None]
        own = gain(rows) * absent
        if isinstance(pattern, NofM):
            # what is there takes its room first
            rank = torch.where(W != 0, torch.inf, own)
            own *= torch.stack([pattern.first(group) for group in rank])
        if isinstance(pattern, Blocks):
            parts = zip(own, absent, W != 0, strict=True)
            own = torch.stack([_means(pattern, *part) for part in parts])
            for group in W:
                numbers.append(_blocks(pattern, group).flatten() + first)
                first = int(numbers[-1].max()) + 1
        gains.append(own.flatten())
    flat = torch.cat(gains)
    added = torch.zeros_like(flat)
    if numbers:
        added[_best_blocks(flat, torch.cat(numbers), count)] = tiny
    else:
        best = flat.topk(min(count, flat.numel()))
        added[best.indices[best.values > 0]] = tiny
    for rows, more in zip(layers, added.split([len(own) for own in gains]), strict=True):
        W = rows.weights(every[rows.index])
        W = torch.where(W == 0, more.view_as(W), W)
        every[rows.index] = rows.put(every[rows.index], W, W.new_zeros(W.shape[:2]))
    return every


# the mean gain of the weights of each block that has none so far
def _means(pattern: Blocks, gain: Tensor, absent: Tensor, present: Tensor) -> Tensor:
    free = pattern.totals(absent.to(gain))
    mean = pattern.totals(gain) / free.clamp_min(1)
    mean = mean.masked_fill(pattern.totals(present.to(gain)) > 0, 0.0)
    return pattern.spread(mean, len(gain)) * absent


# number of each weight's block
def _blocks(pattern: Blocks, W: Tensor) -> Tensor:
    each = -(-len(W) // pattern.rows)
    every = torch.arange(each * pattern.count, device=W.device).view(each, -1)
    return pattern.spread(every, len(W))


# weights of the best blocks, as many whole ones as there is room for
def _best_blocks(gain: Tensor, block: Tensor, count: int) -> Tensor:
    kept = (gain > 0).nonzero()[:, 0]
    numbers, own, sizes = block[kept].unique(return_inverse=True, return_counts=True)
    mean = gain.new_zeros(len(numbers)).index_copy_(0, own, gain[kept])
    order = mean.argsort(descending=True, stable=True)
    chosen = torch.zeros_like(numbers, dtype=torch.bool)
    chosen[order[sizes[order].cumsum(0) <= count]] = True
    return kept[chosen[own]]
