"""A network's outputs, one after another, before the softmax or sigmoid that they end in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from simplicit.capture.affine import Affine
from simplicit.capture.found import IDENTITY, Layers, operation_of, refuse, shape_of_one
from simplicit.capture.operations import SAME
from simplicit.equations.equation import Equation
from simplicit.equations.interface import End, Output, Returns
from simplicit.errors import InputError

CACHES = ("past_key_values", "cache_params", "mems")
"""Outputs of language models that later calls are to read, and nobody else."""

ENDS: dict[str, End] = {
    "softmax": "softmax",
    "_softmax": "softmax",
    "log_softmax": "log_softmax",
    "_log_softmax": "log_softmax",
    "sigmoid": "sigmoid",
}


def tensors_of(output: Any) -> dict[str, Tensor]:
    """Name the tensors that a network returns, in the order in which they stand.

    Args:
        output: A tensor, or tuples, lists, tables and dataclasses of some; None is passed over,
            and so are the caches of language models.

    Returns:
        Name -> tensor: keys and numbers, joined by dots; empty for a tensor alone.

    Raises:
        InputError: If anything else is among them.
    """
    found = dict(_leaves("", output))
    if not found:
        raise InputError("the network returns no tensor: accepted is at least one")
    return found


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
        return
    cache = name.split(".")[-1] in CACHES or type(value).__name__.endswith("Cache")
    if value is None or cache:
        return
    if isinstance(value, Mapping):
        parts = value.items()
    elif is_dataclass(value):
        parts = ((f.name, getattr(value, f.name)) for f in fields(value))
    elif isinstance(value, (tuple, list)):
        parts = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    else:
        raise InputError(
            f"the network returns a {type(value).__name__}{f' as {name}' if name else ''}: "
            "accepted are tensors, and tuples, tables and dataclasses of some"
        )
    for key, part in parts:
        yield from _leaves(f"{name}.{key}" if name else str(key), part)


def returns(output: Any) -> Returns:
    """Say in what a model returns its outputs that came from a network.

    Args:
        output: What the network returns.

    Returns:
        A tensor for a tensor; a tuple for a tuple or list of tensors; a table by name otherwise.
    """
    if isinstance(output, Tensor):
        return "tensor"
    flat = isinstance(output, (tuple, list)) and not hasattr(output, "_fields")
    return "tuple" if flat and all(isinstance(x, Tensor | None) for x in output) else "dict"


def as_list(net: nn.Module) -> None:
    """Let a network return the list of its tensors: torch.export takes no other dataclasses.

    Args:
        net: The network, changed in place.
    """
    net.register_forward_hook(lambda module, inputs, output: list(tensors_of(output).values()))


@dataclass(frozen=True, eq=False)
class Head:
    """Where an output comes from.

    Attributes:
        node: The operation that returns it.
        end: The activation behind it.
        last: The operation that is this activation, if any.
    """

    node: fx.Node
    end: End = ""
    last: fx.Node | None = None


def heads(nodes: list[fx.Node]) -> list[Head]:
    """Find the activations that outputs end in.

    Args:
        nodes: The operations that return the outputs.

    Returns:
        One for each.
    """
    found = []
    for node in nodes:
        last = node
        while last.op == "call_function" and operation_of(last) in SAME.split():
            last = last.all_input_nodes[0]
        end = ENDS.get(operation_of(last).split(".")[0], "") if last.op == "call_function" else ""
        # behind a softmax over an axis, no other may follow
        alike = end == "sigmoid" or shape_of_one(last) == shape_of_one(node)
        peeled = end and alike and _only_way(last, node)
        found.append(Head(node, end, last) if peeled else Head(node))
    return found


# whether nothing else reads an operation, or what follows, on the way to an output
def _only_way(last: fx.Node, node: fx.Node) -> bool:
    if any(user.op != "output" for user in node.users):
        return False
    while node is not last:
        node = node.all_input_nodes[0]
        if len(node.users) != 1:
            return False
    return True


def output_of(
    layers: Layers, every: list[Head], names: list[str], values: dict[fx.Node, Any]
) -> tuple[Equation, tuple[Output, ...]]:
    """Write the outputs down as one equation.

    Args:
        layers: The layers found so far.
        every: The outputs.
        names: Their names.
        values: Values of the operations.

    Returns:
        The equation, and what stands in it.

    Raises:
        InputError: If an output does not depend on the input, or mixes samples.
    """
    found, parts = [], []
    for head, name in zip(every, names, strict=True):
        value = values[head.node]
        of = f" {name}" if name else ""
        if not isinstance(value, Affine):
            raise InputError(
                f"the network's output{of} does not depend on its input: accepted is one that does"
            )
        batch, *_ = (*head.node.meta["val"].shape, 0)
        if value.dtype is not None:
            raise InputError(
                f"the network's output{of} has dtype {value.dtype}: accepted are floating-point "
                "numbers, e.g. logits instead of classes"
            )
        if value.shape[:1] != (1,) or isinstance(batch, int) or not value.shape:
            raise InputError(f"the network's outputs{of} mix samples: accepted is one for each")
        if not value.size:
            raise InputError(f"the network's output{of} has no entries: accepted is at least one")
        found.append(Output(name, tuple(value.shape[1:]), head.end, _classes(head, value)))
        parts.append(value)
    if len(parts) == 1:
        return layers.equation(every[0].node, parts[0], IDENTITY), tuple(found)
    whole = layers.joined(every[0].node, parts)
    return layers.equation(every[0].node, whole, IDENTITY, "outputs"), tuple(found)


# the axis of a softmax, or that of the channels of the last layer
def _classes(head: Head, value: Affine) -> int | None:
    shape = value.shape[1:]
    if head.end in ("softmax", "log_softmax"):
        assert head.last is not None
        axis = head.last.args[1]
        assert isinstance(axis, int)
        axis = axis % len(value.shape) - 1
        if axis < 0:
            refuse(head.last, "is over samples; accepted: over the outputs of each")
        return axis
    if not value.terms:
        return 0 if len(shape) == 1 else None
    linear = value.terms[0].map
    channels = torch.arange(len(linear.weight), dtype=linear.weight.dtype)
    numbers = linear.spread(channels.to(linear.weight)).reshape(shape)
    axes = [k for k, size in enumerate(shape) if size > 1 and bool(numbers.diff(dim=k).any())]
    return axes[0] if len(axes) == 1 else None
