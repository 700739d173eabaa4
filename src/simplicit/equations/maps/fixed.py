"""Linear maps without weights: entries in another order, and fixed matrices by their entries."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.equations.maps.matrix import written_out


@dataclass(frozen=True, eq=False)
class Gather:
    """Entries of a sample in another order: y_i = x[index_i], and 0 where index_i is −1.

    Permutations, slices, strides, zero padding and concatenations are of this kind.

    Args:
        index: For each entry of the result, the entry it is, or −1.
        columns: Size of what it reads.
    """

    index: Int[Tensor, " rows"]
    columns: int

    @property
    def rows(self) -> int:
        """Size of the result."""
        return len(self.index)

    @cached_property
    def _empty(self) -> Tensor | None:
        empty = self.index < 0
        return empty if empty.any() else None

    @cached_property
    def is_identity(self) -> bool:
        """Whether every entry stays where it is."""
        here = torch.arange(self.rows, device=self.index.device)
        return self.rows == self.columns and torch.equal(self.index, here.to(self.index))

    def __call__(self, x: Float[Tensor, "m columns"]) -> Float[Tensor, "m rows"]:
        """Apply the map.

        Returns:
            The results, a row per sample.
        """
        if self.is_identity:
            return x
        y = x.index_select(1, self.index.clamp_min(0))
        return y if self._empty is None else y.masked_fill(self._empty, 0)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Write it out.

        Returns:
            The matrix, in the default dtype.
        """
        return written_out(self, torch.ones((), device=self.index.device))

    def absolute(self) -> "Gather":
        """Take absolute values.

        Returns:
            The map itself.
        """
        return self

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Gather":
        """Change its tensors.

        Args:
            change: What becomes of a tensor.

        Returns:
            The map with the new ones.
        """
        return replace(self, index=change(self.index))


@dataclass(frozen=True, eq=False)
class Sparse:
    """A fixed matrix by its entries: averages, factors.

    Args:
        row: Row of each entry, in rising order.
        column: Its column.
        value: Its value.
        rows: Size of the result.
        columns: Size of what it reads.
        means: Whether each result is the mean of as many entries, one after another.
    """

    row: Int[Tensor, " k"]
    column: Int[Tensor, " k"]
    value: Float[Tensor, " k"]
    rows: int
    columns: int
    means: bool = False

    @property
    def products(self) -> int:
        """Most products that are summed in one entry of the result."""
        return int(torch.bincount(self.row, minlength=1).max())

    def __call__(self, x: Float[Tensor, "m columns"]) -> Float[Tensor, "m rows"]:
        """Apply the map.

        Returns:
            The results, a row per sample.
        """
        entries = x.index_select(1, self.column) * self.value
        return x.new_zeros(len(x), self.rows).index_add(1, self.row, entries)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Write it out.

        Returns:
            The matrix.
        """
        matrix = self.value.new_zeros(self.rows, self.columns)
        matrix[self.row, self.column] = self.value
        return matrix

    def absolute(self) -> "Sparse":
        """Take absolute values.

        Returns:
            The map with |value|.
        """
        return replace(self, value=self.value.abs())

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Sparse":
        """Change its tensors.

        Args:
            change: What becomes of a tensor.

        Returns:
            The map with the new ones.
        """
        row, column, value = (change(t) for t in (self.row, self.column, self.value))
        return replace(self, row=row, column=column, value=value)
