"""Reads any feed-forward `nn.Module` into state equations: which layer feeds which, φ of each.

The network is exported (`torch.export`), which sees functional, in-place and module forms of an
operation alike, and its graph is walked once. Hooks on modules would miss the first and be wrong
about the second.
"""

import copy
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from simplicit.capture.affine import Affine
from simplicit.capture.export import export, line, quiet
from simplicit.capture.found import IDENTITY, Layers, of_one, operation_of, refuse, shape_of_one
from simplicit.capture.inputs import inputs_of, taken, unwrapped
from simplicit.capture.operations import CASTS, CONSTANT, DROPOUTS, HINTS, MOVED, OPERATIONS
from simplicit.capture.outputs import as_list, heads, output_of, returns, tensors_of
from simplicit.equations.interface import (
    Input,
    Interface,
    Output,
    arguments,
    called,
    packed,
    plain,
    tensor_of,
)
from simplicit.equations.network import Equation, StateEquations, Summand, Term
from simplicit.equations.weighted_maps import Gather
from simplicit.errors import InputError

__all__ = ["Equation", "StateEquations", "Summand", "Term", "capture"]

SAMPLES = 8
"""Samples of the example that the equations are checked on."""

HALVES = {torch.float16, torch.bfloat16}


def capture(
    net: nn.Module | ExportedProgram, example: Any, inputs: Sequence[Input] | None = None
) -> StateEquations:
    """Read a network, as it computes in evaluation mode, into its state equations.

    The network is left exactly as it was: a copy is read. Forward hooks are part of what a network
    computes and run on the copy, as they do whenever the network is called. `torch.compile`,
    `DataParallel` and exported programs are taken off; what computes in less than float32 is read
    in float32.

    Args:
        net: A feed-forward network: linear maps, convolutions, recurrent layers, activations,
            pooling, moves and sums are read, any other operation is kept as it is. A softmax,
            log-softmax or sigmoid that an output ends in is taken off; `interface` of the equations
            has it.
        example: Inputs (m, …) in the network's own shape, one sample or more: a tensor, a tuple of
            tensors, or a table by name. Their values only serve to check the result.
        inputs: What stands in an example that was packed before.

    Returns:
        The equations, on the network's device.

    Raises:
        InputError: If a parameter or the example is not finite, if the network does not run on
            the example, or if it does what cannot be written as state equations; the line names
            the module and the operation.
    """
    with quiet():
        net = unwrapped(net)
    if inputs is None:
        several = isinstance(example, (tuple, list))
        inputs = tuple(i for x in example for i in inputs_of(None, x)) if several else None
        inputs = inputs or inputs_of(net, example)
        given, named = taken(example, tuple(inputs))
        if plain(inputs):
            (example,) = map(tensor_of, (*given, *named.values()))
        else:
            example = packed(inputs, given, named, torch.empty(0, dtype=torch.float64))
    _check_finite(net, example)
    try:
        with quiet():
            net = _evaluating(copy.deepcopy(net))
    except Exception as error:
        raise InputError(
            f"the network cannot be copied ({line(error)}): accepted is one copy.deepcopy copies, "
            "with pruning masks and weight norm removed or made permanent"
        ) from error
    dtypes = {p.dtype for p in net.parameters() if p.is_floating_point()}
    small = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes & HALVES)
    net = net.float() if small else net
    example = _samples(inputs, example.detach()[:SAMPLES].to(_like(net, example)))
    with torch.no_grad():
        try:
            # which may change its input in place
            outputs = called(net, inputs, example.clone())
        except Exception as error:
            given = ", ".join(map(str, inputs))
            whole = any(i.dtype for i in inputs)
            advice = "; images are floating point, as in images.float() / 255" if whole else ""
            raise InputError(
                f"the network does not run on inputs {given}: {line(error)}{advice}"
            ) from error
        tensors = tensors_of(outputs)
        if not isinstance(outputs, Tensor):
            as_list(net)
        given, named = arguments(inputs, example)
        program = export(net, given, named)
        equations, found = _read(program, inputs, example, list(tensors))
        interface = Interface(tuple(inputs), found, returns(outputs), *small[:1])
        equations = replace(equations, interface=None if interface.plain else interface)
        _require_same(net, equations, example, list(tensors.values()), _rounding(program, example))
    return equations


def _check_finite(net: nn.Module, example: Tensor) -> None:
    if example.ndim < 2 or len(example) == 0:
        raise InputError(
            f"example of shape {tuple(example.shape)}: accepted is a batch of at least one sample, "
            "(m, …)"
        )
    if not example.isfinite().all():
        raise InputError("the example has NaN or Inf entries: accepted are finite inputs")
    kinds = (("parameter", net.named_parameters()), ("buffer", net.named_buffers()))
    for kind, tensors in kinds:
        for name, tensor in tensors:
            if not tensor.isfinite().all():
                raise InputError(f"{kind} {name!r} has NaN or Inf entries: accepted are finite")


# an exported program is in the mode that it was exported in
def _evaluating(net: nn.Module) -> nn.Module:
    try:
        return net.eval()
    except NotImplementedError:
        return net


def _like(net: nn.Module, example: Tensor) -> Tensor:
    return next((p for p in net.parameters() if p.is_floating_point()), example)


# export takes a batch of one for a constant; two alike hide mixing
def _samples(inputs: Sequence[Input], example: Tensor) -> Tensor:
    if len(example) > 1:
        return example
    parts = example.flatten(1).split([i.size for i in inputs], 1)
    other = [part if i.dtype else part / 2 for i, part in zip(inputs, parts, strict=True)]
    return torch.cat([example, torch.cat(other, 1).view(example.shape)])


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


# parts of a network may compute in less than the rest: the equations do not
def _rounding(program: ExportedProgram, example: Tensor) -> float:
    values = [node.meta.get("val") for node in program.graph.nodes]
    found = {value.dtype for value in values if isinstance(value, Tensor)}
    dtypes = {example.dtype} | {dtype for dtype in found if dtype.is_floating_point}
    return max(torch.finfo(dtype).eps for dtype in dtypes)


# outputs may be differences of much larger numbers: then double precision tells
def _require_same(
    net: nn.Module,
    equations: StateEquations,
    example: Tensor,
    outputs: list[Tensor],
    rounding: float,
) -> None:
    if _same(_replayed(equations, example), outputs, rounding**0.5):
        return
    u = example.double()
    again = list(tensors_of(called(net.double(), equations.inputs, u)).values())
    fixed = _same([y.to(z) for y, z in zip(again, outputs, strict=True)], outputs, rounding**0.25)
    precise = max(rounding, torch.finfo(torch.float64).eps ** 0.5)
    if not fixed or not _same(_replayed(equations.changed(_doubled), u), again, precise):
        raise InputError(
            "the network's outputs are not a fixed function of its inputs (the equations read from "
            "it give others): accepted is a feed-forward network without randomness or memory"
        )


# within a part of the largest entry: sums are in another order, anything misread is far off
def _same(found: list[Tensor], expected: list[Tensor], part: float) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(float((y - z).abs().max()) <= part * float(z.abs().max()) for y, z in pairs)


def _replayed(equations: StateEquations, example: Tensor) -> list[Tensor]:
    try:
        y = equations.replay(example)[1]
    except Exception as error:
        raise InputError(
            "an operation that is no linear map does not run on a sample by itself "
            f"({line(error)}): accepted are those that do; {', '.join(equations.kept)} are kept"
        ) from error
    found = y if equations.interface is None else equations.interface.returned(y)
    return list(tensors_of(found).values())


def _read(
    program: ExportedProgram, inputs: Sequence[Input], example: Tensor, names: list[str]
) -> tuple[StateEquations, tuple[Output, ...]]:
    tensors = {**program.state_dict, **program.constants}
    parameters = {
        name: t.detach() for name, t in program.state_dict.items() if t.is_floating_point()
    }
    layers = Layers(parameters)
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    values: dict[fx.Node, Any] = {}
    program.graph.eliminate_dead_code()
    places = {node.name: node for node in program.graph.nodes}
    returned = [places[name] for name in program.graph_signature.user_outputs if name in places]
    if len(returned) != len(names):
        raise InputError("the network returns a constant: accepted are functions of its inputs")
    every = heads(returned)
    ends = {head.last: head.last.args[0] for head in every if head.last is not None}
    given = iter(_sources(inputs, example))
    for node in program.graph.nodes:
        if node in ends:
            operand = ends[node]
            assert isinstance(operand, fx.Node)
            values[node] = values[operand]
        elif node.op == "call_function":
            value = _evaluate(layers, node, values, returned)
            if value is not None:
                values[node] = value
        elif node.op == "placeholder" and specs[node.name].kind != InputKind.USER_INPUT:
            values[node] = tensors[str(specs[node.name].target)].detach()
        elif node.op == "placeholder":
            values[node] = next(given)
    output, outputs = output_of(layers, every, names, values)
    if not layers.hidden:
        raise InputError("the network has no hidden layer: accepted are networks with at least one")
    if not any(equation.terms for equation in (*layers.hidden, output)):
        raise InputError("the network has no Linear and no convolution: accepted is one or more")
    shape = tuple(example.shape[1:])
    hidden = tuple(map(layers.released, layers.hidden))
    return StateEquations(hidden, layers.released(output), shape, layers.nonzeros), outputs


def _sources(inputs: Sequence[Input], example: Tensor) -> list[Affine]:
    if plain(inputs):
        return [Affine.of_source(-1, (1, *example.shape[1:]), example)]
    p, start, found = example[0].numel(), 0, []
    for i in inputs:
        whole = Affine.of_source(-1, (1, p), example, getattr(torch, i.dtype) if i.dtype else None)
        index = torch.arange(start, start + i.size, device=example.device)
        found.append(whole.mapped(Gather(index, p), (1, *i.shape)))
        start += i.size
    return found


def _evaluate(
    layers: Layers, node: fx.Node, values: dict[fx.Node, Any], returned: Sequence[fx.Node]
) -> Any:
    symbolic = node.meta.get("val")
    if symbolic is None or isinstance(symbolic, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return None  # assertions, and sizes, which are read off the results that have them
    args, options = fx.map_arg((node.args, node.kwargs), lambda n: values.get(n, _of_one(n)))
    operands = [leaf for leaf in pytree.tree_leaves((args, options)) if isinstance(leaf, Affine)]
    sequence = node.target is operator.getitem
    packet = getattr(node.target, "overloadpacket", None)
    if packet in HINTS:
        refuse(node, HINTS[packet])
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not _sure(node):
        refuse(node, "is random; accepted: a fixed function of the input")
    assert callable(node.target)
    if node.target in CONSTANT:
        args = tuple(pytree.tree_map(_of_its_shape, list(args)))
        operands = []
    if not operands and not sequence:
        value = node.target(*args, **options)
        layers.pin(pytree.tree_leaves((args, options)), value)
        return value
    # comparisons and whole numbers are no affine maps of states, and neither is a cast to them
    numeric = all(operand.dtype is None for operand in operands)
    whole = isinstance(symbolic, Tensor) and not symbolic.is_floating_point()
    if node.target in CASTS:
        value = args[0]
        assert isinstance(symbolic, Tensor)
        if isinstance(value, Tensor):
            return value.to(symbolic.dtype)
        assert isinstance(value, Affine)
        if whole and symbolic.dtype != value.dtype:
            value = layers.keep(node, (value, symbolic.dtype), {}, "to.dtype")
        elif not whole:
            value = replace(value, dtype=None)
        return _checked(layers, node, value, returned.count(node))
    moved = node.target in MOVED
    if sequence or (node.target in OPERATIONS and (moved or (numeric and not whole))):
        value = OPERATIONS[node.target](layers, node, *args, **options)
    else:
        value = layers.keep(node, args, options)
    if not isinstance(value, Affine):
        return value
    return _checked(layers, node, value, returned.count(node))


# any numbers: only shape and dtype are asked for
def _of_its_shape(value: Any) -> Any:
    if not isinstance(value, Affine):
        return value
    return value.like.new_empty(value.shape, dtype=value.dtype or value.like.dtype)


def _sure(node: fx.Node) -> bool:
    operation, *_ = operation_of(node).split(".")
    if operation in DROPOUTS:
        return not node.args[2]
    # attention may drop weights at random; its fifth argument says how many
    dropout = (*node.args, *[0.0] * 5)[4] or node.kwargs.get("dropout_p", 0.0)
    return operation == "scaled_dot_product_attention" and not dropout


def _of_one(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return of_one(value) if isinstance(value, torch.SymInt) else value


def _checked(layers: Layers, node: fx.Node, value: Affine, returned: int) -> Affine:
    if shape_of_one(node) != value.shape:
        refuse(node, "changes the number of values; accepted: operations on each sample by itself")
    readers = [user for user in node.users if isinstance(user.meta.get("val"), Tensor)]
    if len(readers) + returned > 1 and (value.terms or len(value.fixed) > 1):
        return layers.state(node, value, IDENTITY)  # what is read twice is one state
    return value
