"""A model's weights as those of the network it came from."""

import copy
from collections.abc import Collection
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from simplicit.capture.inputs import unwrapped
from simplicit.capture.outputs import tensors_of
from simplicit.equations.interface import called
from simplicit.equations.layer_phi import Kept
from simplicit.equations.network import Equation, StateEquations, Term
from simplicit.errors import InputError
from simplicit.model.factored import CHANNELS

CLOSE = 1e-3
"""Relative difference of outputs that is more than rounding."""


def own_parameters(equations: StateEquations, computed: Collection[str] = ()) -> dict[str, Tensor]:
    """Write weights and biases as the parameters of the network they were read from.

    Batch norm is taken out of the weights again; biases go into the batch norm's or the layer's
    own.

    Args:
        equations: The network with its new weights and biases.
        computed: Modules whose weight is computed from parameters, and can be set all the same.

    Returns:
        Name in the network's state dict, or of such a weight -> value.

    Raises:
        InputError: If the network has no parameter for a weight or a bias, or a shared parameter
            would have two values.
    """
    found: dict[str, Tensor] = {}
    for e in equations.layers:
        for term in e.terms:
            if term.parameter:
                _put(found, term.parameter, _without_gain(e.name, term))
            elif (path := e.name.split("@")[0]) in computed:
                _put(found, f"{path}.weight", _without_gain(e.name, term))
            elif term.weight.any():  # zeros have nowhere to go
                raise InputError(_nowhere(equations, e, term))
        if not any(term.parameter for term in e.terms) and e.name.split("@")[0] not in computed:
            continue
        _put_bias(found, e)
    return found


# what a bias has of its own parameter
def _put_bias(found: dict[str, Tensor], e: Equation) -> None:
    assert e.adjust is not None
    factor, change = e.adjust.factor, e.bias_change
    if change is None:
        raise InputError(
            f"load_into: the bias of {e.name} moved by other amounts at other positions; accepted "
            "is one amount by channel"
        )
    there = (factor != 0) if e.adjust.name else torch.zeros_like(factor, dtype=torch.bool)
    if not torch.allclose(change[~there], torch.zeros_like(change[~there]), atol=1e-6):
        raise InputError(
            f"load_into: {e.name} has a bias now and the network's own layer has none; "
            "accepted are models without biases there"
        )
    if there.any():
        _put(found, e.adjust.name, torch.where(there, change / factor, 0.0))


def _nowhere(equations: StateEquations, e: Equation, term: Term) -> str:
    if e.name.endswith(CHANNELS):
        return (
            f"load_into: layer {e.name.removesuffix(CHANNELS)} is written by two factors, and the "
            "network has one weight there; accepted are models without a rank"
        )
    if not any(t.parameter for layer in equations.layers for t in layer.terms):
        return (
            "load_into: the model has no names of a network's parameters; accepted are models "
            "made from a network's equations, with structure='layered'"
        )
    if any(t.parameter for t in e.terms):
        source = "the input" if term.source < 0 else equations.hidden[term.source].name
        return (
            f"load_into: layer {e.name} has skip connections from {source}, which the network has "
            "not; accepted are models with structure='layered'"
        )
    return (
        f"load_into: the weight of {e.name} is computed from other parameters; accepted are "
        "weights that are parameters"
    )


def _without_gain(name: str, term: Term) -> Tensor:
    weight = term.weight.detach()
    if term.gain is not None:
        gain = term.gain.view(-1, *[1] * (weight.ndim - 1))
        if bool(((gain == 0) & (weight != 0)).any()):
            raise InputError(
                f"load_into: {name} has weights in a channel that its batch norm multiplies by 0"
            )
        weight = torch.where(gain == 0, 0.0, weight / gain)
    return term.stored(weight)


def _put(found: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in found and not torch.allclose(found[name], value, rtol=1e-5, atol=1e-8):
        raise InputError(f"load_into: the shared parameter {name} has two values; accepted is one")
    found[name] = value


def some_inputs(equations: StateEquations) -> Tensor:
    """Draw inputs on which two networks are compared.

    Args:
        equations: The network.

    Returns:
        Three samples u, on the processor: random numbers, or zeros where some are cast to whole
        numbers, which may stand for places in a table; ones where the network takes whole numbers,
        which may be a mask.
    """
    whole = any(i.dtype for i in equations.inputs)
    if _casts(equations) and not whole:
        return torch.zeros(3, equations.p)
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.ones(3, i.size) if i.dtype else torch.randn(3, i.size, generator=generator)
        for i in equations.inputs
    ]
    return torch.cat(parts, 1)


def _casts(equations: StateEquations) -> bool:
    phis = [e.phi for e in equations.hidden if isinstance(e.phi, Kept)]
    return any(phi.op.split(".")[0] in ("to", "_to_copy") for phi in phis)


def outputs_of(equations: StateEquations, u: Tensor) -> list[Tensor]:
    """Compute what a network returns.

    Args:
        equations: The network.
        u: Its inputs, see `some_inputs`.

    Returns:
        Its tensors.
    """
    y, interface = equations.replay(u)[1], equations.interface
    return [y] if interface is None else list(tensors_of(interface.returned(y)).values())


def apart(found: list[Tensor], expected: list[Tensor]) -> float:
    """Say how far two networks' outputs are from each other.

    Args:
        found: Tensors of one.
        expected: Tensors of the other.

    Returns:
        The largest difference, relative to the largest entry of the same output, or to 1; infinity
        if they have other shapes.
    """
    if [y.shape for y in found] != [y.shape for y in expected]:
        return inf
    pairs = zip(found, expected, strict=True)
    return max(float((y.to(z) - z).abs().max()) / max(1.0, float(z.abs().max())) for y, z in pairs)


def load_into(equations: StateEquations, net: nn.Module) -> None:
    """Write weights and biases into the network they were read from, or a copy of it.

    Args:
        equations: The network with its new weights and biases.
        net: Changed in place; left as it was unless it then has the same outputs.

    Raises:
        InputError: If a parameter is missing or has another shape, or if the outputs differ, since
            what is not written (running statistics, operations that are kept) is another's.
    """
    net = unwrapped(net)
    own = net.state_dict()
    computed = {path for path, m in net.named_modules() if is_parametrized(m, "weight")}
    found = own_parameters(equations, computed)
    made = {path: found.pop(f"{path}.weight") for path in computed if f"{path}.weight" in found}
    for name, value in found.items():
        if name in own and own[name].numel() == value.numel():
            value = found[name] = value.reshape(own[name].shape)
        if name not in own or own[name].shape != value.shape:
            shape = tuple(own[name].shape) if name in own else "none of the name"
            raise InputError(
                f"load_into: {name} has shape {tuple(value.shape)} in the model and {shape} in the "
                "network; accepted is a network of the class it was read from"
            )
    parts = [name for name in own for path in made if name.startswith(f"{path}.parametrizations.")]
    before = {name: own[name].clone() for name in (*found, *parts)}
    dtypes = {own[name].dtype for name in found}
    rounding = max((torch.finfo(dtype).eps ** 0.5 for dtype in dtypes), default=0.0)
    same = False
    with torch.no_grad():
        try:
            for name, value in found.items():
                own[name].copy_(value)
            for path, value in made.items():  # by the inverse of what computes it
                module: Any = net.get_submodule(path)
                module.weight = value.reshape(module.weight.shape)
            same = _apart(equations, net) <= max(CLOSE, rounding)
        finally:
            for name, value in before.items() if not same else ():
                own[name].copy_(value)
    if same:
        return
    raise InputError(
        "load_into: with the model's weights the network gives other outputs; accepted is the "
        "trained network itself or a copy, with its running statistics"
    )


# in the model's own precision: what is rounded then is the weights
def _apart(equations: StateEquations, net: nn.Module) -> float:
    u = some_inputs(equations).to(equations.like)
    copied = copy.deepcopy(net).eval().to(equations.like)
    expected = outputs_of(equations, u)
    found = tensors_of(called(copied, equations.inputs, u))
    return apart(list(found.values()), expected)
