"""Backward elimination of blocks: rows that share their zeros lose features together.

As `of_rows`, for a few rows with one support. With H the inverse of their Gram on it, removing
the features J costs Σ w_J' H_JJ⁻¹ w_J / 2, over the rows. The block that costs least a feature goes
first; its features go one after the other, which is the same as all at once.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.convex.cholesky import factor
from simplicit.convex.problem import RowProblem
from simplicit.sparsity.elimination.of_rows import least_squares
from simplicit.sparsity.elimination.one_row import LAZY
from simplicit.sparsity.near import Anchor
from simplicit.sparsity.pattern import Blocks
from simplicit.workers.run import run


@dataclass(frozen=True, eq=False)
class Removals:
    """How rows that share their zeros lose blocks, the first block first.

    Attributes:
        order: Numbers of the blocks.
        cost: Loss that each adds, over the rows; infinity for blocks that were not priced.
        width: Features of each.
        rows: How many rows they are.
    """

    order: Int[Tensor, " T"]
    cost: Float[Tensor, " T"]
    width: Int[Tensor, " T"]
    rows: int

    @property
    def by_weight(self) -> Float[Tensor, "_"]:
        """Cost of each weight: its part of its block's."""
        size = self.rows * self.width
        return (self.cost / size).repeat_interleave(size)

    def gone(self, keep: int) -> int:
        """Count the blocks that have to go.

        Args:
            keep: Features that may be left.

        Returns:
            The fewest blocks with which no more are left.
        """
        left = self.width.flip(0).cumsum(0).flip(0)
        return int((left > keep).sum())

    def features(self, keep: int) -> int:
        """Count the features that are left when no more than some weights are.

        Args:
            keep: Weights of all rows.

        Returns:
            Features of each row.
        """
        return int(self.width[self.gone(keep // self.rows) :].sum())


def eliminate_blocks(
    H: Float[Tensor, "h s s"],
    w: Float[Tensor, "r s"],
    block: Int[Tensor, " s"],
    keep: int = 0,
) -> Removals:
    """Remove one block of features after another from all rows.

    Args:
        H: Inverse of the Gram, positive definite: one for all rows, or one for each.
        w: Weights that minimise each row's loss.
        block: Number of each feature's block; −1 for features that are never removed.
        keep: Features that need no price: none goes once no more are left.

    Returns:
        All blocks, those that were not removed last.
    """
    total = int((block >= 0).sum())
    numbers, widths = block[block >= 0].unique(return_counts=True)
    size = dict(zip(numbers.tolist(), widths.tolist(), strict=True))
    left, widest = dict(size), max(size.values(), default=0)
    order: list[int] = []
    cost: list[Tensor] = []
    while total > keep:
        # as long as products of what is removed stay short, H is left as it is
        state = _State(H, w, block)
        while total > keep and state.removed + widest <= max(LAZY, widest):
            number, added = state.remove()
            order.append(number)
            cost.append(added)
            total -= left.pop(number)
        H, w, block = state.compacted()
    every = [*order, *left]
    known = torch.stack(cost) if cost else w.new_zeros(0)
    return Removals(
        torch.tensor(every, dtype=torch.long),
        torch.cat([known, known.new_full((len(left),), torch.inf)]),
        torch.tensor([size[number] for number in every], dtype=torch.long),
        len(w),
    )


# H less what was removed since it was made is H − P'P
class _State:
    def __init__(self, H: Tensor, w: Tensor, block: Tensor) -> None:
        self.H, self.w, self.block = H, w.clone(), block
        self.numbers, inverse = block[block >= 0].unique(return_inverse=True)
        columns = (block >= 0).nonzero()[:, 0]
        ranks = inverse.argsort(stable=True)
        counts = inverse.bincount(minlength=len(self.numbers))
        widest = int(counts.max())
        self.inside = torch.arange(widest, device=w.device) < counts[:, None]
        self.members = columns.new_zeros(len(self.numbers), widest)  # (blocks, c)
        self.members[self.inside] = columns[ranks]
        self.D = H[:, self.members[:, :, None], self.members[:, None]]
        self.D = self._without_padding(self.D)
        self.P = H.new_zeros(len(H), max(LAZY, widest), len(block))
        self.removed = 0
        self.out = torch.zeros_like(self.numbers, dtype=torch.bool)
        self.gone = torch.zeros_like(block, dtype=torch.bool)

    def _without_padding(self, D: Tensor) -> Tensor:
        if bool(self.inside.all()):
            return D
        both = self.inside[:, :, None] & self.inside[:, None]
        eye = torch.eye(self.inside.shape[1], dtype=D.dtype, device=D.device)
        return torch.where(both, D, eye)

    def _prices(self) -> Tensor:
        w = self.w[:, self.members] * self.inside  # (rows, blocks, c)
        if w.shape[2] == 1:
            return (w[..., 0].square() / self.D[..., 0, 0]).sum(0)
        # blocks that are gone have no inverse left
        eye = torch.eye(w.shape[2], dtype=w.dtype, device=w.device)
        D = torch.where(self.out[:, None, None], eye, self.D)
        return (w * torch.linalg.solve(D, w[..., None])[..., 0]).sum((0, 2))

    def remove(self) -> tuple[int, Tensor]:
        price = self._prices()
        b = (price / self.inside.sum(1)).masked_fill(self.out, torch.inf).argmin()
        for j in self.members[b][self.inside[b]].tolist():
            P = self.P[:, : self.removed]
            column = self.H[:, j] - (P[:, :, j, None] * P).sum(1)
            p = column / column[:, j, None].sqrt()
            self.w -= (self.w[:, j] / p[:, j])[:, None] * p
            own = p[:, self.members] * self.inside
            self.D = self.D - own[..., None] * own[..., None, :]
            self.P[:, self.removed] = p
            self.removed += 1
            self.gone[j] = True
        self.out[b] = True
        return int(self.numbers[b]), price[b] / 2

    def compacted(self) -> tuple[Tensor, Tensor, Tensor]:
        left = (~self.gone).nonzero()[:, 0]
        P = self.P[:, : self.removed, left]
        H = torch.baddbmm(self.H[:, left[:, None], left], P.mT, P, alpha=-1)
        return H, self.w[:, left], self.block[left]


def supports(
    problem: RowProblem,
    keep: Sequence[int],
    pattern: Blocks,
    worth: Float[Tensor, " K"],
    executor: Executor | None = None,
    anchor: Anchor = None,
) -> Bool[Tensor, "K N"]:
    """Choose which blocks stay.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row at most, free features not counted.
        pattern: The blocks.
        worth: What a unit of each row's loss is worth, beside the others of its block.
        executor: Takes blocks of rows side by side.
        anchor: Weights that the data may leave as they are; zero without.

    Returns:
        Which weights may be non-zero, free features among them.
    """
    even = pattern.even(keep)
    least = even[:: pattern.rows]
    found = removals(problem, min(least, default=0), pattern, worth, executor, anchor)
    support = torch.ones_like(problem.gram.R, dtype=torch.bool)
    own, column = (~problem.free).nonzero()[:, 0], pattern.column.to(support.device)
    parts = support.split(pattern.rows)
    for part, one, left in zip(parts, found, least, strict=True):
        lost = torch.isin(column, one.order[: one.gone(left)].to(column))
        part[:, own[lost]] = False
    return support


def removals(
    problem: RowProblem,
    keep: int,
    pattern: Blocks,
    worth: Float[Tensor, " K"],
    executor: Executor | None = None,
    anchor: Anchor = None,
) -> list[Removals]:
    """Price the blocks of each row of blocks, all features in it at first.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Features that need no price.
        pattern: The blocks.
        worth: What a unit of each row's loss is worth.
        executor: Takes blocks of rows side by side.
        anchor: Weights that the data may leave as they are; zero without.

    Returns:
        The removals of each, their costs times what they are worth.
    """
    H, W = least_squares(problem, anchor)
    block = torch.full_like(problem.free, -1, dtype=torch.long)
    block[~problem.free] = pattern.column.to(block)
    one = partial(_rows, H[None], block, keep)
    pieces = weighed(W, worth).split(pattern.rows)
    return list(run(one, pieces, executor, work=float(len(H)) ** 3))


def _rows(H: Tensor, block: Tensor, keep: int, w: Tensor) -> Removals:
    return eliminate_blocks(H, w, block, keep)


def weighed(W: Float[Tensor, "K N"], worth: Float[Tensor, " K"]) -> Float[Tensor, "K N"]:
    """Scale rows so that a unit of loss is worth the same in each.

    Args:
        W: Weights, or moments.
        worth: What a unit of each row's loss is worth.

    Returns:
        Rows whose losses are those times their worth.
    """
    return W * worth.to(W).clamp_min(0).sqrt()[:, None]


def removals_among(
    G: Float[Tensor, "n n"],
    R: Float[Tensor, "K n"],
    pattern: Blocks,
    candidates: Sequence[Int[Tensor, "_"]],
    keep: int,
    executor: Executor | None = None,
) -> list[Removals]:
    """Price the blocks of rows of blocks that have candidates of their own.

    Args:
        G: Positive definite.
        R: Moments, scaled by `weighed`.
        pattern: The blocks.
        candidates: Columns of each row of blocks, whole blocks of them.
        keep: Features that need no price.
        executor: Takes blocks of rows side by side.

    Returns:
        The removals of each.
    """
    parts = R.split(pattern.rows)
    pieces = [
        (r[:, own], own, pattern.column.to(own)[own])
        for r, own in zip(parts, candidates, strict=True)
    ]
    one = partial(_among, G, keep)
    most = float(max(map(len, candidates), default=0)) ** 3
    return list(run(one, pieces, executor, cost=lambda piece: float(len(piece[1])) ** 3, work=most))


def _among(G: Tensor, keep: int, piece: tuple[Tensor, Tensor, Tensor]) -> Removals:
    target, columns, block = piece
    H = torch.cholesky_inverse(factor(G[columns[:, None], columns]))
    return eliminate_blocks(H[None], target @ H, block, keep)
