"""Which weights each row keeps, refitted; and the bound on what other supports could do."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.sparsity import elimination, splitting
from simplicit.sparsity.near import Anchor, refit_near
from simplicit.sparsity.refit import refit

BOUND_RIDGE = 1e-2
"""Ridge of the bound, relative to a feature's curvature: without one the dual knows no l0."""

Method = Literal["splitting", "elimination"]
METHODS = {"splitting": splitting, "elimination": elimination}
"""Two ways to the same: `supports` of rows, and how a budget is spent on them, `allot`."""


def choose(
    problem: RowProblem,
    keep: Sequence[int],
    method: Method = "splitting",
    workers: int = 1,
    anchor: Anchor = None,
) -> Float[Tensor, "K N"]:
    """Choose the weights of each row, and refit.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row, free features not counted.
        method: How they are chosen.
        workers: Parallel blocks of rows.
        anchor: Weights that the data may leave as they are; zero without.

    Returns:
        Weights (K, N).
    """
    support = METHODS[method].supports(problem, keep, workers, anchor)
    return (
        refit(problem, support) if anchor is None else refit_near(problem, support, anchor, workers)
    )


def bounded(problem: RowProblem, price: Float[Tensor, " K"]) -> RowProblem:
    """Write the l0 problem whose supports are chosen; its dual bounds all supports.

    Args:
        problem: The rows; penalty and ball are left out.
        price: Loss that a weight of each row has to save. More than t2 buys nothing: at
            ½ t2 a row is empty already.

    Returns:
        Rows with l0 = price and a small ridge.
    """
    l0 = torch.minimum(price, problem.gram.t2)
    penalty = Penalty(l0=l0, l2=BOUND_RIDGE, scales=problem.penalty.scales)
    return replace(problem, penalty=penalty)


def prune_smallest(W: Float[Tensor, "r c"], percentage: float) -> Float[Tensor, "r c"]:
    """Zero the given percentage of entries of smallest magnitude, as the seed does after a solve.

    Returns:
        A copy with zeros.
    """
    count = int(W.numel() * percentage / 100)
    pruned = W.clone()
    pruned.view(-1)[W.abs().view(-1).argsort(stable=True)[:count]] = 0.0
    return pruned
