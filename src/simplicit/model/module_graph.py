"""A network without feedback as a graph of torch's modules and operations.

Values keep the shape that modules take and return, so that what works at any resolution in the
network does so here; what speaks of single entries of a sample checks how many there are.
"""

import operator
import re
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from simplicit.equations.compose import Fixed
from simplicit.equations.interface import Input, Interface
from simplicit.equations.layer_phi import Kept, MaxPool, StatePhi, aten, dtype_of
from simplicit.equations.network import Equation, StateEquations, Term
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Dense, Gather, Sparse

PAIRED = ("gather", "take_along_dim", "index")
"""Operations whose operands have the same samples: constants are repeated for each."""


@dataclass(frozen=True, eq=False)
class _Value:
    """A result.

    Args:
        node: What computes it, (m, *shape).
        shape: Of one sample.
    """

    node: fx.Node
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


def plain(term: Term) -> bool:
    """Say whether a term is a matrix on states as they are.

    Args:
        term: The term.

    Returns:
        Whether it moves nothing before.
    """
    return term.is_matrix and not _moves(term.fixed) and term.offset is None


def _within(name: str, other: str) -> bool:
    return f"{name}.".startswith(f"{other}.")


# terms that apply the same map, with the same weight
def _alike(terms: tuple[Term, ...]) -> list[list[Term]]:
    found: dict[tuple[Any, ...], list[Term]] = {}
    for term in terms:
        own = [getattr(term.map, f.name) for f in fields(term.map) if f.name != "weight"]
        found.setdefault((type(term.map), id(term.weight), *own), []).append(term)
    return list(found.values())


def _moves(fixed: Fixed | None) -> bool:
    return not (fixed is None or (isinstance(fixed, Gather) and fixed.is_identity))


class Writer:
    """Writes a network.

    Args:
        equations: The network.

    Attributes:
        graph: What computes it.
        attributes: Modules, parameters and tensors by their names in it.
    """

    def __init__(self, equations: StateEquations) -> None:
        self.graph, self.attributes = fx.Graph(), {}
        self._like: fx.Node | None = None
        self._weights: dict[int, nn.Parameter] = {}
        self._constants: dict[int, str] = {}
        every = [term for e in equations.layers for term in e.terms if term.parameter]
        self._learned = {
            t.parameter: t.weight for t in every if not t.transposed and t.gain is None
        }
        self._modules: dict[tuple[int, str], list[str]] = {}
        terms = [id(term.weight) for e in equations.layers for term in e.terms]
        self._shared = {key for key in terms if terms.count(key) > 1}
        self._inputs = self._given(equations)
        values = {-1: self._together()}
        for index, equation in enumerate(equations.hidden):
            z = self._whole(equation) or self._equation(equation, values)
            values[index] = self._phi(equation, z)
        y = self._equation(equations.output, values)
        interface = equations.interface
        self.graph.output(self._flat(y) if interface is None else self._returned(interface, y))

    # each input, and where it stands in u
    def _given(self, equations: StateEquations) -> list[tuple[_Value, Input, int]]:
        found, start = [], 0
        for k, i in enumerate(equations.inputs):
            name = i.name or ("input" if len(equations.inputs) == 1 else f"input_{k}")
            x = self.graph.placeholder(name)
            x = x if i.shape else self._call(torch.unsqueeze, x, 1)
            found.append((_Value(x, i.shape or (1,)), i, start))
            start += i.size
        return found

    def _together(self) -> _Value:
        if len(self._inputs) == 1 and not self._inputs[0][1].dtype:
            return self._inputs[0][0]
        self._like = self._tensor("like", torch.zeros(0))
        parts = [self._method("to", self._flat(x), self._like) for x, _, _ in self._inputs]
        return _Value(self._call(torch.cat, parts, 1), (sum(i.size for _, i, _ in self._inputs),))

    # whole numbers reach the operation that reads them as they are
    def _whole(self, e: Equation) -> _Value | None:
        if not (isinstance(e.phi, Kept) and len(e.fixed) == 1 and not e.terms and e.bias is None):
            return None
        index = e.fixed[0].map.index if isinstance(e.fixed[0].map, Gather) else None
        for x, i, start in self._inputs:
            places = torch.arange(start, start + i.size)
            if i.dtype and index is not None and torch.equal(index.cpu(), places):
                return x if e.fixed[0].source == -1 else None
        return None

    def _returned(self, interface: Interface, y: _Value) -> Any:
        parts, start = [], 0
        for output in interface.outputs:
            if output.size == y.size:
                part = y
            else:
                node = self._call(torch.narrow, self._flat(y), 1, start, output.size)
                part = _Value(node, (output.size,))
            start += output.size
            node = self._shaped(part, output.shape)
            if output.end == "sigmoid":
                node = self._call(torch.sigmoid, node)
            elif output.end:
                function = torch.softmax if output.end == "softmax" else torch.log_softmax
                assert output.axis is not None
                node = self._call(function, node, 1 + output.axis)
            parts.append(node)
        if interface.returns == "tensor":
            return parts[0]
        if interface.returns == "tuple":
            return tuple(parts)
        return {output.name: part for output, part in zip(interface.outputs, parts, strict=True)}

    def _call(self, function: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(function, args)

    def _method(self, name: str, *args: Any) -> fx.Node:
        return self.graph.call_method(name, args)

    def _tensor(self, name: str, tensor: Tensor) -> fx.Node:
        return self.graph.get_attr(self._store(name, tensor.detach().clone()))

    def _module(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        return self.graph.call_module(self._store(name, module), (x,))

    # layers may have any names, and the same one
    def _store(self, name: str, value: Any) -> str:
        name = re.sub(r"[^\w.]", "_", name)
        while any(_within(name, other) or _within(other, name) for other in self.attributes):
            name = name.replace(".", "_") + "_"
        self.attributes[name] = value
        return name

    # entries one after another, as many as there were: at another resolution there are not
    def _flat(self, x: _Value) -> fx.Node:
        if len(x.shape) == 1:
            return x.node
        return self._method("unflatten", self._call(torch.flatten, x.node, 1), 1, (x.size,))

    def _shaped(self, x: _Value, shape: tuple[int, ...]) -> fx.Node:
        if x.shape == shape:
            return x.node
        if not shape:  # a number a sample
            return self._call(torch.squeeze, self._flat(x), 1)
        return self._method("unflatten", self._call(torch.flatten, x.node, 1), 1, shape)

    def _equation(self, e: Equation, values: dict[int, _Value]) -> _Value:
        if (joined := self._concatenated(e, values)) is not None:
            return joined
        name = e.name
        bias = e.channel_bias if e.terms and e.full_bias is not None else None
        rest = e.full_bias if bias is None else None
        if rest is not None and e.adjust is not None and e.bias_change is not None:
            bias = e.bias_change  # position embeddings are added to it
            rest = rest.detach() - e.terms[0].map.spread(bias)
        parts: list[_Value] = []
        if len(e.terms) > 1 and all(map(self._can_be_joined, e.terms)):
            flat = [self._flat(values[term.source]) for term in e.terms]
            whole = Dense(torch.cat([term.weight.detach() for term in e.terms], 1))
            joined = self._module(name, whole.to_module(bias), self._call(torch.cat, flat, 1))
            parts.append(_Value(joined, whole.output_shape))
        for k, terms in enumerate(_alike(e.terms) if not parts else ()):
            own = f"{name}_{k}" if k else name
            parts.append(self._term(own, terms, bias if k == 0 else None, values))
        for k, summand in enumerate(e.fixed):
            parts.append(self._moved(f"{name}_fixed_{k}", summand.map, values[summand.source]))
        if rest is not None:
            shape = parts[0].shape
            parts.append(_Value(self._tensor(f"{name}_added", rest.reshape(shape)), shape))
        z = parts[0]
        for part in parts[1:]:
            z = _Value(self._call(torch.add, z.node, self._shaped(part, z.shape)), z.shape)
        return z

    # values one behind the other along their first axis, that of channels
    def _concatenated(self, e: Equation, values: dict[int, _Value]) -> _Value | None:
        if e.terms or e.bias is not None or len(e.fixed) < 2:
            return None
        parts: list[tuple[int, _Value]] = []
        for summand in e.fixed:
            x, index = values[summand.source], getattr(summand.map, "index", None)
            places = None if index is None else (index >= 0).nonzero()[:, 0]
            if index is None or places is None or len(places) != x.size:
                return None
            first, own = int(places[0]), torch.arange(x.size, device=index.device)
            if not (torch.equal(places - first, own) and torch.equal(index[places], own)):
                return None
            parts.append((first, x))
        parts.sort(key=lambda part: part[0])
        every = [x for _, x in parts]
        ends = list(accumulate((x.size for x in every), initial=0))
        if [first for first, _ in parts] != ends[:-1] or ends[-1] != e.size:
            return None
        if len({x.shape[1:] for x in every}) > 1:
            return None
        node = self._call(torch.cat, [x.node for x in every], 1)
        return _Value(node, (sum(x.shape[0] for x in every), *every[0].shape[1:]))

    def _can_be_joined(self, term: Term) -> bool:
        return plain(term) and id(term.weight) not in self._shared

    # terms that share their weight: what they read adds up
    def _term(
        self, name: str, terms: list[Term], bias: Tensor | None, values: dict[int, _Value]
    ) -> _Value:
        term = terms[0]
        module = self._uses_of(term, bias, name)
        shape = term.map.input_shape
        parts = []
        for k, part in enumerate(terms):
            read = self._moved(f"{name}_reads{k or ''}", part.fixed, values[part.source])
            parts.append(self._shaped(read, shape))
            if part.offset is not None:
                parts.append(self._tensor(f"{name}_offset{k or ''}", part.offset.view(shape)))
        x = parts[0]
        for part in parts[1:]:
            x = self._call(torch.add, x, part)
        framed = term.map.framed(fx.Proxy(x)).node
        return _Value(self.graph.call_module(module, (framed,)), term.map.output_shape)

    # the module of a term; one that is used several times is one module
    def _uses_of(self, term: Term, bias: Tensor | None, name: str) -> str:
        module: Any = term.map.to_module(bias)
        others = self._modules.setdefault((id(term.weight), repr(module)), [])
        for other in others:
            own = self.attributes[other].bias
            if bias is None or torch.equal(own, module.bias):
                return other
        module.weight = self._weights.setdefault(id(term.weight), module.weight)
        others.append(self._store(name, module))
        return others[-1]

    def _moved(self, name: str, fixed: Fixed | None, x: _Value) -> _Value:
        if fixed is None or not _moves(fixed):
            return x
        if isinstance(fixed, Sparse) and fixed.means and fixed.rows == x.shape[0]:
            return _Value(
                self._call(torch.mean, x.node, list(range(2, len(x.shape) + 1))), x.shape[:1]
            )
        flat = self._flat(x)
        if isinstance(fixed, Gather):  # index −1 is a column of zeros behind the others
            index = torch.where(fixed.index < 0, fixed.columns, fixed.index)
            padded = self._call(F.pad, flat, (0, 1)) if bool((fixed.index < 0).any()) else flat
            moved = self._call(torch.index_select, padded, 1, self._tensor(name, index))
            return _Value(moved, (fixed.rows,))
        column = self._tensor(f"{name}_column", fixed.column)
        picked = self._call(torch.index_select, flat, 1, column)
        entries = self._call(torch.mul, picked, self._tensor(f"{name}_value", fixed.value))
        samples = self._method("size", flat, 0)
        zeros = self._method("new_zeros", flat, (samples, fixed.rows))
        row = self._tensor(f"{name}_row", fixed.row)
        return _Value(self._call(torch.index_add, zeros, 1, row, entries), (fixed.rows,))

    def _phi(self, e: Equation, z: _Value) -> _Value:
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
            node = self._module(name, pool, self._shaped(z, e.phi.shape))
            return _Value(node, e.phi.output_shape)
        if isinstance(e.phi, Kept):
            return self._kept(e, e.phi, z)
        if e.phi.name == "identity":
            return z
        return _Value(self._module(name, activation(e.phi), z.node), z.shape)

    def _kept(self, e: Equation, phi: Kept, z: _Value) -> _Value:
        # a sample may stand in several places of the first axis, as windows of an image do
        places = {shape[0] for shape in (*phi.operands, phi.output_shape)}
        apart = len(places) == 1 and places != {1}
        operands, start = [], 0
        for shape, dtype in zip(phi.operands, phi.dtypes, strict=True):
            part = z
            if len(phi.operands) > 1:
                size = torch.Size(shape).numel()
                node = self._call(torch.narrow, self._flat(z), 1, start, size)
                part, start = _Value(node, (size,)), start + size
            node = self._shaped(part, shape[1 - apart :])
            node = self._call(torch.flatten, node, 0, 1) if apart else node
            operands.append(node if dtype is None else self._method("to", node, dtype_of(dtype)))
        constants = [self._constant(e, phi, k) for k in range(len(phi.constants))]
        if phi.name in PAIRED:
            samples = self._method("size", z.node, 0)
            pairs = zip(constants, phi.constants, strict=True)
            constants = [self._repeated(node, own, samples) for node, own in pairs]
        arguments = phi.filled(phi.arguments, operands, constants)
        options = {key: phi.filled(some, operands, constants) for key, some in phi.options.items()}
        # TorchScript chooses among overloads itself
        result = self.graph.call_function(aten(phi.op).overloadpacket, tuple(arguments), options)
        if phi.output is not None:
            result = self.graph.call_function(operator.getitem, (result, phi.output))
        if apart:
            result = self._method("unflatten", result, 0, (-1, phi.output_shape[0]))
        found = _Value(result, phi.output_shape[1 - apart :])
        # comparisons and whole numbers are states as numbers, too
        like = self._like or z.node
        if not found.shape:
            found = _Value(self._call(torch.unsqueeze, result, 1), (1,))
        return _Value(self._method("to", found.node, like), found.shape)

    def _repeated(self, constant: fx.Node, tensor: Tensor, samples: fx.Node) -> fx.Node:
        if tensor.ndim == 0 or len(tensor) != 1:
            return constant
        if tensor.ndim == 1 and not tensor.is_floating_point() and not tensor.any():
            return self._call(torch.arange, samples)  # the number of each sample
        return self._method("expand", constant, samples, *[-1] * (tensor.ndim - 1))

    # a parameter of the network has its name, once
    def _constant(self, e: Equation, phi: Kept, k: int) -> fx.Node:
        constant, own = phi.constants[k], phi.names[k] if phi.names else ""
        if not own or not constant.is_floating_point():
            return self._tensor(f"{e.name}_phi_{k}", constant)
        if id(constant) not in self._constants:
            tied = own in self._learned  # which has the name
            place = f"{e.name}.{own.rpartition('.')[2]}" if tied else own
            alike = tied and torch.equal(self._learned[own], constant)
            parameter = nn.Parameter(constant.detach().clone())
            if alike:
                parameter = self._weights.setdefault(id(self._learned[own]), parameter)
            self._constants[id(constant)] = self._store(place, parameter)
        return self.graph.get_attr(self._constants[id(constant)])


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
