"""Convolutions and transposed ones share how their results are sorted: channel, then position."""

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.equations.maps.matrix import written_out


class Convolution(ABC):
    """A kernel that is applied at many places. Its subclasses are frozen dataclasses."""

    weight: Float[Tensor, "channels reads *kernel"]
    input_shape: tuple[int, ...]
    groups: int

    @property
    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """(channels, *size)."""

    @abstractmethod
    def along(self, axis: int) -> Int[Tensor, "places kernel"]:
        """List what is read along one spatial dimension.

        Args:
            axis: The dimension, from 0.

        Returns:
            For each place of the result and entry of the kernel, the place of the input, or −1 for
            none.
        """

    @property
    def positions(self) -> int:
        """Number of places of a channel of the result."""
        return prod(self.output_shape[1:])

    @property
    def rows(self) -> int:
        """Size of the result."""
        return prod(self.output_shape)

    @property
    def columns(self) -> int:
        """Size of what it reads."""
        return prod(self.input_shape)

    @property
    def products(self) -> int:
        """Most products that are summed in one entry of the result."""
        axes = range(len(self.input_shape) - 1)
        hits = [int((self.along(axis) >= 0).sum(1).max()) for axis in axes]
        return self.weight.shape[1] * prod(hits)

    @property
    def layout(self) -> tuple[str, int, int]:
        """Order of the result's entries, positions and channels."""
        return "channel, position", self.positions, len(self.weight)

    def framed(self, sample: Any) -> Any:
        """Put what is around samples there, if the module does not.

        Args:
            sample: (m, *input_shape), or a node of a graph that stands for it.

        Returns:
            The samples with it.
        """
        return sample

    @cached_property
    def places(self) -> Int[Tensor, "positions groups reads"]:
        """Entry of a sample that each position reads, from 1; 0 where it reads none."""
        entries = torch.arange(1, self.columns + 1).view(self.input_shape)
        for axis in range(1, entries.ndim):  # (channels, places, kernel, places, kernel, …)
            zero_first = F.pad(entries.movedim(2 * axis - 1, -1), (1, 0))
            read = zero_first[..., self.along(axis - 1) + 1]
            entries = read.movedim((-2, -1), (2 * axis - 1, 2 * axis))
        order = [*range(1, entries.ndim, 2), 0, *range(2, entries.ndim, 2)]
        every = entries.permute(order).reshape(self.positions, self.groups, -1)
        return every.to(self.weight.device)

    def patches(
        self, x: Float[Tensor, "m columns"], some: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, "m some groups reads"]:
        """List what each position reads, in the order of `weight.flatten(1)`.

        Args:
            x: Samples.
            some: Which positions; all without.

        Returns:
            The inputs by position and group; 0 where an entry of the kernel reads nothing.
        """
        places = self.places if some is None else self.places[some]
        # a third of the time that places as an index take
        read = F.pad(x, (1, 0)).index_select(1, places.flatten())
        return read.unflatten(1, places.shape)

    def by_channel(self, z: Float[Tensor, "m rows"]) -> Float[Tensor, "m positions channels"]:
        """Sort a result by position and channel.

        Returns:
            A view of it.
        """
        return z.view(len(z), len(self.weight), self.positions).mT

    def spread(self, channel: Float[Tensor, " channels"]) -> Float[Tensor, " rows"]:
        """Repeat one number per channel over the positions.

        Returns:
            One number per entry of the result.
        """
        return channel.repeat_interleave(self.positions)

    def narrow(
        self, weight: Float[Tensor, "_ _ *kernel"], inputs: Bool[Tensor, " inputs"], groups: int
    ) -> tuple[Any, Bool[Tensor, " columns"]]:
        """Read some input channels only.

        Args:
            weight: The weights of these.
            inputs: Which ones.
            groups: Groups that are left.

        Returns:
            The smaller map, and which entries of a sample it reads.
        """
        shape = (int(inputs.sum()), *self.input_shape[1:])
        smaller: Any = replace(self, weight=weight, input_shape=shape, groups=groups)  # pyright: ignore
        return smaller, inputs.repeat_interleave(prod(shape[1:]))

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Write it out.

        Returns:
            The matrix.
        """
        return written_out(self, self.weight)
