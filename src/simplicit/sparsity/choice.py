"""Which weights each row keeps, refitted; and the bound on what other supports could do."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.sparsity import splitting
from simplicit.sparsity.budget import spend
from simplicit.sparsity.elimination import of_blocks, of_rows
from simplicit.sparsity.elimination.of_blocks import Removals, removals_among, weighed
from simplicit.sparsity.near import Anchor, refit_near, without_free
from simplicit.sparsity.pattern import UNSTRUCTURED, Blocks, Pattern
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
METHODS: tuple[Method, ...] = get_args(Method)
"""Two ways to the supports of rows."""


def allot(
    problems: Sequence[RowProblem],
    importance: Sequence[Float[Tensor, "_"]],
    budget: int,
    method: Method = "splitting",
    executor: Executor | None = None,
    anchors: Sequence[Anchor] | None = None,
    patterns: Sequence[Pattern] | None = None,
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
        patterns: For each problem, which weights may be zero together; single ones without.

    Returns:
        The price: the loss, times importance, up to which weights were removed, those apart that
        a pattern has no room for; and how many weights each row keeps. Every row keeps a quarter of
        its equal share. Together they keep the budget, or all that the patterns have room for;
        where whole blocks go, less than a block fewer.
    """
    anchors = anchors or [None] * len(problems)
    patterns = patterns or [UNSTRUCTURED] * len(problems)
    lengths = [int((~problem.free).sum()) for problem in problems]
    most = [pattern.most(n) for pattern, n in zip(patterns, lengths, strict=True)]
    counts = [len(problem.gram.R) for problem in problems]
    if most != lengths and budget >= sum(k * n for k, n in zip(counts, most, strict=True)):
        return 0.0, [[n] * k for k, n in zip(counts, most, strict=True)]
    # these last weights of a row need no price
    surely = budget // (4 * sum(counts))
    wide = [method == "splitting" and screened_first(*p.gram.R.shape) for p in problems]
    found: list[tuple[Tensor, list[int]]] = []
    if any(wide):
        found = splitting.screen(problems, importance, budget, executor, anchors, patterns)
    prices: list[Tensor] = []
    removals: list[Removals | None] = []
    for k, (problem, worth, anchor) in enumerate(zip(problems, importance, anchors, strict=True)):
        keep, pattern = min(surely, most[k]), patterns[k]
        if isinstance(pattern, Blocks):
            if wide[k]:
                gone = _blocks_among(problem, *found[k], keep, pattern, worth, executor, anchor)
            else:
                gone = of_blocks.removals(problem, keep, pattern, worth, executor, anchor)
            removals += gone
            prices += [one.by_weight.cpu() for one in gone]
            continue
        if wide[k]:
            costs = _among_candidates(problem, *found[k], keep, most[k], executor, anchor)
        else:
            costs = list(of_rows.costs(problem, keep, executor, anchor, pattern))
            costs = [row[lengths[k] - most[k] :] for row in costs]
        for row, unit in zip(costs, worth.tolist(), strict=True):
            priced = torch.cat([unit * row, row.new_full((keep,), torch.inf)])
            prices.append(priced.cpu())
            removals.append(None)
    kept = spend(prices, budget)
    removed = [
        float(c[: len(c) - k].max()) for c, k in zip(prices, kept, strict=True) if len(c) > k
    ]
    shares, every = zip(kept, removals, strict=True), []
    for rows in counts:
        own: list[int] = []
        while len(own) < rows:
            weights, blocks = next(shares)
            own += [weights] if blocks is None else [blocks.features(weights)] * blocks.rows
        every.append(own)
    return max(removed, default=0.0), every


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
    room: int,
    executor: Executor | None,
    anchor: Anchor,
) -> list[Tensor]:
    ranked, order = size.sort(dim=1, descending=True, stable=True)
    most = [min(max(round(SPARE * count), surely, 1), room) for count in keep]
    exact = range(0, len(size), -(-len(size) // PRICED))
    candidates = [order[k, : most[k]].sort().values for k in exact]
    G, R = without_free(problem, anchor)
    found = of_rows.costs_among(G, R[:: exact.step], candidates, surely, executor)
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


# blocks are fewer than weights are: all of them are priced exactly
def _blocks_among(
    problem: RowProblem,
    size: Tensor,
    keep: Sequence[int],
    surely: int,
    pattern: Blocks,
    worth: Tensor,
    executor: Executor | None,
    anchor: Anchor,
) -> list[Removals]:
    candidates = []
    for scores, count in zip(size[:: pattern.rows], keep[:: pattern.rows], strict=True):
        most = max(round(SPARE * count), surely, 1)
        best = pattern.column.to(size.device)[scores.argsort(descending=True, stable=True)[:most]]
        candidates.append(torch.isin(pattern.column.to(best), best).nonzero()[:, 0])
    G, R = without_free(problem, anchor)
    return removals_among(G, weighed(R, worth), pattern, candidates, surely, executor)


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
    pattern: Pattern = UNSTRUCTURED,
    worth: Float[Tensor, " K"] | None = None,
    known: splitting.Known | None = None,
) -> Float[Tensor, "K N"]:
    """Choose the weights of each row, and refit.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row, free features not counted.
        method: How they are chosen.
        executor: Takes rows side by side.
        anchor: Weights that the data may leave as they are; zero without.
        pattern: Which weights may be zero together. It holds where no row keeps more than it has
            room for.
        worth: What a unit of each row's loss is worth beside the others of its block.
        known: What splitting made of the same features before, see `splitting.supports`.

    Returns:
        Weights (K, N).
    """
    support = supports(problem, keep, method, executor, anchor, pattern, worth, known)
    if anchor is None:
        return refit(problem, support)
    return refit_near(problem, support, anchor, executor)


def supports(
    problem: RowProblem,
    keep: Sequence[int],
    method: Method = "splitting",
    executor: Executor | None = None,
    anchor: Anchor = None,
    pattern: Pattern = UNSTRUCTURED,
    worth: Float[Tensor, " K"] | None = None,
    known: splitting.Known | None = None,
) -> Bool[Tensor, "K N"]:
    """Choose which weights each row keeps.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row, free features not counted.
        method: How they are chosen.
        executor: Takes rows side by side.
        anchor: Weights that the data may leave as they are; zero without.
        pattern: Which weights may be zero together, see `choose`.
        worth: What a unit of each row's loss is worth beside the others of its block.
        known: What splitting made of the same features before, see `splitting.supports`.

    Returns:
        Which weights may be non-zero, free features among them.
    """
    if method == "splitting":
        return splitting.supports(problem, keep, executor, anchor, pattern, worth, known)
    if isinstance(pattern, Blocks):
        worth = torch.ones_like(problem.gram.t2) if worth is None else worth
        return of_blocks.supports(problem, keep, pattern, worth, executor, anchor)
    return of_rows.supports(problem, keep, executor, anchor, pattern)


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
