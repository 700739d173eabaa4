"""A model's weights as those of the network it came from."""

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from simplicit.equations.layer_phi import Kept
from simplicit.equations.network import Equation, StateEquations, Term
from simplicit.errors import InputError

CLOSE = 1e-3
"""Relative difference of outputs that is more than rounding."""


def own_parameters(equations: StateEquations) -> dict[str, Tensor]:
    """Write weights and biases as the parameters of the network they were read from.

    Batch norm is taken out of the weights again; biases go into the batch norm's or the layer's
    own.

    Args:
        equations: The network with its new weights and biases.

    Returns:
        Name in the network's state dict -> value.

    Raises:
        InputError: If the network has no parameter for a weight or a bias, or a shared parameter
            would have two values.
    """
    found: dict[str, Tensor] = {}
    for e in equations.layers:
        for term in e.terms:
            if term.parameter:
                _put(found, term.parameter, _without_gain(e.name, term))
            elif term.weight.any():  # zeros have nowhere to go
                raise InputError(_nowhere(equations, e, term))
        if not any(term.parameter for term in e.terms):
            continue
        if e.adjust is None or e.channel_bias is None:
            raise InputError(
                f"load_into: the bias of {e.name} differs between positions; accepted are biases "
                "by channel"
            )
        change = e.channel_bias.detach() - e.adjust.rest
        if e.adjust.name and (e.adjust.factor != 0).all():
            _put(found, e.adjust.name, change / e.adjust.factor)
        elif not torch.allclose(change, torch.zeros_like(change), atol=1e-6):
            raise InputError(
                f"load_into: {e.name} has a bias now and the network's own layer has none; "
                "accepted are models without biases there"
            )
    return found


def _nowhere(equations: StateEquations, e: Equation, term: Term) -> str:
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
        Three samples, on the processor: random numbers, or zeros where some are cast to whole
        numbers, which may stand for places in a table.
    """
    casts = ("to", "_to_copy")
    phis = [e.phi for e in equations.hidden if isinstance(e.phi, Kept)]
    if any(phi.op.split(".")[0] in casts for phi in phis):
        return torch.zeros(3, *equations.input_shape)
    return torch.randn(3, *equations.input_shape, generator=torch.Generator().manual_seed(0))


def load_into(equations: StateEquations, net: nn.Module) -> None:
    """Write weights and biases into the network they were read from, or a copy of it.

    Args:
        equations: The network with its new weights and biases.
        net: Changed in place; left as it was unless it then has the same outputs.

    Raises:
        InputError: If a parameter is missing or has another shape, or if the outputs differ, since
            what is not written (running statistics, operations that are kept) is another's.
    """
    own, found = net.state_dict(), own_parameters(equations)
    for name, value in found.items():
        if name not in own or own[name].shape != value.shape:
            shape = tuple(own[name].shape) if name in own else "none of the name"
            raise InputError(
                f"load_into: {name} has shape {tuple(value.shape)} in the model and {shape} in the "
                "network; accepted is a network of the class it was read from"
            )
    before = {name: own[name].clone() for name in found}
    modes = [(module, module.training) for module in net.modules()]
    u = some_inputs(equations)
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)
        y, expected = net.eval()(u.to(next(net.parameters()))), equations.replay(u)[1]
        y = pytree.tree_leaves(y)[0].to(expected)
        for module, mode in modes:
            module.training = mode
        if float((y - expected).abs().max()) <= CLOSE * max(1.0, float(expected.abs().max())):
            return
        for name, value in before.items():
            own[name].copy_(value)
    raise InputError(
        "load_into: with the model's weights the network gives other outputs; accepted is the "
        "trained network itself or a copy, with its running statistics"
    )
