"""The graph of a network's operations, by `torch.export`."""

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram, ShapesCollection

from simplicit.errors import InputError

aten = torch.ops.aten


def _bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    products = (x.unsqueeze(-1) * y.unsqueeze(-2)).flatten(-2)
    return F.linear(products, weight.flatten(1), bias)


def _lstm_cell(
    x: Tensor, state: list[Tensor], w_x: Tensor, w_h: Tensor, *biases: Tensor | None
) -> tuple[Tensor, Tensor]:
    b_x, b_h = biases or (None, None)
    gates = F.linear(x, w_x, b_x) + F.linear(state[0], w_h, b_h)
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, *biases: Tensor | None) -> Tensor:
    b_x, b_h = biases or (None, None)
    r_x, z_x, n_x = F.linear(x, w_x, b_x).chunk(3, 1)
    r_h, z_h, n_h = F.linear(h, w_h, b_h).chunk(3, 1)
    n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return n + (z_x + z_h).sigmoid() * (h - n)


def _rnn_cell(phi: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def step(x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, *biases: Tensor | None) -> Tensor:
        b_x, b_h = biases or (None, None)
        return phi(F.linear(x, w_x, b_x) + F.linear(h, w_h, b_h))

    return step


TAKEN_APART: dict[Any, Callable[..., Any]] = {
    **get_decompositions(
        [aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input]
    ),
    aten.bilinear.default: _bilinear,
    aten.lstm_cell.default: _lstm_cell,
    aten.gru_cell.default: _gru_cell,
    aten.rnn_tanh_cell.default: _rnn_cell(torch.tanh),
    aten.rnn_relu_cell.default: _rnn_cell(torch.relu),
}
"""Operations with weights that are written as matrix products: of recurrent layers, one step after
another, all with the same weights."""


@contextmanager
def quiet() -> Iterator[None]:
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


def export(net: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> ExportedProgram:
    """Export a network, for any number of samples.

    Args:
        net: The network, in evaluation mode.
        given: Inputs by position.
        named: Inputs by name.

    Returns:
        The program; recurrent layers are unrolled in it.

    Raises:
        InputError: If torch cannot read the network, or if it depends on the number of samples.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    # not parts of one tensor: their number would be checked against that tensor's
    given = tuple(x.clone() for x in given)
    named = {name: x.clone() for name, x in named.items()}
    every, shapes = [*given, *named.values()], ShapesCollection()
    for tensor in every:
        shapes[tensor] = {0: Dim.DYNAMIC}
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one operation of a whole attention layer
        with quiet():
            program = torch.export.export(
                net,
                given,
                named,
                dynamic_shapes=shapes,  # pyright: ignore[reportArgumentType]
                strict=False,
            )
            if _in_place(program) or _to_take_apart(program):
                program = program.run_decompositions(TAKEN_APART)
    except Exception as error:
        if "Constraints violated" in str(error):  # by the one dynamic size there is
            raise InputError(
                f"the network's forward fixes the batch size to {len(every[0])}: accepted is any "
                "size, as in x.flatten(1) or x.view(x.shape[0], -1), not len(x)"
            ) from error
        raise InputError(
            f"torch.export cannot read the network ({line(error)}): accepted is a forward "
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


def _to_take_apart(program: ExportedProgram) -> bool:
    return any(node.target in TAKEN_APART for node in program.graph.nodes)


def line(error: Exception) -> str:
    """Shorten another library's message.

    Args:
        error: The error.

    Returns:
        Its first sentence.
    """
    return re.split(r"\.\s|\n", str(error).strip() or type(error).__name__)[0].rstrip(".")
