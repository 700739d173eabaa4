"""Weights that rows are given back: those that would bring the outputs nearest, each by itself."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.equations.equation import Equation
from simplicit.equations.network import StateEquations
from simplicit.model.dead_states import moving, pattern


def grown(
    equations: StateEquations,
    layers: Sequence[Rows],
    gain: Callable[[Rows], Float[Tensor, "groups K d"]],
    count: int,
) -> list[Equation]:
    """Spend weights where they bring the outputs nearest.

    Args:
        equations: The model.
        layers: The rows that may have more weights.
        gain: How much nearer each of their weights would bring the outputs by itself.
        count: How many weights there are to spend.

    Returns:
        All layers. The new weights are as small as numbers are: the next sweep finds their values.
    """
    every = list(equations.layers)
    if count < 1 or not layers:
        return every
    tiny = torch.finfo(torch.float32).tiny
    marked, sources = pattern(equations), moving(equations)[0]
    gains = []
    for rows in layers:
        # what does not move is a constant, as the bias is
        moves = (rows.features(marked.layers[rows.index], sources) != 0).any(1)
        absent = (rows.weights(every[rows.index]) == 0) & moves[:, None]
        gains.append((gain(rows) * absent).flatten())
    flat = torch.cat(gains)
    best = flat.topk(min(count, flat.numel()))
    added = torch.zeros_like(flat)
    added[best.indices[best.values > 0]] = tiny
    for rows, more in zip(layers, added.split([len(own) for own in gains]), strict=True):
        W = rows.weights(every[rows.index])
        W = torch.where(W == 0, more.view_as(W), W)
        every[rows.index] = rows.put(every[rows.index], W, W.new_zeros(W.shape[:2]))
    return every
