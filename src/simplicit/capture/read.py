"""Reads any feed-forward `nn.Module` into state equations: which layer feeds which, φ of each.

The network is exported (`torch.export`), which sees functional, in-place and module forms of an
operation alike, and its graph is walked once. Hooks on modules would miss the first and be wrong
about the second.
"""

import copy
import io
import logging
import operator
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from simplicit.capture.affine import Affine
from simplicit.capture.found import IDENTITY, Layers, of_one, refuse, shape_of_one
from simplicit.capture.operations import (
    DROPOUTS,
    HINTS,
    LOGITS,
    MOVED,
    OPERATIONS,
    PROBABILITIES,
    SAME,
)
from simplicit.equations.network import Equation, StateEquations, Summand, Term
from simplicit.equations.phi import Phi
from simplicit.errors import InputError

__all__ = ["Equation", "StateEquations", "Summand", "Term", "capture"]

SAMPLES = 8
"""Samples of the example that the equations are checked on."""


def capture(net: nn.Module, example: Tensor) -> StateEquations:
    """Read a network, as it computes in evaluation mode, into its state equations.

    The network is left exactly as it was: a copy is read. Forward hooks are part of what a network
    computes and run on the copy, as they do whenever the network is called.

    Args:
        net: A feed-forward network that returns logits: linear maps, convolutions, activations,
            pooling, moves and sums are read, any other operation is kept as it is.
        example: Inputs (m, …) in the network's own shape, one sample or more; their values only
            serve to check the result.

    Returns:
        The equations, in the network's dtype and on its device.

    Raises:
        InputError: If a parameter or the example is not finite, if the network does not run on
            the example, or if it does what cannot be written as state equations; the line names
            the module and the operation.
    """
    if not isinstance(net, nn.Module):
        raise InputError(f"the network is a {type(net).__name__}: accepted is a torch.nn.Module")
    _check_finite(net, example)
    try:
        net = copy.deepcopy(net).eval()
    except Exception as error:
        raise InputError(
            f"the network cannot be copied ({_line(error)}): accepted is one copy.deepcopy copies, "
            "with pruning masks and weight norm removed or made permanent"
        ) from error
    example = example.detach()[:SAMPLES].to(next(net.parameters(), example))
    if len(example) == 1:  # export takes a batch of one for a constant; two alike hide mixing
        example = torch.cat([example, example / 2])
    with torch.no_grad():
        try:
            logits = net(example.clone())  # which may change its input in place
        except Exception as error:
            raise InputError(
                f"the network does not run on inputs of shape {tuple(example.shape)}: "
                f"{_line(error)}"
            ) from error
        equations = _read(_export(net, example), example)
        _check_replay(equations, example, logits)
    return equations


def _check_finite(net: nn.Module, example: Tensor) -> None:
    if example.ndim < 2 or len(example) == 0 or not example.is_floating_point():
        raise InputError(
            f"example of shape {tuple(example.shape)}, {example.dtype}: accepted is a batch of at "
            "least one floating-point sample, (m, …)"
        )
    if not example.isfinite().all():
        raise InputError("the example has NaN or Inf entries: accepted are finite inputs")
    kinds = (("parameter", net.named_parameters()), ("buffer", net.named_buffers()))
    for kind, tensors in kinds:
        for name, tensor in tensors:
            if not tensor.isfinite().all():
                raise InputError(f"{kind} {name!r} has NaN or Inf entries: accepted are finite")


def _check_replay(equations: StateEquations, example: Tensor, output: Any) -> None:
    logits = pytree.tree_leaves(output)[0]
    try:
        _, replayed = equations.replay(example)
    except Exception as error:
        raise InputError(
            "an operation that is no linear map does not run on a sample by itself "
            f"({_line(error)}): accepted are those that do; {', '.join(equations.kept)} are kept"
        ) from error
    # half of the digits: sums are in another order, anything misread is far off
    bound = torch.finfo(logits.dtype).eps ** 0.5 * max(1.0, float(logits.abs().max()))
    if not float((replayed - logits).abs().max()) <= bound:
        raise InputError(
            "the network's outputs are not a fixed function of its inputs (the equations read "
            "from it give others): accepted is a feed-forward network without randomness or memory"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch.export says of its own and of graphs it refuses; errors say it."""
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", r".*treespec, LeafSpec", FutureWarning)
            # an attribute that the forward pass sets, here on the copy
            warnings.filterwarnings("ignore", r"The tensor attributes? ", UserWarning)
            yield
    finally:
        log.setLevel(level)


def _export(net: nn.Module, example: Tensor) -> ExportedProgram:
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one operation of a whole attention layer
        with _quiet():
            program = torch.export.export(
                net, (example,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False
            )
            if _in_place(program):
                program = program.run_decompositions({})
    except Exception as error:
        if "Constraints violated" in str(error):  # by the one dynamic size there is
            raise InputError(
                f"the network's forward fixes the batch size to {len(example)}: accepted is any "
                "size, as in x.flatten(1) or x.view(x.shape[0], -1), not len(x)"
            ) from error
        raise InputError(
            f"torch.export cannot read the network ({_line(error)}): accepted is a forward "
            "without branches or loops that depend on the data"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if any(r.lower > 2 or r.upper < 2**31 for r in program.range_constraints.values()):
        raise InputError("the network's forward depends on the batch size: accepted is one graph")
    return program


# Whether an operation writes into a tensor that is there: only then is the graph written again.
def _in_place(program: ExportedProgram) -> bool:
    operations = (n.target for n in program.graph.nodes if n.op == "call_function")
    return any(op._schema.is_mutable for op in operations if isinstance(op, OpOverload))


def _read(program: ExportedProgram, example: Tensor) -> StateEquations:
    tensors = {**program.state_dict, **program.constants}
    parameters = {
        name: t.detach() for name, t in program.state_dict.items() if t.is_floating_point()
    }
    layers = Layers(parameters)
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    values: dict[fx.Node, Any] = {}
    program.graph.eliminate_dead_code()
    for node in program.graph.nodes:
        if node.op == "call_function":
            value = _evaluate(layers, node, values)
            if value is not None:
                values[node] = value
        elif node.op == "placeholder" and specs[node.name].kind != InputKind.USER_INPUT:
            values[node] = tensors[str(specs[node.name].target)].detach()
        elif node.op == "placeholder":
            values[node] = Affine.of_source(-1, (1, *example.shape[1:]), example)
    output = _output(layers, program, values)
    if not layers.hidden:
        raise InputError("the network has no hidden layer: accepted are networks with at least one")
    if not any(equation.terms for equation in (*layers.hidden, output)):
        raise InputError("the network has no Linear and no convolution: accepted is one or more")
    return StateEquations(tuple(layers.hidden), output, tuple(example.shape[1:]), layers.nonzeros)


def _evaluate(layers: Layers, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
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
    if not operands and not sequence:
        return node.target(*args, **options)
    # comparisons and whole numbers are no affine maps of states, and neither is a cast to them
    numeric = all(operand.dtype is None for operand in operands)
    cast = numeric and isinstance(symbolic, Tensor) and not symbolic.is_floating_point()
    if sequence or (node.target in OPERATIONS and not cast and (numeric or node.target in MOVED)):
        value = OPERATIONS[node.target](layers, node, *args, **options)
    else:
        value = layers.keep(node, args, options)
    return _checked(layers, node, value) if isinstance(value, Affine) else value


def _sure(node: fx.Node) -> bool:
    operation, *_ = _name(node).split(".")
    if operation in DROPOUTS:
        return not node.args[2]
    # attention may drop weights at random; its fifth argument says how many
    dropout = (*node.args, *[0.0] * 5)[4] or node.kwargs.get("dropout_p", 0.0)
    return operation == "scaled_dot_product_attention" and not dropout


def _of_one(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return of_one(value) if isinstance(value, torch.SymInt) else value


def _checked(layers: Layers, node: fx.Node, value: Affine) -> Affine:
    if shape_of_one(node) != value.shape:
        refuse(node, "changes the number of values; accepted: operations on each sample by itself")
    dtype = node.meta["val"].dtype
    if dtype.is_floating_point and dtype != value.like.dtype:
        refuse(node, f"changes the dtype to {dtype}; accepted: one dtype throughout")
    readers = [user for user in node.users if isinstance(user.meta.get("val"), Tensor)]
    if len(readers) > 1 and (value.terms or len(value.fixed) > 1):
        return layers.state(node, value, IDENTITY)  # what is read twice is one state
    return value


def _output(layers: Layers, program: ExportedProgram, values: dict[fx.Node, Any]) -> Equation:
    names = [name for name in program.graph_signature.user_outputs if name is not None]
    if len(names) != 1:
        raise InputError(f"the network returns {len(names)} tensors: accepted is one, the logits")
    node = next(node for node in program.graph.nodes if node.name == names[0])
    value = values[node]
    if not isinstance(value, Affine):
        raise InputError(
            "the network's output does not depend on its input: accepted is one that does"
        )
    last = node
    while last.op == "call_function" and _name(last) in SAME.split():
        last = last.all_input_nodes[0]
    if _name(last).split(".")[0] in PROBABILITIES:
        refuse(last, LOGITS)
    if value.bare is not None and (value.bare < 0 or _squashed(layers.hidden[value.bare].phi)):
        raise InputError(
            "the network does not end in a Linear: accepted is one that returns logits, "
            "before any activation"
        )
    shape = node.meta["val"].shape
    if len(shape) != 2:
        raise InputError(
            f"the network returns samples of shape {tuple(shape[1:])}: accepted is (outputs,)"
        )
    if value.shape[0] != 1 or isinstance(shape[0], int):
        raise InputError("the network's outputs mix samples: accepted is a row of logits for each")
    return layers.equation(node, value, IDENTITY)


def _squashed(phi: Any) -> bool:
    return isinstance(phi, Phi) and phi.name != "identity"


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.")


def _line(error: Exception) -> str:
    # of another library's message, its first sentence
    return re.split(r"\.\s|\n", str(error).strip() or type(error).__name__)[0].rstrip(".")
