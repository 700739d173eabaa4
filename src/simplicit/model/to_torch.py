"""A model without feedback as plain torch modules.

The result consists of torch's parts alone, so it can be saved, exported and run where simplicit is
not installed. `torch.save` of an `fx.GraphModule` stores its readable `code`; `to_folder` writes it
as a Python package.
"""

import operator
import re
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from simplicit.capture.outputs import tensors_of
from simplicit.equations.compose import Fixed
from simplicit.equations.interface import Input, Interface, called
from simplicit.equations.layer_phi import Kept, MaxPool, StatePhi, aten, dtype_of
from simplicit.equations.network import Equation, StateEquations, Term
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Dense, Gather
from simplicit.errors import InputError
from simplicit.model.into_network import CLOSE, apart, outputs_of, some_inputs


def as_modules(equations: StateEquations) -> nn.Sequential | fx.GraphModule:
    """Write a network as torch's own modules, without the terms that are all zero.

    Args:
        equations: The network.

    Returns:
        A module with the same outputs that does not need simplicit: an `nn.Sequential` if every
        layer is a matrix that reads the one before it, otherwise a graph. In it a layer that reads
        several states with matrices is one `nn.Linear`, over their concatenation.

    Raises:
        InputError: If an operation that is kept as it is does not work on a batch.
    """
    equations = _without_zeros(equations)
    if _is_chain(equations) and equations.interface is None:
        return _sequential(equations)
    writer = _Writer(equations)
    module = fx.GraphModule(writer.attributes, writer.graph).to(equations.like)
    if equations.kept:
        u = some_inputs(equations).to(equations.like).flatten(1)
        with torch.no_grad():
            expected = outputs_of(equations, u)
            try:
                found = list(tensors_of(called(module, equations.inputs, u)).values())
            except Exception:
                found = []
        if not apart(found, expected) <= CLOSE:
            raise InputError(
                f"to_explicit: of {', '.join(equations.kept)} some work on single samples only; "
                "accepted is load_into, which writes the weights into the network's own class"
            )
    if equations.interface is not None and equations.interface.dtype:
        module = module.to(getattr(torch, equations.interface.dtype))
    return module


# a layer of zeros is still a layer, of its first term
def _without_zeros(equations: StateEquations) -> StateEquations:
    def used(e: Equation) -> Equation:
        terms = tuple(term for term in e.terms if term.weight.any())
        # the bias by channel is that of the first term
        return replace(e, terms=terms or e.terms[:1], bias=e.full_bias)

    hidden = tuple(used(e) for e in equations.hidden)
    return replace(equations, hidden=hidden, output=used(equations.output))


def _is_chain(equations: StateEquations) -> bool:
    return all(
        isinstance(e.phi, Phi)
        and e.sources == (k - 1,)
        and len(e.terms) == 1
        and not e.fixed
        and _plain(e.terms[0])
        for k, e in enumerate(equations.layers)
    )


# a matrix on states as they are
def _plain(term: Term) -> bool:
    moved = not (term.fixed is None or (isinstance(term.fixed, Gather) and term.fixed.is_identity))
    return term.is_matrix and not moved and term.offset is None


def _sequential(equations: StateEquations) -> nn.Sequential:
    modules: list[nn.Module] = [] if len(equations.input_shape) == 1 else [nn.Flatten()]
    weights: dict[int, nn.Parameter] = {}
    for e in equations.layers:
        term = e.terms[0]
        linear: Any = term.map.to_module(e.full_bias)
        linear.weight = weights.setdefault(id(term.weight), linear.weight)
        modules.append(linear)
        if e is not equations.output:
            modules.append(activation(e.phi))
    return nn.Sequential(*modules)


class _Writer:
    def __init__(self, equations: StateEquations) -> None:
        self.graph, self.attributes = fx.Graph(), {}
        self._like: fx.Node | None = None
        self._weights: dict[int, nn.Parameter] = {}
        terms = [id(term.weight) for e in equations.layers for term in e.terms]
        self._shared = {key for key in terms if terms.count(key) > 1}
        self._inputs = self._given(equations)
        nodes = {-1: self._together()}
        for index, equation in enumerate(equations.hidden):
            z = self._whole(equation) or self._equation(equation, nodes)
            nodes[index] = self._phi(equation, z)
        y = self._equation(equations.output, nodes)
        interface = equations.interface
        self.graph.output(y if interface is None else self._returned(interface, y))

    # each input flattened, and where it stands in u
    def _given(self, equations: StateEquations) -> list[tuple[fx.Node, Input, int]]:
        found, start = [], 0
        for k, i in enumerate(equations.inputs):
            name = i.name or ("input" if len(equations.inputs) == 1 else f"input_{k}")
            x = self.graph.placeholder(name)
            x = x if i.shape else self._call(torch.unsqueeze, x, 1)
            found.append((self._call(torch.flatten, x, 1), i, start))
            start += i.size
        return found

    def _together(self) -> fx.Node:
        if len(self._inputs) == 1 and not self._inputs[0][1].dtype:
            return self._inputs[0][0]
        self._like = self._tensor("like", torch.zeros(0))
        parts = [self.graph.call_method("to", (x, self._like)) for x, _, _ in self._inputs]
        return self._call(torch.cat, parts, 1)

    # whole numbers reach the operation that reads them as they are
    def _whole(self, e: Equation) -> fx.Node | None:
        if not (isinstance(e.phi, Kept) and len(e.fixed) == 1 and not e.terms and e.bias is None):
            return None
        index = e.fixed[0].map.index if isinstance(e.fixed[0].map, Gather) else None
        for x, i, start in self._inputs:
            places = torch.arange(start, start + i.size)
            if i.dtype and index is not None and torch.equal(index.cpu(), places):
                return x if e.fixed[0].source == -1 else None
        return None

    def _returned(self, interface: Interface, y: fx.Node) -> Any:
        parts, start = [], 0
        for output in interface.outputs:
            part = self._call(torch.narrow, y, 1, start, output.size)
            start += output.size
            if output.shape:
                part = self.graph.call_method("unflatten", (part, 1, output.shape))
            else:
                part = self._call(torch.squeeze, part, 1)
            if output.end == "sigmoid":
                part = self._call(torch.sigmoid, part)
            elif output.end:
                function = torch.softmax if output.end == "softmax" else torch.log_softmax
                assert output.axis is not None
                part = self._call(function, part, 1 + output.axis)
            parts.append(part)
        if interface.returns == "tensor":
            return parts[0]
        if interface.returns == "tuple":
            return tuple(parts)
        return {output.name: part for output, part in zip(interface.outputs, parts, strict=True)}

    def _call(self, function: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(function, args)

    def _tensor(self, name: str, tensor: Tensor) -> fx.Node:
        return self.graph.get_attr(self._store(name, tensor.detach().clone()))

    def _module(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        return self.graph.call_module(self._store(name, module), (x,))

    # layers may have any names, and the same one
    def _store(self, name: str, value: Any) -> str:
        name = re.sub(r"[^\w.]", "_", name)
        while name in self.attributes:
            name += "_"
        self.attributes[name] = value
        return name

    def _equation(self, e: Equation, nodes: dict[int, fx.Node]) -> fx.Node:
        name = e.name
        bias = e.channel_bias if e.terms and e.full_bias is not None else None
        parts = []
        if len(e.terms) > 1 and all(map(self._can_be_joined, e.terms)):
            joined = self._call(torch.cat, [nodes[term.source] for term in e.terms], 1)
            whole = Dense(torch.cat([term.weight.detach() for term in e.terms], 1))
            parts.append(self._module(name, whole.to_module(bias), joined))
        for k, term in enumerate(e.terms if not parts else ()):
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

    def _can_be_joined(self, term: Term) -> bool:
        return _plain(term) and id(term.weight) not in self._shared

    def _term(self, name: str, term: Term, bias: Tensor | None, x: fx.Node) -> fx.Node:
        module: Any = term.map.to_module(bias)
        module.weight = self._weights.setdefault(id(term.weight), module.weight)
        shaped = term.map.shaped(fx.Proxy(x)).node
        return self._call(torch.flatten, self._module(name, module, shaped), 1)

    def _shaped(self, x: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        return self.graph.call_method("unflatten", (x, 1, shape))

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
        name = f"{e.name}_phi"
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
        # a sample may stand in several places of the first axis, as windows of an image do
        places = {shape[0] for shape in (*phi.operands, phi.output_shape)}
        apart = len(places) == 1 and places != {1}
        for shape, dtype in zip(phi.operands, phi.dtypes, strict=True):
            size = torch.Size(shape).numel()
            part = self._shaped(self._call(torch.narrow, z, 1, start, size), shape[1 - apart :])
            part = self._call(torch.flatten, part, 0, 1) if apart else part
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
        if apart:
            result = self.graph.call_method("unflatten", (result, 0, (-1, phi.output_shape[0])))
        flat = self._call(torch.flatten, result, 1)
        return self.graph.call_method("to", (flat, self._like or z))


def activation(phi: StatePhi) -> nn.Module:
    """Find the torch module of an elementwise φ.

    Args:
        phi: φ.

    Returns:
        The module.
    """
    assert isinstance(phi, Phi)
    match phi.name:
        case "relu":
            return nn.ReLU()
        case "leaky_relu":
            return nn.LeakyReLU(phi.slope)
        case "relu6":
            return nn.ReLU6()
        case "silu":
            return nn.SiLU()
        case "gelu":
            return nn.GELU()
        case "gelu_tanh":
            return nn.GELU("tanh")
        case "tanh":
            return nn.Tanh()
        case "sigmoid":
            return nn.Sigmoid()
        case "identity":
            return nn.Identity()
