"""A transposed convolution: one kernel applied at every place of the input, overlaps added up."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from simplicit.equations.maps.convolution import Convolution
from simplicit.equations.maps.matrix import swapped
from simplicit.equations.maps.module import with_parameters

CONVOLVE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
MODULES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class ConvTranspose(Convolution):
    """A transposed convolution in one to three dimensions.

    Place o of the result reads place i of the input with entry j of the kernel where
    o + padding = stride · i + dilation · j.

    Args:
        weight: (channels, input channels / groups, *kernel), a row per channel of the result;
            torch's parameter is `swapped(weight, groups)`.
        input_shape: (input channels, *size): one to three sizes.
        stride: One number per spatial dimension.
        padding: Places that are cut off at either side, per spatial dimension.
        output_padding: Places that are added at the end, per spatial dimension.
        dilation: One number per spatial dimension.
        groups: Groups of channels that do not see each other.
    """

    weight: Float[Tensor, "channels reads *kernel"]
    input_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(channels, *size)."""
        sizes = zip(
            self.input_shape[1:],
            self.stride,
            self.padding,
            self.dilation,
            self.weight.shape[2:],
            self.output_padding,
            strict=True,
        )
        places = [(n - 1) * s - 2 * p + d * (k - 1) + more + 1 for n, s, p, d, k, more in sizes]
        return (self.weight.shape[0], *places)

    def along(self, axis: int) -> Int[Tensor, "places kernel"]:
        """List what is read along one spatial dimension.

        Args:
            axis: The dimension, from 0.

        Returns:
            For each place of the result and entry of the kernel, the place of the input, or −1
            where there is none.
        """
        place = torch.arange(self.output_shape[axis + 1])[:, None] + self.padding[axis]
        steps = place - torch.arange(self.weight.shape[axis + 2]) * self.dilation[axis]
        read = steps // self.stride[axis]
        hit = (steps % self.stride[axis] == 0) & (read >= 0) & (read < self.input_shape[axis + 1])
        return read.where(hit, -1)

    def __call__(self, x: Float[Tensor, "m columns"]) -> Float[Tensor, "m rows"]:
        """Apply the map.

        Returns:
            The results, a row per sample.
        """
        convolve: Any = CONVOLVE[len(self.stride) - 1]
        kernel = swapped(self.weight, self.groups)
        options = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return convolve(x.unflatten(1, self.input_shape), kernel, None, *options).flatten(1)

    def absolute(self) -> "ConvTranspose":
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
            A transposed convolution with copies of weight and bias.
        """
        kind: Any = MODULES[len(self.stride) - 1]
        module = kind(
            self.input_shape[0],
            len(self.weight),
            tuple(self.weight.shape[2:]),
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            dilation=self.dilation,
            device="meta",
        )
        return with_parameters(module, swapped(self.weight, self.groups), bias)
