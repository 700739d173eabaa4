"""A network with feedback as an ONNX graph: a Loop over x ← φ(Ax + Bu + b), then y = Cx + Du + d.

The tensors of the file are A, B, C, D, b, d. Each sample stops by the rule of `fixed_point`; it
then keeps its states while others go on. ONNX knows no errors, so the outputs of a sample that has
no equilibrium, or whose input is not finite, are NaN.
"""

from typing import Any

import numpy as np
from torch import Tensor

from simplicit.equations.network import StateEquations
from simplicit.equations.operators import BlockOperator, constants
from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Block
from simplicit.model.export.onnx_graph import input_names, output_names
from simplicit.system.extras import package

OPSET, FORMAT = 18, 9
"""Of ONNX: from 18 on, ReduceMax takes its axes as a tensor; runtimes of 2023 read both."""

TYPES = {"float32": "float", "float64": "double", "bool": "bool"}
"""Names of torch that ONNX has other names for."""

LOOP = """
c = Gemm <transB=1> (u, B, b)
no = Mul (u, zero)
nan_if_bad = ReduceSum <keepdims=1> (no, last)
zeros = Mul (c, zero)
r_0 = Add (nan_if_bad, infinity)
x, r = Loop (max_steps, yes, zeros, r_0) <body = step (
    int64 k, bool going, {real}[batch, n] s, {real}[batch, 1] before
) => (bool more, {real}[batch, n] next, {real}[batch, 1] now) {{
    z = Gemm <transB=1> (s, A, c)
    {phi}
    change = Sub (f, s)
    distances = Abs (change)
    distance = ReduceMax <keepdims=1> (distances, last)
    sizes = Abs (s)
    largest = ReduceMax <keepdims=1> (sizes, last)
    size = Max (largest, one)
    now = Div (distance, size)
    close = LessOrEqual (now, tol)
    far = Not (close)
    finite = Less (now, infinity)
    moves = And (far, finite)
    next = Where (moves, f, s)
    counted = Cast <to = 6> (moves)
    count = ReduceSum <keepdims=0> (counted)
    more = Cast <to = 9> (count)
}}>
Du = Gemm <transB=1> (u, D, d)
at_x = Gemm <transB=1> (x, C, Du)
solved = LessOrEqual (r, tol)
or_nan = Where (solved, at_x, nan)
y = Add (or_nan, nan_if_bad)
"""
"""A line for each step; the names are those of `fixed_point`. 6 is int32, 9 is bool."""


def looped(equations: StateEquations, tol: float, max_steps: int) -> Any:
    """Write a network with feedback.

    Args:
        equations: The network, of matrices and elementwise activations, on the processor.
        tol: Largest accepted residual.
        max_steps: Largest number of evaluations of φ(Ax + Bu + b).

    Returns:
        The `onnx.ModelProto`; the first axis of inputs and outputs has any length.
    """
    onnx = package("onnx")
    kind = equations.like.detach().numpy().dtype
    real = TYPES[kind.name]
    takes = [f"given_{k}" for k in range(len(equations.inputs))]
    public = [*input_names(equations), *output_names(equations)]
    gives = [f"returned_{k}" for k in range(len(public) - len(takes))]
    outputs = [] if equations.interface is None else equations.interface.outputs
    shapes = [output.shape for output in outputs] or [(equations.q,)]

    heads = zip(takes, equations.inputs, strict=True)
    given = ", ".join(_typed(TYPES.get(i.dtype, i.dtype) or real, n, i.shape) for n, i in heads)
    found = ", ".join(_typed(real, n, s) for n, s in zip(gives, shapes, strict=True))
    lines = [
        *_together(takes, real),
        LOOP.format(real=real, phi=" ".join(_phi(equations.blocks))),
        *_apart(equations, gives),
    ]
    header = f'<ir_version: {FORMAT}, opset_import: ["" : {OPSET}], producer_name: "simplicit">'
    text = f"{header} equilibrium ({given}) => ({found}) {{ {' '.join(lines)} }}"
    model = onnx.parser.parse_model(text)

    scalars = {"zero": 0.0, "one": 1.0, "half": 0.5, "six": 6.0, "infinity": np.inf, "nan": np.nan}
    scalars |= {"root_half": 0.5**0.5, "gelu_a": (2 / np.pi) ** 0.5, "gelu_b": 0.044715}
    scalars |= {"tol": tol, **_slopes(equations.blocks)}
    tensors = {name: np.array(value, kind) for name, value in scalars.items()}
    tensors |= {"yes": np.array(True), "max_steps": np.array(max_steps), "last": np.array([1])}
    tensors |= {f"shape_{name}": np.array([-1, *s]) for name, s in zip(gives, shapes, strict=True)}
    tensors["parts"] = np.array([part.size for part in outputs])
    tensors["layers"] = np.array([block.size for block in equations.blocks])
    tensors |= {name: _array(value) for name, value in _matrices(equations).items()}
    used = set(_names(model.graph))
    for name, value in tensors.items():
        if name in used:
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    # an input may be called x, as the states are here
    own = dict(zip([*takes, *gives], public, strict=True))
    _rename(model.graph, {name: f"{name}_" for name in public} | own)
    return model


def _typed(kind: str, name: str, shape: tuple[int, ...]) -> str:
    return f"{kind}[{', '.join(['batch', *map(str, shape)])}] {name}"


def _array(tensor: Tensor) -> Any:
    return tensor.detach().numpy()


# the matrices that models of the paper have, and zero for a bias that a model has not
def _matrices(equations: StateEquations) -> dict[str, Tensor]:
    found = {name: BlockOperator(equations, name).to_dense() for name in ("A", "B", "C", "D")}
    b, d = constants(equations)
    zero = equations.like.detach().new_zeros(1)
    return found | {"b": zero if b is None else b, "d": zero if d is None else d}


# all names that nodes read
def _names(graph: Any) -> list[str]:
    found = []
    for node in graph.node:
        found += node.input
        for attribute in node.attribute:
            found += _names(attribute.g)
    return found


def _rename(graph: Any, names: dict[str, str]) -> None:
    for node in graph.node:
        for part in (node.input, node.output):
            part[:] = [names.get(name, name) for name in part]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)


# u: the inputs as numbers, one after another
def _together(names: list[str], real: str) -> list[str]:
    to = {"float": 1, "double": 11}[real]
    lines = []
    for k, name in enumerate(names):
        lines += [f"number_{k} = Cast <to = {to}> ({name})"]
        lines += [f"flat_{k} = Flatten <axis = 1> (number_{k})"]
    flat = ", ".join(f"flat_{k}" for k in range(len(names)))
    return [*lines, f"u = Concat <axis = 1> ({flat})"]


# the outputs in y, as the network returns them
def _apart(equations: StateEquations, names: list[str]) -> list[str]:
    if equations.interface is None:
        return [f"{names[0]} = Identity (y)"]
    parts = [f"part_{k}" for k in range(len(names))]
    lines = [f"{', '.join(parts)} = Split <axis = 1> (y, parts)"]
    for part, name, output in zip(parts, names, equations.interface.outputs, strict=True):
        end = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "sigmoid": "Sigmoid"}
        function = end.get(output.end, "Identity")
        axis = "" if output.axis is None else f"<axis = {1 + output.axis}>"
        lines += [f"shaped_{part} = Reshape ({part}, shape_{name})"]
        lines += [f"{name} = {function} {axis} (shaped_{part})"]
    return lines


# f = φ(z), a part of z for each layer
def _phi(blocks: tuple[Block, ...]) -> list[str]:
    each = [f"z_{k}" for k in range(len(blocks))]
    ends = ", ".join(f"f_{k}" for k in range(len(blocks)))
    lines = [f"{', '.join(each)} = Split <axis = 1> (z, layers)"]
    for k, block in enumerate(blocks):
        lines += _activation(block.elementwise, f"{k}")
    return [*lines, f"f = Concat <axis = 1> ({ends})"]


def _slopes(blocks: tuple[Block, ...]) -> dict[str, float]:
    return {f"slope_{k}": block.elementwise.slope for k, block in enumerate(blocks)}


# written with operators that runtimes have in float64, too
def _activation(phi: Phi, k: str) -> list[str]:
    z, f = f"z_{k}", f"f_{k}"
    match phi.name:
        case "relu":
            return [f"{f} = Relu ({z})"]
        case "leaky_relu":
            return [
                f"low_{k} = Mul ({z}, slope_{k})",
                f"positive_{k} = Less (zero, {z})",
                f"{f} = Where (positive_{k}, {z}, low_{k})",
            ]
        case "relu6":
            return [f"{f} = Clip ({z}, zero, six)"]
        case "tanh":
            return [f"{f} = Tanh ({z})"]
        case "sigmoid":
            return [f"{f} = Sigmoid ({z})"]
        case "silu":
            return [f"gate_{k} = Sigmoid ({z})", f"{f} = Mul ({z}, gate_{k})"]
        case "gelu":
            return [
                f"scaled_{k} = Mul ({z}, root_half)",
                f"bent_{k} = Erf (scaled_{k})",
                *_gated(k),
            ]
        case "gelu_tanh":
            return [
                f"square_{k} = Mul ({z}, {z})",
                f"part_{k} = Mul (square_{k}, gelu_b)",
                f"factor_{k} = Add (part_{k}, one)",
                f"inner_{k} = Mul ({z}, factor_{k})",
                f"scaled_{k} = Mul (inner_{k}, gelu_a)",
                f"bent_{k} = Tanh (scaled_{k})",
                *_gated(k),
            ]
        case "identity":
            return [f"{f} = Identity ({z})"]


# z (1 + bent) / 2
def _gated(k: str) -> list[str]:
    return [
        f"above_{k} = Add (bent_{k}, one)",
        f"gate_{k} = Mul (above_{k}, half)",
        f"f_{k} = Mul (z_{k}, gate_{k})",
    ]
