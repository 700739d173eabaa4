"""A convolution: layers that apply one kernel at every place."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from simplicit.equations.maps.convolution import Convolution
from simplicit.equations.maps.module import with_parameters

Pairs = tuple[tuple[int, int], ...]
"""Before and after, for each spatial dimension."""

CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Conv(Convolution):
    """A convolution in one to three dimensions, with zeros around its input.

    Args:
        weight: (channels, input channels / groups, *kernel).
        input_shape: (input channels, *size): one to three sizes.
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

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(channels, *size)."""
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

    def along(self, axis: int) -> Int[Tensor, "places kernel"]:
        """List what is read along one spatial dimension.

        Args:
            axis: The dimension, from 0.

        Returns:
            For each place of the result and entry of the kernel, the place of the input, or −1
            where that is padding.
        """
        place = torch.arange(self.output_shape[axis + 1])[:, None] * self.stride[axis]
        entry = torch.arange(self.weight.shape[axis + 2]) * self.dilation[axis]
        read = place + entry - self.padding[axis][0]
        return read.where((read >= 0) & (read < self.input_shape[axis + 1]), -1)

    @property
    def _even(self) -> bool:
        return all(before == after for before, after in self.padding)

    def padded(self, image: Any) -> Any:
        """Put the zeros around samples.

        Args:
            image: (m, *input_shape), or a node of a graph that stands for it.

        Returns:
            The samples with them.
        """
        around = [side for pair in reversed(self.padding) for side in pair]
        return F.pad(image, around) if any(around) else image

    def framed(self, sample: Any) -> Any:
        """Put the zeros around samples where they are uneven, which torch's modules do not take.

        Args:
            sample: (m, *input_shape), or a node of a graph that stands for it.

        Returns:
            The samples with them.
        """
        return sample if self._even else self.padded(sample)

    @property
    def _options(self) -> tuple[Any, ...]:
        padding = tuple(before if self._even else 0 for before, _ in self.padding)
        return self.stride, padding, self.dilation, self.groups

    def __call__(self, x: Float[Tensor, "m columns"]) -> Float[Tensor, "m rows"]:
        """Apply the map.

        Returns:
            The results, a row per sample.
        """
        convolve = CONVOLVE[len(self.stride) - 1]
        image = self.framed(x.unflatten(1, self.input_shape))
        return convolve(image, self.weight, None, *self._options).flatten(1)

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
            return super().patches(x, some)
        image = self.padded(x.reshape(len(x), *self.input_shape))
        return patches(image, self.weight.shape[2:], self.stride, self.dilation, self.groups)

    def absolute(self) -> "Conv":
        """Take absolute values.

        Returns:
            The map with |weight|.
        """
        return replace(self, weight=self.weight.abs())

    def to_module(self, bias: Float[Tensor, " channels"] | None) -> nn.Module:
        """Write it as a module of torch.

        Args:
            bias: One number per channel, or None.

        Returns:
            A convolution with copies of weight and bias.
        """
        module = MODULES[len(self.stride) - 1](
            self.input_shape[0],
            len(self.weight),
            tuple(self.weight.shape[2:]),  # pyright: ignore[reportArgumentType]
            *self._options,
            device="meta",
        )
        return with_parameters(module, self.weight, bias)


def patches(
    image: Float[Tensor, "m channels *size"],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
) -> Float[Tensor, "m positions groups reads"]:
    """List what each position of a convolution without padding reads.

    Args:
        image: Samples, with one spatial dimension or more.
        kernel: Size of the kernel, one number per spatial dimension.
        stride: Steps between positions.
        dilation: Steps between the entries of a kernel.
        groups: Groups of channels.

    Returns:
        The inputs by position and group, in the order of a weight's entries: channel, then place.
    """
    spatial = len(kernel)
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        image = image.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    # (m, groups, reads, *places, *kernel), a view until the last step
    windows = image.unflatten(1, (groups, -1))
    places, entries = range(3, 3 + spatial), range(3 + spatial, 3 + 2 * spatial)
    return windows.permute(0, *places, 1, 2, *entries).flatten(1, spatial).flatten(3)
