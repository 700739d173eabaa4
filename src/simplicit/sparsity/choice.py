"""Which weights each row keeps, refitted; and the bound on what other supports could do."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.sparsity import elimination, splitting
from simplicit.sparsity.budget import spend
from simplicit.sparsity.near import Anchor, refit_near, without_free
from simplicit.sparsity.refit import refit

BOUND_RIDGE = 1e-2
"""Ridge of the bound, relative to a feature's curvature: without one the dual knows no l0."""

WIDE = 1024
"""Features of a row from which on exact prices are those of candidates only."""

LONG = 2.0**38
"""Rows, times the cube of their features, from which on they are, too."""

SPARE = 1.5
"""Candidates of such a row for each weight that it seems to need."""

PRICED = 64
"""Rows of a problem that are priced exactly. Where there are more, every so many-th is, and says
how many times its square a weight of the others is worth."""

POINTS = 32
"""Places on the way from a row's first removal to its last where that is looked at."""

Method = Literal["splitting", "elimination"]
METHODS = {"splitting": splitting, "elimination": elimination}
"""Two ways to the `supports` of rows."""


def allot(
    problems: Sequence[RowProblem],
    importance: Sequence[Float[Tensor, "_"]],
    budget: int,
    method: Method = "splitting",
    executor: Executor | None = None,
    anchors: Sequence[Anchor] | None = None,
) -> tuple[float, list[list[int]]]:
    """Spend a budget over the rows of all problems, at one price for all weights.

    Prices are those of an exact elimination. With `splitting`, wide rows are priced among
    candidates only, and of many rows a sample is: it would take the cube of their length.

    Args:
        problems: Blocks of rows; penalty and ball are left out.
        importance: What a unit of each row's loss is worth, one vector per problem.
        budget: Non-zeros to keep in all rows together, free features not counted.
        method: How supports are chosen.
        executor: Takes rows side by side.
        anchors: For each problem, the weights its data may leave as they are; zero without.

    Returns:
        The price: the loss, times importance, up to which weights were removed; and how many
        weights each row keeps. Every row keeps a quarter of its equal share.
    """
    anchors = anchors or [None] * len(problems)
    # these last weights of a row need no price
    surely = budget // (4 * sum(len(p.gram.R) for p in problems))
    wide = [method == "splitting" and screened_first(*p.gram.R.shape) for p in problems]
    found = splitting.screen(problems, importance, budget, executor, anchors) if any(wide) else []
    prices: list[Tensor] = []
    for k, (problem, worth, anchor) in enumerate(zip(problems, importance, anchors, strict=True)):
        keep = min(surely, int((~problem.free).sum()))
        if wide[k]:
            costs = _among_candidates(problem, *found[k], keep, executor, anchor)
        else:
            costs = list(elimination.costs(problem, keep, executor, anchor))
        for row, unit in zip(costs, worth.tolist(), strict=True):
            priced = torch.cat([unit * row, row.new_full((keep,), torch.inf)])
            prices.append(priced.cpu())
    kept = spend(prices, budget)
    removed = [
        float(c[: len(c) - k].max()) for c, k in zip(prices, kept, strict=True) if len(c) > k
    ]
    counts = iter(kept)
    return max(removed, default=0.0), [[next(counts) for _ in p.gram.R] for p in problems]


def screened_first(rows: int, features: int) -> bool:
    """Say whether rows are priced among candidates.

    Args:
        rows: How many there are.
        features: Of each.

    Returns:
        Whether prices of all weights would take too long.
    """
    return features > WIDE or rows * features**3 > LONG


def _among_candidates(
    problem: RowProblem,
    size: Tensor,
    keep: Sequence[int],
    surely: int,
    executor: Executor | None,
    anchor: Anchor,
) -> list[Tensor]:
    ranked, order = size.sort(dim=1, descending=True, stable=True)
    most = [max(round(SPARE * count), surely, 1) for count in keep]
    exact = range(0, len(size), -(-len(size) // PRICED))
    candidates = [order[k, : most[k]].sort().values for k in exact]
    G, R = without_free(problem, anchor)
    found = elimination.costs_among(G, R[:: exact.step], candidates, surely, executor)
    if len(found) == len(size):
        return found
    squares = [row[surely:n].flip(0).square().to(R) for row, n in zip(ranked, most, strict=True)]
    # prices rise from a row's first removal to its last; how many times its square a weight is
    # worth depends on the place
    pairs = [(c.cummax(0).values, squares[k]) for k, c in zip(exact, found, strict=True)]
    places = [
        torch.stack([_stretched(one, POINTS) for one in side]) for side in zip(*pairs, strict=True)
    ]
    prices, plain = (side.sum(0) for side in places)
    times = prices / plain.clamp_min(torch.finfo(R.dtype).tiny)
    others = [row * _stretched(times, len(row)) for row in squares]
    for k, costs in zip(exact, found, strict=True):
        others[k] = costs
    return others


# a curve at so many places
def _stretched(curve: Float[Tensor, "_"], count: int) -> Float[Tensor, "_"]:
    if not len(curve) or not count:
        return curve.new_zeros(count)
    return F.interpolate(curve[None, None], count, mode="linear", align_corners=True)[0, 0]


def choose(
    problem: RowProblem,
    keep: Sequence[int],
    method: Method = "splitting",
    executor: Executor | None = None,
    anchor: Anchor = None,
) -> Float[Tensor, "K N"]:
    """Choose the weights of each row, and refit.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row, free features not counted.
        method: How they are chosen.
        executor: Takes rows side by side.
        anchor: Weights that the data may leave as they are; zero without.

    Returns:
        Weights (K, N).
    """
    support = METHODS[method].supports(problem, keep, executor, anchor)
    if anchor is None:
        return refit(problem, support)
    return refit_near(problem, support, anchor, executor)


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
