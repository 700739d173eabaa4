"""Affine maps of states: what a value inside a network is, between two activations."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Affine:
    """The value Σ M s + c of one sample, flattened.

    Args:
        maps: Source s -> M, a matrix, or a vector that stands for a diagonal matrix. Sources are
            those of `Term`.
        bias: c, or None.
        name: Module path of the linear map in it, empty if there was none yet.
    """

    maps: dict[int, Tensor]
    bias: Tensor | None = None
    name: str = ""

    @classmethod
    def of_source(cls, source: int, like: Tensor) -> "Affine":
        """Make the value of a source itself.

        Args:
            source: −1 for the input, otherwise the index of a hidden equation.
            like: A vector of the source's size, dtype and device.

        Returns:
            The value, with the identity as its map.
        """
        return cls({source: torch.ones_like(like)})

    @property
    def constant(self) -> Tensor:
        """The bias c, zeros if there is none: also says size, dtype and device of the value."""
        M = next(iter(self.maps.values()))
        return M.new_zeros(M.shape[0]) if self.bias is None else self.bias

    @property
    def has_matrix(self) -> bool:
        """Whether a linear map other than entry by entry is in it."""
        return any(M.ndim == 2 for M in self.maps.values())

    def scaled(self, factor: Tensor | float) -> "Affine":
        """Multiply entry by entry.

        Args:
            factor: One number per entry, or one for all.

        Returns:
            The product.
        """
        rows = factor[:, None] if isinstance(factor, Tensor) else factor
        maps = {s: M * (factor if M.ndim == 1 else rows) for s, M in self.maps.items()}
        return Affine(maps, None if self.bias is None else self.bias * factor, self.name)

    def shifted(self, constant: Tensor) -> "Affine":
        """Add a constant.

        Args:
            constant: One number per entry.

        Returns:
            The sum.
        """
        return Affine(self.maps, self.constant + constant, self.name)

    def plus(self, other: "Affine") -> "Affine":
        """Add a value of the same size.

        Args:
            other: The other summand.

        Returns:
            The sum, with one map per source.
        """
        maps = dict(self.maps)
        for source, M in other.maps.items():
            if source not in maps:
                maps[source] = M
            elif maps[source].ndim == M.ndim:
                maps[source] = maps[source] + M
            else:
                maps[source] = as_matrix(maps[source]) + as_matrix(M)
        total = Affine(maps, self.bias, self.name or other.name)
        return total if other.bias is None else total.shifted(other.bias)


def as_matrix(M: Tensor) -> Tensor:
    """Write a map out.

    Args:
        M: A matrix, or the diagonal of one.

    Returns:
        The matrix.
    """
    return torch.diag(M) if M.ndim == 1 else M
