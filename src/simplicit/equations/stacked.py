"""φ of several layers side by side, as the one equation of a `full` model has it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.equations.phi import Phi


@dataclass(frozen=True)
class Block:
    """One hidden layer inside x. Blocks are listed in the order of x: last hidden layer first.

    Args:
        name: Where it comes from, e.g. the module path `fc1`.
        size: Number of states.
        phi: Its activation; `equations.layer_phi.StatePhi`.
    """

    name: str
    size: int
    phi: Any

    @property
    def elementwise(self) -> Phi:
        """φ of a block of a model of matrices, where it is always elementwise."""
        assert isinstance(self.phi, Phi)
        return self.phi


@dataclass(frozen=True)
class Stacked:
    """Elementwise activations of consecutive parts of z.

    Args:
        blocks: The parts, in the order of z.
    """

    blocks: tuple[Block, ...]

    name = "stacked"

    @property
    def states(self) -> int:
        """Entries of x, as many as of z."""
        return sum(block.size for block in self.blocks)

    @property
    def lipschitz(self) -> float:
        """Smallest L with |φ(s) − φ(t)| ≤ L |s − t| for every entry."""
        return max(block.elementwise.lipschitz for block in self.blocks)

    def __call__(self, z: Float[Tensor, "m states"]) -> Float[Tensor, "m states"]:
        """Apply φ.

        Returns:
            x, a row per sample.
        """
        if len({block.phi for block in self.blocks}) == 1:
            return self.blocks[0].phi(z)
        return self._each(z, [block.elementwise for block in self.blocks])

    def derivative(self, z: Float[Tensor, "m states"]) -> Float[Tensor, "m states"]:
        """Differentiate φ at every entry; at a kink, from the left.

        Returns:
            φ'(z).
        """
        return self._each(z, [block.elementwise.derivative for block in self.blocks])

    def _each(self, z: Tensor, functions: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        parts = z.split([block.size for block in self.blocks], 1)
        return torch.cat([f(part) for f, part in zip(functions, parts, strict=True)], 1)
