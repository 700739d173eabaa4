"""Backward elimination: the weight whose loss is least goes first, the others make up for it.

Optimal brain surgeon (Hassibi & Stork, 1993; Frantar & Alistarh, "Optimal Brain Compression",
2022): with H the inverse of the Gram on a row's support, removing weight j costs w_j² / (2 H_jj),
moves the others by −(w_j / H_jj) H_j, and takes H_j H_j' / H_jj from H. A processor takes one row
after the other (`one_row`); rows on a device, or of a pattern, lose a weight each side by side.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import chain, groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.convex.cholesky import factor
from simplicit.convex.problem import RowProblem
from simplicit.sparsity.elimination import one_row
from simplicit.sparsity.elimination.one_row import LAZY
from simplicit.sparsity.near import Anchor, normal_equations
from simplicit.sparsity.pattern import UNSTRUCTURED, Pattern
from simplicit.workers.run import run

LEAST = 8
"""Rows of a piece that go side by side, at least. Chosen: of four with 1,000 features each takes as
long, and threads wait for each other."""

MOST = 64
"""Rows of a piece, at most. Chosen: of 145 features, 8 take 1.6 times as long for each."""

TOGETHER = 2**22
"""Most entries of their H, all rows counted, where there are more than the least. Chosen: 32 MB."""


def supports(
    problem: RowProblem,
    keep: Sequence[int],
    executor: Executor | None = None,
    anchor: Anchor = None,
    pattern: Pattern = UNSTRUCTURED,
) -> Bool[Tensor, "K N"]:
    """Choose which weights each row keeps.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row, free features not counted.
        executor: Takes rows side by side.
        anchor: Weights that the data may leave as they are; zero without.
        pattern: Which weights may go together.

    Returns:
        Which weights may be non-zero, free features among them.
    """
    most = min(keep, default=0)
    order, _ = eliminate(*least_squares(problem, anchor), problem.free, most, executor, pattern)
    support = torch.ones_like(problem.gram.R, dtype=torch.bool)
    total = int((~problem.free).sum())
    for row, removed, left in zip(support, order, keep, strict=True):
        row[removed[: max(total - left, 0)]] = False
    return support


def costs(
    problem: RowProblem,
    keep: int,
    executor: Executor | None = None,
    anchor: Anchor = None,
    pattern: Pattern = UNSTRUCTURED,
) -> Float[Tensor, "K T"]:
    """Price the weights of each row, all features in it at first.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row that need no price.
        executor: Takes rows side by side.
        anchor: Weights that the data may leave as they are; zero without.
        pattern: Which weights may go together.

    Returns:
        The loss that each removal adds.
    """
    return eliminate(*least_squares(problem, anchor), problem.free, keep, executor, pattern)[1]


def costs_among(
    G: Float[Tensor, "n n"],
    R: Float[Tensor, "K n"],
    candidates: Sequence[Int[Tensor, "_"]],
    keep: int,
    executor: Executor | None = None,
) -> list[Float[Tensor, "_"]]:
    """Price the weights of rows that have candidates of their own.

    Args:
        G: Positive definite.
        R: Moments; W G = R is solved by the weights of all features.
        candidates: Columns of each row.
        keep: Weights of each row that need no price.
        executor: Takes rows side by side.

    Returns:
        For each row the loss that each removal adds.
    """
    if not candidates:
        return []
    # Filled up to a length that does not depend on other rows, nor do a row's bits.
    filled = [-(-len(columns) // LAZY) * LAZY for columns in candidates]
    order = sorted(range(len(candidates)), key=lambda k: -filled[k])
    groups: list[list[int]] = []
    for length, alike in groupby(order, key=lambda k: filled[k]):
        some, size = [*alike], tile(length)
        groups += [some[k : k + size] for k in range(0, len(some), size)]
    pieces = [
        (filled[group[0]], [(R[k, candidates[k]], candidates[k]) for k in group])
        for group in groups
    ]
    one = partial(_among, G, keep)
    work = max(len(group) * float(length) ** 3 for length, group in pieces)
    parts = run(one, pieces, executor, cost=lambda p: len(p[1]) * float(p[0]) ** 3, work=work)
    found = dict(zip(order, chain.from_iterable(parts), strict=True))
    return [found[k] for k in range(len(order))]


# What rows that go side by side are filled up with has the weight 0 and the price 0: it goes first.
def _among(
    G: Tensor, keep: int, piece: tuple[int, Sequence[tuple[Tensor, Tensor]]]
) -> list[Tensor]:
    most, rows = piece
    none = torch.zeros(most, dtype=torch.bool, device=G.device)
    # one at a time: the next is inverted when it is asked for
    solved = ((own := _inverse(G, columns), target @ own) for target, columns in rows)
    if by_itself(G, UNSTRUCTURED):
        return [one_row.eliminate(own, w, none[: len(own)], keep)[1] for own, w in solved]
    H = torch.eye(most, dtype=G.dtype, device=G.device).repeat(len(rows), 1, 1)
    W = H.new_zeros(len(rows), most)
    for inverse, w, (own, solution) in zip(H, W, solved, strict=True):
        inverse[: len(own), : len(own)], w[: len(own)] = own, solution
    costs = _tile(H, none, keep, UNSTRUCTURED, W)[1]
    return [
        cost[most - len(columns) :].clone() for cost, (_, columns) in zip(costs, rows, strict=True)
    ]


def _inverse(G: Tensor, columns: Tensor) -> Tensor:
    return torch.cholesky_inverse(factor(G[columns[:, None], columns]))


def least_squares(
    problem: RowProblem, anchor: Anchor
) -> tuple[Float[Tensor, "N N"], Float[Tensor, "K N"]]:
    """Solve the rows with all their features.

    Args:
        problem: The rows; penalty and ball are left out.
        anchor: Weights that the data may leave as they are; zero without.

    Returns:
        The inverse of the Gram, and the weights.
    """
    G, R = normal_equations(problem, anchor)
    inverse = torch.cholesky_inverse(factor(G))
    return inverse, R @ inverse


def eliminate(
    H: Float[Tensor, "s s"],
    W: Float[Tensor, "K s"],
    protected: Bool[Tensor, " s"],
    keep: int = 0,
    executor: Executor | None = None,
    pattern: Pattern = UNSTRUCTURED,
) -> tuple[Int[Tensor, "K T"], Float[Tensor, "K T"]]:
    """Remove one weight after another from each row, exactly.

    Args:
        H: Inverse of the Gram, positive definite, common to all rows at the start.
        W: Weights that minimise each row's loss.
        protected: Features never removed.
        keep: Weights left in each row, protected ones not counted.
        executor: Takes rows side by side.
        pattern: Which weights may go together; protected features come last, as the bias does.

    Returns:
        The order of removal, as columns of W, and the loss that each removal adds.
    """
    one = partial(_tile, H, protected, keep, pattern)
    size = tile(len(H), 1 if by_itself(H, pattern) else LEAST)
    parts = list(run(one, W.split(size), executor, work=min(size, len(W)) * float(len(H)) ** 3))
    return torch.cat([order for order, _ in parts]), torch.cat([cost for _, cost in parts])


def tile(features: int, least: int = 1) -> int:
    """Say how many rows are in one piece of the work.

    Args:
        features: Of a row.
        least: Rows, where they are long.

    Returns:
        Rows.
    """
    return min(max(TOGETHER // max(features, 1) ** 2, least), MOST)


def by_itself(like: Tensor, pattern: Pattern) -> bool:
    """Say whether rows are eliminated one after the other, by `one_row`.

    Args:
        like: Says on which device.
        pattern: Which weights may go together.

    Returns:
        Whether they are; else they are side by side.
    """
    return like.device.type == "cpu" and pattern is UNSTRUCTURED


def _tile(
    H: Tensor, protected: Tensor, keep: int, pattern: Pattern, w: Tensor
) -> tuple[Tensor, Tensor]:
    K, s = w.shape
    features = s - int(protected.sum())
    removals = max(features - keep, 0)
    rows, H = torch.arange(K, device=w.device), H.expand(K, s, s)
    order, cost = rows.new_empty(K, removals), w.new_empty(K, removals)
    if by_itself(H, pattern):
        for k in range(K):
            order[k], cost[k] = one_row.eliminate(H[k], w[k], protected, keep)
        return order, cost
    w, index = w.clone(), torch.arange(s, device=w.device).expand(K, s)
    out = protected.expand(K, s).clone()
    diagonal = H.diagonal(dim1=1, dim2=2).clone()
    # H less what was removed since its last update is H − P'P
    P, r = w.new_zeros(K, LAZY, s), 0
    picked: list[Tensor] = []
    lost = torch.zeros_like(protected).repeat(K, 1)
    for t in range(removals):
        price = (w * w).div_(diagonal).masked_fill_(out, torch.inf)
        if (may := pattern.open(lost[:, :features])) is not None:
            may = torch.nn.functional.pad(may, (0, s - features))
            price.masked_fill_(~may.gather(1, index), torch.inf)
        cost[:, t], j = price.min(1)
        column, at = H[rows, j], j[:, None]
        if r:
            so_far = P[:, :r]
            near = P[rows, :r, j][:, None]
            column = torch.baddbmm(column[:, None], near, so_far, alpha=-1)[:, 0]
        unit = column.gather(1, at).rsqrt_()
        p = torch.mul(column, unit, out=P[:, r])
        w.addcmul_(p, w.gather(1, at).mul_(unit), value=-1)
        diagonal.addcmul_(p, p, value=-1)
        out.scatter_(1, at, True)
        if may is not None:
            lost.scatter_(1, index.gather(1, at), True)
        picked.append(j)
        r += 1
        if r < LAZY and t + 1 < removals:
            continue
        order[:, t + 1 - r : t + 1] = index.gather(1, torch.stack(picked, 1))
        if t + 1 == removals:
            break
        # the same number is gone from every row: what is left is an array again
        left = (~out | protected[index]).nonzero()[:, 1].reshape(K, -1)
        H = H[rows[:, None, None], left[:, :, None], left[:, None, :]]
        P = P.gather(2, left[:, None].expand(K, LAZY, -1))
        H.baddbmm_(P.mT, P, alpha=-1)
        w, index, out = (x.gather(1, left) for x in (w, index, out))
        diagonal, picked = H.diagonal(dim1=1, dim2=2).clone(), []
        P, r = torch.zeros_like(P), 0
    return order, cost / 2
