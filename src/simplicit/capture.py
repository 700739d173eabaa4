"""Reads any feed-forward `nn.Module` into state equations: which layer feeds which, φ of each.

The network is exported (`torch.export`), which sees functional, in-place and module forms of an
operation alike, and its graph is walked once. Hooks on modules would miss the first and be wrong
about the second.
"""

import copy
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from .affine import Affine
from .equations import Equation, StateEquations, Term
from .errors import InputError
from .operations import ACCEPTED, HINTS, OPERATIONS, Layers, refuse, sample_shape
from .phi import Phi

__all__ = ["Equation", "StateEquations", "Term", "capture"]


def capture(net: nn.Module, example: Tensor) -> StateEquations:
    """Read a network, as it computes in evaluation mode, into its state equations.

    The network is left exactly as it was: a copy is read. Forward hooks are part of what a network
    computes and run on the copy, as they do whenever the network is called.

    Args:
        net: A feed-forward network of linear maps and elementwise activations that returns logits.
        example: Inputs (m, …) in the network's own shape, one sample or more; their values only
            serve to check the result.

    Returns:
        The equations, in the network's dtype and on its device.

    Raises:
        InputError: If a parameter or the example is not finite, if the network does not run on
            the example, or if it does what cannot be written as state equations; the line names
            the module and the operation.
    """
    _check_finite(net, example)
    try:
        net = copy.deepcopy(net).eval()
    except Exception as error:
        raise InputError(
            f"the network cannot be copied ({_line(error)}): accepted is one copy.deepcopy copies, "
            "with pruning masks and weight norm removed or made permanent"
        ) from error
    example = example.detach().to(next(net.parameters(), example))
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
    _, replayed = equations.replay(example)
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
    # export takes a batch of one for a constant
    pair = example if len(example) > 1 else torch.cat([example, example])
    try:
        with _quiet():
            program = torch.export.export(
                net, (pair,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False
            ).run_decompositions({})
    except Exception as error:
        if "Constraints violated" in str(error):  # by the one dynamic size there is
            raise InputError(
                f"the network's forward fixes the batch size to {len(pair)}: accepted is any size, "
                "as in x.flatten(1) or x.view(x.shape[0], -1), not len(x)"
            ) from error
        raise InputError(
            f"torch.export cannot read the network ({_line(error)}): accepted is a forward "
            "without branches or loops that depend on the data"
        ) from error
    if any(r.lower > 2 or r.upper < 2**31 for r in program.range_constraints.values()):
        raise InputError("the network's forward depends on the batch size: accepted is one graph")
    return program


def _read(program: ExportedProgram, example: Tensor) -> StateEquations:
    layers = Layers()
    tensors = {**program.state_dict, **program.constants}
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
            values[node] = Affine.of_source(-1, example[0].reshape(-1))
    output = _output(layers, program, values)
    if not layers.hidden:
        raise InputError("the network has no hidden layer: accepted are networks with at least one")
    return StateEquations(tuple(layers.hidden), output, tuple(example.shape[1:]), layers.nonzeros)


def _evaluate(layers: Layers, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    symbolic = node.meta.get("val")
    if symbolic is None or isinstance(symbolic, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return None  # assertions, and sizes, which are read off the results that have them
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values.get(n, n.meta.get("val")))
    operands = pytree.tree_leaves((args, kwargs))
    if not any(isinstance(operand, Affine) for operand in operands):
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            refuse(node, "is random; accepted: a fixed function of the input")
        if any(isinstance(operand, torch.SymInt) for operand in operands):
            refuse(node, "makes a tensor of the batch's size; accepted: constants of fixed size")
        assert callable(node.target)
        return node.target(*args, **kwargs)
    if node.target not in OPERATIONS:
        refuse(node, HINTS.get(node.target, f"is not accepted; accepted: {ACCEPTED}"))
    value = OPERATIONS[node.target](layers, node, *args, **kwargs)
    entries = math.prod(sample_shape(node))
    if entries != value.constant.numel():
        refuse(node, "changes the number of values; accepted: reshapes that keep them all")
    if isinstance(symbolic, Tensor) and symbolic.dtype != value.constant.dtype:
        refuse(node, f"changes the dtype to {symbolic.dtype}; accepted: one dtype throughout")
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
    if not value.has_matrix:
        raise InputError(
            "the network does not end in a Linear: accepted is one that returns logits, "
            "before any activation"
        )
    if len(sample_shape(node)) != 1:
        raise InputError(
            f"the network returns samples of shape {sample_shape(node)}: accepted is (outputs,)"
        )
    return layers.equation(node, value, Phi("identity"))


def _line(error: Exception) -> str:
    # of another library's message, its first sentence
    return re.split(r"\.\s|\n", str(error).strip() or type(error).__name__)[0].rstrip(".")
