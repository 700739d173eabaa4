"""Which tensors of a batch a network takes, and the network inside a wrapper."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from simplicit.equations.interface import Input, tensor_of
from simplicit.errors import InputError

LABELS = ("labels", "label")
"""Keys of a batch that name no input."""


def unwrapped(net: Any) -> nn.Module:
    """Find the network inside `torch.compile`, `DataParallel` or an exported program.

    Args:
        net: A network, or a wrapper of one.

    Returns:
        The network itself.

    Raises:
        InputError: If it is none.
    """
    if isinstance(net, ExportedProgram):
        return net.module()
    if isinstance(net, torch.jit.ScriptModule):
        raise InputError(
            "the network is a TorchScript module: accepted is the torch.nn.Module that it was made "
            "from, or one exported by torch.export"
        )
    if not isinstance(net, nn.Module):
        raise InputError(f"the network is a {type(net).__name__}: accepted is a torch.nn.Module")
    if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(net.module)
    if any(map(is_lazy, net.parameters())):
        raise InputError("the network has lazy modules: accepted is one that ran once")
    if any(p.is_meta for p in net.parameters()):
        raise InputError("the network is on the meta device: accepted is one that has weights")
    inner = getattr(net, "_orig_mod", None)  # where torch.compile keeps it
    return unwrapped(inner) if isinstance(inner, nn.Module) else net


def inputs_of(net: nn.Module | None, item: Any) -> tuple[Input, ...]:
    """Say which tensors of a batch a network takes.

    Of a table, those are all but `labels`, by name. Of several tensors, they are the first ones:
    as many as the network's forward needs.

    Args:
        net: The network; None: one that takes one tensor, or any table.
        item: A batch: a tensor or an array (m, …), a tuple or list whose first tensors are inputs,
            or a table of tensors by name.

    Returns:
        The inputs.

    Raises:
        InputError: If the batch has no tensor, or one that the network has no parameter for.
    """
    least, most, names = (1, 1, None) if net is None else _parameters(net)
    if isinstance(item, Mapping):
        given = {k: v for k, v in item.items() if v is not None and k not in LABELS}
        unknown = [name for name in given if names is not None and name not in names]
        if unknown:
            raise InputError(
                f"input {unknown[0]!r}: the network's forward takes {', '.join(names or ())}"
            )
        if not given:
            raise InputError("a batch without tensors: accepted is at least one input")
        return tuple(_input(str(name), value) for name, value in given.items())
    if not isinstance(item, (tuple, list)):
        return (_input("", item),)
    tensors = []
    for value in item:
        if not isinstance(value, (Tensor, np.ndarray)):
            break
        tensors.append(value)
    if not tensors:
        first = type(item[0]).__name__ if item else "nothing"
        raise InputError(
            f"a batch is a {type(item).__name__} of {first}: accepted are tensors, the network's "
            "inputs first"
        )
    return tuple(_input("", value) for value in tensors[: _needed(net, tensors, least, most)])


# how many parameters of forward must be given, how many can be, and their names if they are all
def _parameters(net: nn.Module) -> tuple[int, int, tuple[str, ...] | None]:
    try:
        every = inspect.signature(net.forward).parameters.values()
    except (TypeError, ValueError):
        return 1, 1, None
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = [p for p in every if p.kind in by_position]
    least = sum(p.default is inspect.Parameter.empty for p in given)
    most = 10**6 if any(p.kind == p.VAR_POSITIONAL for p in every) else len(given)
    named = None if any(p.kind == p.VAR_KEYWORD for p in every) else tuple(p.name for p in every)
    return max(least, 1), max(most, 1), named


def _needed(net: nn.Module | None, tensors: list[Any], least: int, most: int) -> int:
    counts = range(min(least, len(tensors)), min(most, len(tensors)) + 1)
    if len(counts) == 1 or net is None:
        return counts[0]
    with torch.no_grad():
        trial = copy.deepcopy(net).eval()  # which may change itself
        for count in counts:
            try:
                trial(*(torch.as_tensor(value)[:2] for value in tensors[:count]))
            except Exception:  # noqa: S112  whatever a network may raise
                continue
            return count
    return counts[0]


def _input(name: str, value: Any) -> Input:
    if not isinstance(value, (Tensor, np.ndarray)):
        raise InputError(
            f"a batch with a {type(value).__name__}{f' as {name}' if name else ''}: accepted are "
            "tensors (m, …), in a tuple or a table if there are several, then labels"
        )
    tensor = tensor_of(value, name)
    if tensor.dtype == torch.uint8:
        raise InputError(
            f"inputs{f' {name}' if name else ''} of dtype uint8: accepted are images as floating "
            "point, scaled as for training, e.g. images.float() / 255, and token ids as ids.long()"
        )
    if tensor.is_complex():
        raise InputError("complex inputs: accepted are real ones, e.g. torch.view_as_real(x)")
    dtype = "" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    return Input(name, tuple(tensor.shape[1:]), dtype)


def taken(item: Any, inputs: tuple[Input, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take a network's inputs out of a batch.

    Args:
        item: The batch.
        inputs: What the network takes.

    Returns:
        Inputs by position, and by name.
    """
    if isinstance(item, Mapping):
        return (), {i.name: item[i.name] for i in inputs if i.name in item}
    if isinstance(item, (tuple, list)):
        return tuple(item[: len(inputs)]), {}
    return (item,), {}
