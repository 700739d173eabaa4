"""How a network is called and what it returns, beside one vector u in and one vector y out.

State equations know u (m, p) and y (m, q). A network's own inputs stand in u one after another,
whole numbers as what they are: below 2²⁴ they are exact in float32. Its outputs stand in y, before
the softmax or sigmoid that they end in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.errors import InputError

Returns = Literal["tensor", "tuple", "dict"]
"""What a network returns its outputs in."""

End = Literal["", "softmax", "log_softmax", "sigmoid"]
"""What outputs go through behind y."""


@dataclass(frozen=True)
class Input:
    """One tensor that a network takes.

    Args:
        name: Name of the parameter of its forward; empty if it is passed by position.
        shape: Of one sample.
        dtype: Of torch, e.g. `int64`, if these are no floating-point numbers; otherwise empty.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = ""

    @property
    def size(self) -> int:
        """Entries of one sample."""
        return prod(self.shape)

    def __str__(self) -> str:
        """Say what is accepted, in an error.

        Returns:
            Name, shape of a batch, and dtype, as far as there are any.
        """
        parts = (self.name, f"({', '.join(['m', *map(str, self.shape)])})", self.dtype)
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Output:
    """One tensor that a network returns.

    Args:
        name: Its key, or its number; empty if it is the only one.
        shape: Of one sample.
        end: The activation behind it.
        axis: Axis of `shape` along which classes are, if any.
    """

    name: str
    shape: tuple[int, ...]
    end: End = ""
    axis: int | None = None

    @property
    def size(self) -> int:
        """Entries of one sample."""
        return prod(self.shape)

    def ended(self, y: Float[Tensor, "m *shape"]) -> Float[Tensor, "m *shape"]:
        """Apply the activation behind it.

        Args:
            y: What stands before it.

        Returns:
            What the network returns.
        """
        if self.end == "sigmoid":
            return y.sigmoid()
        if self.end == "":
            return y
        assert self.axis is not None
        return (y.softmax if self.end == "softmax" else y.log_softmax)(1 + self.axis)


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of a network.

    Args:
        inputs: In the order in which they stand in u.
        outputs: In the order in which they stand in y.
        returns: Whether it returns one tensor, a tuple, or a table by name.
        dtype: Of torch, if the network computes in less than float32; otherwise empty.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    returns: Returns = "tensor"
    dtype: str = ""

    @property
    def plain(self) -> bool:
        """Whether u is the network's one input, flattened, and y (m, q) what it returns."""
        single = self.returns == "tensor" and len(self.outputs[0].shape) == 1
        return plain(self.inputs) and single and not (self.outputs[0].end or self.dtype)

    def returned(self, y: Float[Tensor, "m q"]) -> Any:
        """Write outputs as the network returns them.

        Args:
            y: Outputs of all samples, one after another.

        Returns:
            A tensor (m, *shape), a tuple of them, or a table of them by name.
        """
        parts = y.split([output.size for output in self.outputs], 1)
        ended = [
            output.ended(part.unflatten(1, output.shape) if output.shape else part[:, 0])
            for output, part in zip(self.outputs, parts, strict=True)
        ]
        if self.returns == "tensor":
            return ended[0]
        if self.returns == "tuple":
            return tuple(ended)
        return {output.name: part for output, part in zip(self.outputs, ended, strict=True)}


def plain(inputs: Sequence[Input]) -> bool:
    """Say whether a network takes one tensor of floating-point numbers, by position.

    Args:
        inputs: What it takes.

    Returns:
        Whether u is that tensor, flattened.
    """
    return len(inputs) == 1 and not inputs[0].name and not inputs[0].dtype


def tensor_of(value: Any, name: str = "") -> Tensor:
    """Take an input as a tensor.

    Args:
        value: What was given.
        name: Its name, if it has one.

    Returns:
        The tensor.

    Raises:
        InputError: If it is no dense tensor or array of numbers, with samples along its first axis.
    """
    of = f" {name}" if name else ""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"input{of} of type {type(value).__name__}: accepted are tensors and arrays of numbers"
        ) from None
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "without numbers (meta)" if tensor.is_meta else f"of layout {tensor.layout}"
        raise InputError(f"input{of} {kind}: accepted are dense tensors")
    if tensor.ndim == 0:
        raise InputError(f"input{of} is one number: accepted are samples along the first axis")
    return tensor


def packed(
    inputs: Sequence[Input], given: Sequence[Any], named: Mapping[str, Any], like: Tensor
) -> Float[Tensor, "m p"]:
    """Put a network's inputs one after another.

    Args:
        inputs: What the network takes.
        given: Inputs by position; one table of all by name will do.
        named: Inputs by name.
        like: A tensor of the dtype and device of the result.

    Returns:
        u.

    Raises:
        InputError: If one is missing, is none of the network's, has another shape, or whole numbers
            that the dtype cannot hold.
    """
    if len(given) == 1 and isinstance(given[0], Mapping):
        given, named = (), {**given[0], **named}
    rest = [i.name for i in inputs[len(given) :]]
    if len(given) > len(inputs) or set(named) != set(rest):
        raise InputError(
            f"{len(given)} inputs by position and {', '.join(sorted(named)) or 'none'} by name: "
            f"accepted are {', '.join(map(str, inputs))}"
        )
    values = [*given, *(named[name] for name in rest)]
    parts = [_part(i, value, like) for i, value in zip(inputs, values, strict=True)]
    require_alike(parts)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def require_alike(parts: Sequence[Tensor]) -> None:
    """Refuse inputs of unlike numbers of samples.

    Args:
        parts: The inputs, (m, …) each.

    Raises:
        InputError: If they have other m.
    """
    counts = [len(part) for part in parts]
    if len(set(counts)) != 1:
        raise InputError(
            f"inputs of {', '.join(map(str, counts))} samples: accepted is one number for all"
        )


def _part(wanted: Input, value: Any, like: Tensor) -> Float[Tensor, "m size"]:
    x, name = tensor_of(value, wanted.name), f" {wanted.name}" if wanted.name else ""
    if tuple(x.shape[1:]) != wanted.shape:
        raise InputError(f"input{name} of shape {tuple(x.shape)}: accepted is {wanted}")
    if wanted.dtype and x.is_floating_point():
        raise InputError(f"input{name} of {x.dtype}: accepted is {wanted.dtype}")
    moved = x.to(like)
    if wanted.dtype and not torch.equal(moved.to(x), x):
        raise InputError(
            f"input{name} has whole numbers up to {int(x.abs().max())}, which {like.dtype} cannot "
            f"hold: accepted are numbers up to {round(2 / torch.finfo(like.dtype).eps)}"
        )
    return moved.flatten(1) if wanted.shape else moved[:, None]


def parted(inputs: Sequence[Input], u: Float[Tensor, "m *shape"]) -> list[Tensor]:
    """Take a network's inputs apart again.

    Args:
        inputs: What the network takes.
        u: All of them, one after another.

    Returns:
        Each in its own shape and dtype.
    """
    parts = u.flatten(1).split([i.size for i in inputs], 1)
    return [
        part.reshape(len(u), *i.shape).to(getattr(torch, i.dtype) if i.dtype else u.dtype)
        for i, part in zip(inputs, parts, strict=True)
    ]


def called(
    network: Callable[..., Any], inputs: Sequence[Input], u: Float[Tensor, "m *shape"]
) -> Any:
    """Call a network.

    Args:
        network: The network.
        inputs: What it takes.
        u: Its inputs, one after another.

    Returns:
        What it returns.
    """
    given, named = arguments(inputs, u)
    return network(*given, **named)


def arguments(
    inputs: Sequence[Input], u: Float[Tensor, "m *shape"]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Write inputs as the arguments of a call.

    Args:
        inputs: What the network takes.
        u: Its inputs, one after another.

    Returns:
        Inputs by position, and by name.
    """
    values = parted(inputs, u)
    pairs = list(zip(inputs, values, strict=True))
    return (
        tuple(value for i, value in pairs if not i.name),
        {i.name: value for i, value in pairs if i.name},
    )
