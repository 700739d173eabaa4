"""Patterns of zeros: which weights of a row may go next, given those that are gone.

`elimination.of_rows` asks which ones are open, `splitting` how weights rank. A pattern is one class
here. Where rows share their zeros, as those of a block do, `elimination.of_blocks` takes them
together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Pattern(Protocol):
    """Which weights may be zero together."""

    def open(self, gone: Bool[Tensor, "K s"]) -> Bool[Tensor, "K s"] | None:
        """Say which weights may go next.

        Args:
            gone: Which weights of each row are gone, in the order of the row's features.

        Returns:
            True for those that may go, whether or not they are gone; None for all of them.
        """
        return None

    def most(self, features: int) -> int:
        """Count the weights that may stay in a row.

        Args:
            features: Weights of a row, the bias not counted.

        Returns:
            At most `features`; all of them by default.
        """
        return features

    def scores(self, Y: Float[Tensor, "K d"]) -> Float[Tensor, "K d"]:
        """Rank the weights of each row: those that stay come first.

        Args:
            Y: Weights, in features of unit length.

        Returns:
            A larger number for what is to stay longer; below 0 where the pattern has no room.
        """
        ...


class Unstructured(Pattern):
    """Any weight may go: the pattern of a budget."""

    def scores(self, Y: Float[Tensor, "K d"]) -> Float[Tensor, "K d"]:
        """Rank by size.

        Args:
            Y: Weights.

        Returns:
            Their sizes.
        """
        return Y.abs()


UNSTRUCTURED = Unstructured()
"""Single weights."""


@dataclass(frozen=True, eq=False)
class NofM(Pattern):
    """At most n of every m neighbours stay.

    Once that holds, any weight may go: fewer are left than the pattern has room for.

    Args:
        n: Weights that stay.
        m: Of so many.
        group: Number of the group of each feature; every group has m.
    """

    n: int
    m: int
    group: Int[Tensor, " d"]

    @cached_property
    def _order(self) -> Int[Tensor, " d"]:
        return self.group.argsort(stable=True)

    def open(self, gone: Bool[Tensor, "K s"]) -> Bool[Tensor, "K s"]:
        """Let weights go from groups that have more than n, if there are any.

        Args:
            gone: Which weights are gone.

        Returns:
            Which ones may go.
        """
        group = self.group.to(gone.device)
        left = torch.zeros(len(gone), gone.shape[1] // self.m, device=gone.device)
        over = left.index_add_(1, group, (~gone).to(left)) > self.n
        return over[:, group] | ~over.any(1, keepdim=True)

    def most(self, features: int) -> int:
        """Count the weights that may stay.

        Args:
            features: Weights of a row.

        Returns:
            n of every m.
        """
        return features // self.m * self.n

    def first(self, size: Float[Tensor, "K d"]) -> Bool[Tensor, "K d"]:
        """Find the n largest of each group.

        Args:
            size: Anything to compare by.

        Returns:
            Which ones they are.
        """
        order = self._order.to(size.device)
        best = size[:, order].unflatten(1, (-1, self.m)).topk(self.n, dim=2).indices
        found = torch.zeros(*best.shape[:2], self.m, dtype=torch.bool, device=size.device)
        found.scatter_(2, best, True)
        return torch.zeros_like(size, dtype=torch.bool).index_copy_(1, order, found.flatten(1))

    def scores(self, Y: Float[Tensor, "K d"]) -> Float[Tensor, "K d"]:
        """Rank the n largest of each group by size, before all others.

        Args:
            Y: Weights.

        Returns:
            Sizes, and below 0, in the same order, what comes behind.
        """
        size = Y.abs()
        return torch.where(self.first(size), size, -1 / size)


@dataclass(frozen=True, eq=False)
class Blocks(Pattern):
    """Neighbouring rows and columns are zero together; `elimination.of_blocks` removes them.

    Args:
        rows: Rows of a block; those of the last blocks may be fewer.
        column: Number of the block of each feature, from 0 on.
    """

    rows: int
    column: Int[Tensor, " d"]

    @cached_property
    def count(self) -> int:
        """Blocks that lie side by side."""
        return int(self.column.max()) + 1

    def totals(self, entries: Float[Tensor, "K d"]) -> Float[Tensor, "B blocks"]:
        """Add up the entries of each block.

        Args:
            entries: One for every weight.

        Returns:
            The sums, for each row of blocks.
        """
        padded = F.pad(entries, (0, 0, 0, -len(entries) % self.rows))
        sums = padded.unflatten(0, (-1, self.rows)).sum(1)
        return sums.new_zeros(len(sums), self.count).index_add_(
            1, self.column.to(sums.device), sums
        )

    def spread(self, blocks: Tensor, K: int) -> Tensor:
        """Give every weight what its block has.

        Args:
            blocks: One entry per block, a row for each row of blocks.
            K: Rows of weights.

        Returns:
            One for every weight, (K, d).
        """
        return blocks[:, self.column.to(blocks.device)].repeat_interleave(self.rows, 0)[:K]

    def scores(self, Y: Float[Tensor, "K d"]) -> Float[Tensor, "K d"]:
        """Rank by the block's root mean square.

        Args:
            Y: Weights.

        Returns:
            The same number for all weights of a block.
        """
        mean = self.totals(Y.square()) / self.totals(torch.ones_like(Y))
        return self.spread(mean.sqrt(), len(Y))

    def whole(self, chosen: Bool[Tensor, "K d"]) -> Bool[Tensor, "K d"]:
        """Leave out what is only a part of a block.

        Args:
            chosen: Which weights were chosen.

        Returns:
            Those whose block was chosen as a whole.
        """
        size = torch.ones_like(chosen, dtype=torch.float32)
        full = self.totals(chosen.to(size)) == self.totals(size)
        return self.spread(full, len(chosen))

    def even(self, keep: Sequence[int]) -> list[int]:
        """Give the rows of a block as many weights as the one that has fewest.

        Args:
            keep: Weights of each row.

        Returns:
            The same number for rows that share their zeros.
        """
        starts = range(0, len(keep), self.rows)
        return [min(keep[k : k + self.rows]) for k in starts for _ in keep[k : k + self.rows]]


def rows_together(pattern: Pattern) -> int:
    """Say how many rows share their zeros.

    Args:
        pattern: Any.

    Returns:
        Their number; 1 where each row has its own.
    """
    return pattern.rows if isinstance(pattern, Blocks) else 1
