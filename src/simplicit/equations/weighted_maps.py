"""Linear maps between flattened samples, and what one with weights must have.

To read one more kind of layer, write its class in `maps/` and add it to `WEIGHTED_MAPS`; its test
inherits `tests/weighted_map_suite.py`. Capture makes one in `capture/weighted.py`.
"""

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from simplicit.equations.maps.conv import Conv, patches
from simplicit.equations.maps.conv_transpose import ConvTranspose
from simplicit.equations.maps.dense import Dense
from simplicit.equations.maps.fixed import Gather, Sparse

__all__ = [
    "WEIGHTED_MAPS",
    "Conv",
    "ConvTranspose",
    "Dense",
    "Gather",
    "LinearMap",
    "Sparse",
    "WeightedMap",
    "WindowedMap",
    "patches",
    "transposed",
]


@runtime_checkable
class WeightedMap(Protocol):
    """A linear map whose weights can be matched; a frozen dataclass with a field `weight`.

    Position by position it is one matrix, `weight.flatten(1)`, a row per channel of the result.
    `dataclasses.replace(map, weight=…)` is the map with another weight.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def weight(self) -> Tensor:
        """The entries: (channels, reads, …)."""
        ...

    @property
    def rows(self) -> int:
        """Size of the result: positions · channels."""
        ...

    @property
    def columns(self) -> int:
        """Size of what it reads."""
        ...

    @property
    def positions(self) -> int:
        """How often a sample applies the weights."""
        ...

    @property
    def groups(self) -> int:
        """Groups of channels that read different inputs."""
        ...

    @property
    def products(self) -> int:
        """Most products that are summed in one entry of the result."""
        ...

    @property
    def layout(self) -> tuple[str, int, int]:
        """Order of the result's entries, positions and channels.

        Maps with the same one have the same `by_channel`: their weights are solved together.
        """
        ...

    def __call__(self, x: Float[Tensor, "m columns"]) -> Float[Tensor, "m rows"]:
        """Apply the map."""
        ...

    def patches(
        self, x: Float[Tensor, "m columns"], some: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, "m some groups reads"]:
        """List what some positions read, or all, in the order of `weight.flatten(1)`."""
        ...

    def by_channel(self, z: Float[Tensor, "m rows"]) -> Float[Tensor, "m positions channels"]:
        """Sort a result by position and channel."""
        ...

    def spread(self, channel: Float[Tensor, " channels"]) -> Float[Tensor, " rows"]:
        """Repeat one number per channel over the positions."""
        ...

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Write it out as a matrix."""
        ...

    def absolute(self) -> "WeightedMap":
        """Make the map with |weight|."""
        ...

    def narrow(
        self, weight: Tensor, inputs: Bool[Tensor, " inputs"], groups: int
    ) -> tuple["WeightedMap", Bool[Tensor, " columns"]]:
        """Make the map of some input channels, and say which entries of a sample those are."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of what the module takes of a sample."""
        ...

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what it returns."""
        ...

    def framed(self, sample: Any) -> Any:
        """Complete (m, *input_shape), or a node of a graph that stands for it, for the module."""
        ...

    def to_module(self, bias: Float[Tensor, " channels"] | None) -> nn.Module:
        """Write it as a module of torch with `weight` and `bias`, copies of them."""
        ...


@runtime_checkable
class WindowedMap(WeightedMap, Protocol):
    """A map whose positions read windows of an image that overlap: every place of a kernel."""

    @property
    def stride(self) -> tuple[int, ...]:
        """Steps between windows, per spatial dimension."""
        ...

    @property
    def dilation(self) -> tuple[int, ...]:
        """Steps between the entries of a window."""
        ...

    def padded(self, image: Any) -> Any:
        """Put what is around samples there.

        Args:
            image: (m, *input_shape).

        Returns:
            The image that windows are taken from.
        """
        ...


WEIGHTED_MAPS: tuple[type[WeightedMap], ...] = (Dense, Conv, ConvTranspose)
"""All of them; what a saved model may name."""

LinearMap = WeightedMap | Gather | Sparse
"""Any linear map."""


def transposed(linear: LinearMap, y: Float[Tensor, "m rows"]) -> Float[Tensor, "m columns"]:
    """Apply the transpose of a linear map.

    Args:
        linear: The map.
        y: What to apply it to.

    Returns:
        yᵀ W, row by row.
    """
    if isinstance(linear, Dense):
        return (y.unflatten(1, (linear.positions, -1)) @ linear.weight).flatten(1)
    if isinstance(linear, Conv) and all(before == after for before, after in linear.padding):
        padding, none = [before for before, _ in linear.padding], [0] * len(linear.padding)
        whole = y.new_empty(1).expand(len(y), *linear.input_shape)  # its numbers are not read
        return torch.ops.aten.convolution_backward(
            y.reshape(len(y), *linear.output_shape), whole, linear.weight, None, linear.stride,
            padding, linear.dilation, False, none, linear.groups, (True, False, False),
        )[0].flatten(1)  # fmt: skip
    with torch.enable_grad():  # the gradient of y · W x, which computes W x, too
        x = y.new_zeros(len(y), linear.columns, requires_grad=True)
        return torch.autograd.grad(linear(x), x, y)[0]
