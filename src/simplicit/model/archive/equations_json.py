"""State equations as JSON, their tensors by name.

Weights are CSR or dense, a row per output channel; other tensors are squeezed. The JSON names
nothing but the classes listed here and operations of torch.ops.aten, so a file cannot make anything
else run.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from simplicit.equations.interface import Input, Interface, Output
from simplicit.equations.layer_phi import Kept, MaxPool, aten
from simplicit.equations.network import BiasParameter, Equation, StateEquations, Summand, Term
from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Block, Stacked
from simplicit.equations.weighted_maps import WEIGHTED_MAPS, Gather, Sparse
from simplicit.errors import InputError
from simplicit.model.archive.packing import pack, restore, squeeze, unpack

CLASSES: dict[str, type] = {
    c.__name__: c
    for c in (StateEquations, Interface, Input, Output, Equation, Term, Summand, BiasParameter)
    + (*WEIGHTED_MAPS, Gather, Sparse, Phi, Stacked, Block, MaxPool, Kept)
}


def write(equations: StateEquations) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take equations apart.

    Args:
        equations: The network.

    Returns:
        What the header says of them, and their tensors by name.
    """
    numbers: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    weights, squeezed = [], {}
    for weight in (term.weight for e in equations.layers for term in e.terms):
        if id(weight) in names:
            continue
        name = names[id(weight)] = f"learned.{len(weights)}"
        parts, storage = pack(weight.detach().cpu().flatten(1))
        numbers |= {f"{name}{suffix}": part for suffix, part in parts.items()}
        nonzeros = int(weight.count_nonzero())
        weights.append({"shape": list(weight.shape), "nonzeros": nonzeros, "storage": storage})

    def written(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in names:
                name = names[id(value)] = f"tensor.{len(names)}"
                small = value.dtype == torch.int64 and bool((value.abs() < 2**31).all())
                tensor = value.detach().cpu().contiguous()
                tensor = tensor.int() if small else tensor
                packed = None if tensor.dtype == torch.bfloat16 else squeeze(tensor)
                numbers[name] = tensor.clone() if packed is None else packed
                if packed is not None:
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    squeezed[name] = {"dtype": dtype, "shape": list(tensor.shape)}
            return {"tensor": names[id(value)]}
        if is_dataclass(value):
            content = {f.name: written(getattr(value, f.name)) for f in fields(value)}
            return {"is": type(value).__name__, **content}
        if isinstance(value, dict):
            return {"table": {key: written(part) for key, part in value.items()}}
        return [written(part) for part in value] if isinstance(value, (tuple, list)) else value

    header = {"weights": weights, "equations": written(equations), "squeezed": squeezed}
    return header, numbers


def read(header: Mapping[str, Any], numbers: Mapping[str, Tensor]) -> StateEquations:
    """Put equations together again.

    Args:
        header: As `write` gives it.
        numbers: Its tensors.

    Returns:
        The equations, on the CPU.

    Raises:
        InputError: If header and tensors are not those of a network.
    """
    try:
        return _checked(header, numbers)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"not the layers of a model ({line}); save it again") from None


def _checked(header: Mapping[str, Any], numbers: Mapping[str, Tensor]) -> StateEquations:
    tensors = dict(numbers)
    for name, entry in header.get("squeezed", {}).items():
        tensors[name] = restore(numbers[name], entry["dtype"], entry["shape"])
    for index, entry in enumerate(header["weights"]):
        name, shape = f"learned.{index}", tuple(entry["shape"])
        columns = torch.Size(shape[1:]).numel()
        flat = unpack(numbers, name, (shape[0], columns), entry["storage"])
        tensors[name] = flat.reshape(shape)
        if (found := int(flat.count_nonzero())) != entry["nonzeros"]:
            raise ValueError(f"{name} has {found} non-zeros, not {entry['nonzeros']}")
    equations = _made(header["equations"], tensors, tuple)
    full = header.get("structure") == "full"  # then the only hidden equation reads itself
    for index, e in enumerate(equations.layers):
        if not all(-1 <= source < index or (full and source == index == 0) for source in e.sources):
            raise ValueError(f"{e.name} reads a later layer")
        if isinstance(e.phi, Kept):
            aten(e.phi.op)
    with torch.no_grad():  # do all sizes fit
        x = torch.zeros(1, equations.n).to(equations.like)
        u = torch.zeros(1, equations.p).to(equations.like)
        states = [x[:, places] for places in equations.slices]
        for e in equations.layers:
            e.phi(e.preactivation([*states, u]))
    return equations


def _made(value: Any, tensors: Mapping[str, Tensor], sequence: type) -> Any:
    if isinstance(value, list):
        return sequence(_made(part, tensors, sequence) for part in value)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        # the same tensor again is the same weight
        return tensor.long() if tensor.dtype == torch.int32 else tensor
    if "table" in value:
        return {key: _made(part, tensors, sequence) for key, part in value["table"].items()}
    kind = CLASSES[value["is"]]
    lists = ("arguments", "options")  # as operations take them
    content = {
        key: _made(part, tensors, list if key in lists else tuple)
        for key, part in value.items()
        if key != "is"
    }
    return kind(**content)
