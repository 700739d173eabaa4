"""A layered model as plain torch modules, and its weights as those of the network it came from."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from simplicit.equations.compose import Fixed
from simplicit.equations.layer_phi import Kept, MaxPool, aten, dtype_of
from simplicit.equations.network import Equation, StateEquations, Term
from simplicit.equations.weighted_maps import Gather
from simplicit.errors import InputError
from simplicit.model.feedforward import activation

CLOSE = 1e-3
"""Relative difference of outputs that is more than rounding."""


def as_modules(equations: StateEquations) -> fx.GraphModule:
    """Write a network as a graph of torch's own modules.

    Args:
        equations: The network.

    Returns:
        A module with the same outputs that does not need simplicit.

    Raises:
        InputError: If an operation that is kept as it is does not work on a batch.
    """
    writer = _Writer(equations)
    module = fx.GraphModule(writer.attributes, writer.graph).to(equations.like)
    if equations.kept:
        u = torch.randn(3, *equations.input_shape).to(equations.like)
        with torch.no_grad():
            y, again = equations.replay(u)[1], module(u)
        if not float((y - again).abs().max()) <= CLOSE * float(y.abs().max()):
            raise InputError(
                f"to_explicit: of {', '.join(equations.kept)} some work on single samples only; "
                "accepted is load_into, which writes the weights into the network's own class"
            )
    return module


class _Writer:
    def __init__(self, equations: StateEquations) -> None:
        self.graph, self.attributes = fx.Graph(), {}
        self._weights: dict[int, nn.Parameter] = {}
        u = self.graph.placeholder("input")
        nodes = {-1: self._call(torch.flatten, u, 1)}
        for index, equation in enumerate(equations.hidden):
            z = self._equation(equation, nodes)
            nodes[index] = self._phi(equation, z)
        self.graph.output(self._equation(equations.output, nodes))

    def _call(self, function: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(function, args)

    def _tensor(self, name: str, tensor: Tensor) -> fx.Node:
        self.attributes[name] = tensor.detach().clone()
        return self.graph.get_attr(name)

    def _module(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        self.attributes[name] = module
        return self.graph.call_module(name, (x,))

    def _equation(self, e: Equation, nodes: dict[int, fx.Node]) -> fx.Node:
        name = e.name.replace("@", "_")
        bias = e.channel_bias if e.terms and e.full_bias is not None else None
        parts = []
        for k, term in enumerate(e.terms):
            own = f"{name}_{k}" if k else name
            x = self._moved(f"{own}_reads", term.fixed, nodes[term.source])
            if term.offset is not None:
                x = self._call(torch.add, x, self._tensor(f"{own}_offset", term.offset))
            parts.append(self._term(own, term, bias if k == 0 else None, x))
        for k, summand in enumerate(e.fixed):
            parts.append(self._moved(f"{name}_fixed_{k}", summand.map, nodes[summand.source]))
        if bias is None and e.full_bias is not None:
            parts.append(self._tensor(f"{name}_bias", e.full_bias))
        z = parts[0]
        for part in parts[1:]:
            z = self._call(torch.add, z, part)
        return z

    def _term(self, name: str, term: Term, bias: Tensor | None, x: fx.Node) -> fx.Node:
        module: Any = term.map.to_module(bias)
        module.weight = self._weights.setdefault(id(term.weight), module.weight)
        shaped = term.map.shaped(fx.Proxy(x)).node
        return self._call(torch.flatten, self._module(name, module, shaped), 1)

    def _shaped(self, x: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        return self._call(torch.reshape, x, (-1, *shape))

    def _moved(self, name: str, fixed: Fixed | None, x: fx.Node) -> fx.Node:
        if fixed is None or (isinstance(fixed, Gather) and fixed.is_identity):
            return x
        if isinstance(fixed, Gather):  # index −1 is a column of zeros behind the others
            index = torch.where(fixed.index < 0, fixed.columns, fixed.index)
            return self._call(
                torch.index_select, self._call(F.pad, x, (0, 1)), 1, self._tensor(name, index)
            )
        picked = self._call(torch.index_select, x, 1, self._tensor(f"{name}_column", fixed.column))
        entries = self._call(torch.mul, picked, self._tensor(f"{name}_value", fixed.value))
        samples = self.graph.call_method("size", (x, 0))
        zeros = self.graph.call_method("new_zeros", (x, (samples, fixed.rows)))
        return self._call(
            torch.index_add, zeros, 1, self._tensor(f"{name}_row", fixed.row), entries
        )

    def _phi(self, e: Equation, z: fx.Node) -> fx.Node:
        name = e.name.replace("@", "_") + "_phi"
        if isinstance(e.phi, MaxPool):
            kind = nn.MaxPool1d if len(e.phi.kernel) == 1 else nn.MaxPool2d
            pool = kind(
                e.phi.kernel,  # pyright: ignore[reportArgumentType]
                e.phi.stride,  # pyright: ignore[reportArgumentType]
                e.phi.padding,  # pyright: ignore[reportArgumentType]
                e.phi.dilation,  # pyright: ignore[reportArgumentType]
                ceil_mode=e.phi.ceil,
            )
            x = self._module(name, pool, self._shaped(z, e.phi.shape))
            return self._call(torch.flatten, x, 1)
        if isinstance(e.phi, Kept):
            return self._kept(name, e.phi, z)
        return z if e.phi.name == "identity" else self._module(name, activation(e.phi), z)

    def _kept(self, name: str, phi: Kept, z: fx.Node) -> fx.Node:
        values, start = [], 0
        for shape, dtype in zip(phi.operands, phi.dtypes, strict=True):
            size = torch.Size(shape).numel()
            part = self._shaped(self._call(torch.narrow, z, 1, start, size), shape[1:])
            start += size
            if dtype is not None:
                part = self.graph.call_method("to", (part, dtype_of(dtype)))
            values.append(part)
        constants = [self._tensor(f"{name}_{k}", t) for k, t in enumerate(phi.constants)]
        arguments = phi.filled(phi.arguments, values, constants)
        options = {key: phi.filled(some, values, constants) for key, some in phi.options.items()}
        result = self.graph.call_function(aten(phi.op), tuple(arguments), options)
        if phi.output is not None:
            result = self.graph.call_function(operator.getitem, (result, phi.output))
        flat = self._call(torch.flatten, result, 1)
        return self.graph.call_method("to", (flat, z))


def own_parameters(equations: StateEquations) -> dict[str, Tensor]:
    """Write weights and biases as the parameters of the network they were read from.

    Batch norm is taken out of the weights again; biases go into the batch norm's or the layer's
    own.

    Args:
        equations: The network with its new weights and biases.

    Returns:
        Name in the network's state dict -> value.

    Raises:
        InputError: If a weight was computed from other parameters, if a shared one has two values,
            or if a bias has changed where the network has none.
    """
    found: dict[str, Tensor] = {}
    for e in equations.layers:
        for term in e.terms:
            if not term.parameter:
                raise InputError(
                    f"load_into: the weight of {e.name} is computed from other parameters; "
                    "accepted are weights that are parameters"
                )
            _put(found, term.parameter, _without_gain(e.name, term))
        if not e.terms:
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
    u = torch.randn(2, *equations.input_shape, generator=torch.Generator().manual_seed(0))
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
