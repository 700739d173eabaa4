"""Activations φ of a whole block: max-pooling, and operations of a network kept as they are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Stacked
from simplicit.errors import InputError


@dataclass(frozen=True)
class MaxPool:
    """The largest entry of every window of a block's pre-activations.

    |max_j s_j − max_j t_j| ≤ max_j |s_j − t_j|: it is non-expansive in the ∞-norm, and in a
    weighted one whose ω is constant on every window.

    Args:
        shape: Of z: (channels, length) or (channels, height, width).
        kernel: Size of a window, one number per spatial dimension.
        stride: Steps between windows.
        padding: Entries of −∞ around z.
        dilation: Steps between the entries of a window.
        ceil: Whether a last window may reach over the edge.
    """

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil: bool = False

    name = "max_pool"

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of x."""
        return tuple(self._pool(torch.zeros(1, *self.shape)).shape[1:])

    @property
    def states(self) -> int:
        """Entries of x."""
        return prod(self.output_shape)

    @property
    def lipschitz(self) -> float:
        """Smallest L with ‖φ(s) − φ(t)‖∞ ≤ L ‖s − t‖∞."""
        return 1.0

    def _pool(self, z: Tensor) -> Tensor:
        pool = F.max_pool1d if len(self.kernel) == 1 else F.max_pool2d
        return pool(z, self.kernel, self.stride, self.padding, self.dilation, self.ceil)

    def __call__(self, z: Float[Tensor, "m rows"]) -> Float[Tensor, "m states"]:
        """Apply φ.

        Returns:
            x, a row per sample.
        """
        return self._pool(z.unflatten(1, self.shape)).flatten(1)


@dataclass(frozen=True, eq=False)
class Kept:
    """An operation of the network that is kept as it is, on each sample by itself.

    Args:
        op: Name in ATen, e.g. `layer_norm.default`.
        arguments: Positional arguments: numbers, texts, None and lists of them, and tables with one
            entry: `operand` or `constant` and its number, or `dtype` and its name. They are those
            of a batch of one sample.
        options: Keyword arguments, likewise.
        operands: Shape of each operand in a batch of one; z holds them one after another.
        dtypes: Their dtypes, where they are not that of z.
        constants: Tensors among the arguments.
        weights: Which of those hold weights, that count.
        batched: Whether it takes a batch, and works on each sample by itself.
        output: Which result it is, if there are several.
        output_shape: Shape of the result in a batch of one.
        names: Of the constants in the network's state dict; empty for one that is no parameter.
    """

    op: str
    arguments: list[Any]
    options: dict[str, Any]
    operands: tuple[tuple[int, ...], ...]
    dtypes: tuple[str | None, ...]
    constants: tuple[Tensor, ...]
    weights: tuple[int, ...]
    batched: bool
    output: int | None
    output_shape: tuple[int, ...]
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it does."""
        return self.op.split(".")[0].strip("_")

    @property
    def states(self) -> int:
        """Entries of x."""
        return prod(self.output_shape)

    @property
    def lipschitz(self) -> float:
        """Infinite: nothing is known, so nothing is certified."""
        return math.inf

    def __call__(self, z: Float[Tensor, "m rows"]) -> Float[Tensor, "m states"]:
        """Apply φ.

        Returns:
            x, a row per sample.
        """
        operation = aten(self.op)

        def one(*parts: Tensor) -> Tensor:
            shapes = [(-1, *shape[1:]) if self.batched else shape for shape in self.operands]
            values = [
                part.reshape(shape) if dtype is None else part.reshape(shape).to(dtype_of(dtype))
                for part, shape, dtype in zip(parts, shapes, self.dtypes, strict=True)
            ]
            arguments = self.filled(self.arguments, values, self.constants)
            options = {
                key: self.filled(some, values, self.constants) for key, some in self.options.items()
            }
            result = operation(*arguments, **options)
            result = result if self.output is None else result[self.output]
            return result.reshape(*parts[0].shape[:-1], self.states).to(z.dtype)

        each = [z_k.contiguous() for z_k in z.split([prod(s) for s in self.operands], 1)]
        found = one(*each) if self.batched else torch.vmap(one)(*each)
        if torch.is_grad_enabled() and z.requires_grad and not found.requires_grad:
            found.requires_grad_()  # behind whole numbers, slopes begin anew
        return found

    def filled(self, some: Any, values: Sequence[Any], constants: Sequence[Any]) -> Any:
        """Put operands and constants into arguments.

        Args:
            some: An argument, or a list of them.
            values: The operands.
            constants: The constants.

        Returns:
            The argument.
        """
        if isinstance(some, list):
            return [self.filled(part, values, constants) for part in some]
        if not isinstance(some, dict):
            return some
        ((kind, which),) = some.items()
        if kind == "dtype":
            return dtype_of(which)
        return values[which] if kind == "operand" else constants[which]

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Kept":
        """Change its constants.

        Args:
            change: What becomes of a tensor.

        Returns:
            The operation with the new ones.
        """
        return replace(self, constants=tuple(change(constant) for constant in self.constants))


StatePhi = Phi | Stacked | MaxPool | Kept
"""φ of a layer."""


def states_of(phi: StatePhi, rows: int) -> int:
    """Count the states of a layer.

    Args:
        phi: Its φ.
        rows: Its pre-activations.

    Returns:
        Entries of φ(z).
    """
    return rows if isinstance(phi, Phi) else phi.states


def aten(name: str) -> Any:
    """Find an operation of ATen.

    Args:
        name: `operation.overload`.

    Returns:
        The operation.

    Raises:
        InputError: If there is none of the name.
    """
    operation, _, overload = name.partition(".")
    try:
        found = getattr(getattr(torch.ops.aten, operation), overload)
    except (AttributeError, RuntimeError):
        found = None
    if not isinstance(found, torch._ops.OpOverload) or operation == "from_file":
        raise InputError(f"operation {name!r}: accepted are those of torch.ops.aten on tensors")
    return found


def dtype_of(name: str) -> torch.dtype:
    """Find a dtype of torch.

    Args:
        name: Its name, e.g. `float32`.

    Returns:
        The dtype.

    Raises:
        InputError: If there is none of the name.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise InputError(f"dtype {name!r}: accepted are those of torch, e.g. float32")
    return found
