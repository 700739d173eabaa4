"""A matrix: linear layers."""

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from simplicit.equations.maps.matrix import written_out
from simplicit.equations.maps.module import with_parameters


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix, applied to each position of a sample: a linear layer on (…, features).

    Args:
        weight: (outputs, inputs).
        positions: Number of positions; a sample is (positions, inputs), flattened.
    """

    weight: Float[Tensor, "outputs inputs"]
    positions: int = 1

    @property
    def groups(self) -> int:
        """Always 1: every output reads every input."""
        return 1

    @property
    def rows(self) -> int:
        """Size of the result."""
        return self.positions * self.weight.shape[0]

    @property
    def columns(self) -> int:
        """Size of what it reads."""
        return self.positions * self.weight.shape[1]

    @property
    def products(self) -> int:
        """Most products that are summed in one entry of the result."""
        return self.weight.shape[1]

    @property
    def layout(self) -> tuple[str, int, int]:
        """Order of the result's entries, positions and outputs."""
        return "position, channel", self.positions, len(self.weight)

    def __call__(self, x: Float[Tensor, "m columns"]) -> Float[Tensor, "m rows"]:
        """Apply the map.

        Returns:
            The results, a row per sample.
        """
        return F.linear(x.unflatten(1, self.input_shape), self.weight).flatten(1)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(inputs,), or (positions, inputs) where there are several positions."""
        return self._shape(self.weight.shape[1])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Likewise."""
        return self._shape(len(self.weight))

    def _shape(self, size: int) -> tuple[int, ...]:
        return (size,) if self.positions == 1 else (self.positions, size)

    def framed(self, sample: Any) -> Any:
        """Leave a sample as it is: the module takes it like that.

        Args:
            sample: (m, *input_shape), or a node of a graph that stands for it.

        Returns:
            The same.
        """
        return sample

    def patches(
        self, x: Float[Tensor, "m columns"], some: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, "m some 1 inputs"]:
        """List what each position reads.

        Args:
            x: Samples.
            some: Which positions; all without.

        Returns:
            The inputs by position; there is one group.
        """
        every = x.view(len(x), self.positions, 1, self.weight.shape[1])
        return every if some is None else every[:, some]

    def by_channel(self, z: Float[Tensor, "m rows"]) -> Float[Tensor, "m positions outputs"]:
        """Sort a result by position and output.

        Returns:
            A view of it.
        """
        return z.view(len(z), self.positions, len(self.weight))

    def spread(self, channel: Float[Tensor, " outputs"]) -> Float[Tensor, " rows"]:
        """Repeat one number per output over the positions.

        Returns:
            One number per entry of the result.
        """
        return channel.repeat(self.positions)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Write it out.

        Returns:
            The matrix; block diagonal where there are several positions.
        """
        return self.weight if self.positions == 1 else written_out(self, self.weight)

    def absolute(self) -> "Dense":
        """Take absolute values.

        Returns:
            The map with |weight|.
        """
        return replace(self, weight=self.weight.abs())

    def narrow(
        self, weight: Float[Tensor, "_ _"], inputs: Bool[Tensor, " inputs"], groups: int = 1
    ) -> tuple["Dense", Bool[Tensor, " columns"]]:
        """Read some inputs only.

        Args:
            weight: The weights of these.
            inputs: Which ones.
            groups: Always 1.

        Returns:
            The smaller map, and which entries of a sample it reads.
        """
        return replace(self, weight=weight), inputs.repeat(self.positions)

    def to_module(self, bias: Float[Tensor, " outputs"] | None) -> nn.Module:
        """Write it as a module of torch.

        Args:
            bias: One number per output, or None.

        Returns:
            A linear layer with copies of weight and bias.
        """
        outputs, inputs = self.weight.shape
        return with_parameters(nn.Linear(inputs, outputs, device="meta"), self.weight, bias)
