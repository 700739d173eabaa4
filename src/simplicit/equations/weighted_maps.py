"""Linear maps between flattened samples: matrices, convolutions, moves of entries, averages.

Every map has `rows` and `columns`, its sizes; `map(x)`, for x (m, columns) the (m, rows) results;
`absolute()`, the map with |weights|; and `to_dense()`. `Dense` and `Conv` are learnable: `patches`
lists what each of their positions reads, so that position by position they are one matrix,
`weight.flatten(1)`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.equations.fixed_maps import Gather, Sparse, written_out

__all__ = ["Conv", "Dense", "Gather", "LinearMap", "Sparse", "patches"]

Pairs = tuple[tuple[int, int], ...]
"""Before and after, for each spatial dimension."""


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
    def rows(self) -> int:
        """Size of the result."""
        return self.positions * self.weight.shape[0]

    @property
    def columns(self) -> int:
        """Size of what it reads."""
        return self.positions * self.weight.shape[1]

    def __call__(self, x: Float[Tensor, "m columns"]) -> Float[Tensor, "m rows"]:
        """Apply the map.

        Returns:
            The results, a row per sample.
        """
        if self.positions == 1:
            return F.linear(x, self.weight)
        return F.linear(x.unflatten(1, (self.positions, -1)), self.weight).flatten(1)

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
        every = x.view(len(x), self.positions, 1, -1)
        return every if some is None else every[:, some]

    def by_channel(self, z: Float[Tensor, "m rows"]) -> Float[Tensor, "m positions outputs"]:
        """Sort a result by position and output.

        Returns:
            A view of it.
        """
        return z.view(len(z), self.positions, -1)

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


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution in one or two dimensions, with zeros around its input.

    Args:
        weight: (channels, input channels / groups, *kernel).
        input_shape: (input channels, length) or (input channels, height, width).
        stride: One number per spatial dimension.
        padding: Zeros before and after, per spatial dimension.
        dilation: One number per spatial dimension.
        groups: Groups of channels that do not see each other.
    """

    weight: Float[Tensor, "channels reads *kernel"]
    input_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int = 1

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """(channels, length) or (channels, height, width)."""
        sizes = zip(
            self.input_shape[1:],
            self.padding,
            self.weight.shape[2:],
            self.dilation,
            self.stride,
            strict=True,
        )
        places = [(n + sum(pad) - d * (k - 1) - 1) // s + 1 for n, pad, k, d, s in sizes]
        return (self.weight.shape[0], *places)

    @property
    def positions(self) -> int:
        """Number of places where the kernel is applied."""
        return prod(self.output_shape[1:])

    @property
    def rows(self) -> int:
        """Size of the result."""
        return prod(self.output_shape)

    @property
    def columns(self) -> int:
        """Size of what it reads."""
        return prod(self.input_shape)

    @cached_property
    def _places(self) -> Tensor:
        # entry of a sample that each position reads, from 1; 0 where it reads padding
        entries = torch.arange(1, self.columns + 1, dtype=torch.float64, device=self.weight.device)
        return self.patches(entries[None])[0].long()

    def _image(self, x: Tensor, explicit: bool = False) -> tuple[Tensor, tuple[int, ...]]:
        # uneven padding, which convolutions do not take, is written out
        x = x.reshape(len(x), *self.input_shape)
        if not explicit and all(before == after for before, after in self.padding):
            return x, tuple(before for before, _ in self.padding)
        around = [side for pair in reversed(self.padding) for side in pair]
        return F.pad(x, around), (0,) * len(self.padding)

    def __call__(self, x: Float[Tensor, "m columns"]) -> Float[Tensor, "m rows"]:
        """Apply the map.

        Returns:
            The results, a row per sample.
        """
        image, padding = self._image(x)
        convolve = F.conv1d if len(self.input_shape) == 2 else F.conv2d
        options = (None, self.stride, padding, self.dilation, self.groups)
        return convolve(image, self.weight, *options).flatten(1)

    def patches(
        self, x: Float[Tensor, "m columns"], some: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, "m some groups reads"]:
        """List what each position reads, in the order of `weight.flatten(1)`.

        Args:
            x: Samples.
            some: Which positions; all without.

        Returns:
            The inputs by position and group.
        """
        if some is not None:
            return F.pad(x, (1, 0))[:, self._places[some]]
        image, _ = self._image(x, explicit=True)
        return patches(image, self.weight.shape[2:], self.stride, self.dilation, self.groups)

    def by_channel(self, z: Float[Tensor, "m rows"]) -> Float[Tensor, "m positions channels"]:
        """Sort a result by position and channel.

        Returns:
            A view of it.
        """
        return z.view(len(z), self.weight.shape[0], -1).mT

    def spread(self, channel: Float[Tensor, " channels"]) -> Float[Tensor, " rows"]:
        """Repeat one number per channel over the positions.

        Returns:
            One number per entry of the result.
        """
        return channel.repeat_interleave(self.positions)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Write it out.

        Returns:
            The matrix.
        """
        return written_out(self, self.weight)

    def absolute(self) -> "Conv":
        """Take absolute values.

        Returns:
            The map with |weight|.
        """
        return replace(self, weight=self.weight.abs())


def patches(
    image: Float[Tensor, "m channels *size"],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
) -> Float[Tensor, "m positions groups reads"]:
    """List what each position of a convolution without padding reads.

    Args:
        image: Images, or sequences.
        kernel: Size of the kernel, one number per spatial dimension.
        stride: Steps between positions.
        dilation: Steps between the entries of a kernel.
        groups: Groups of channels.

    Returns:
        The inputs by position and group, in the order of a weight's entries: channel, then place.
    """
    if image.ndim == 3:
        image = image.unsqueeze(2)
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
    columns = F.unfold(image, kernel, dilation=dilation, stride=stride)  # (m, reads, positions)
    return columns.unflatten(1, (groups, -1)).permute(0, 3, 1, 2)


LinearMap = Dense | Conv | Gather | Sparse
"""Any of them."""
