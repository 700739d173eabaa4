"""What each ATen operation does to an affine map of states; `OPERATIONS` is the list.

To read one more kind of network, add its operation here. Every function gets the layers found so
far, the node and the node's operands: `Affine` for what depends on the input, tensors and numbers
for what does not.
"""

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from .affine import Affine, as_matrix
from .equations import Equation, Term
from .errors import InputError
from .phi import Phi, PhiName

ACCEPTED = (
    "Linear, BatchNorm in evaluation mode, ReLU, LeakyReLU, tanh, sigmoid, "
    "sums, constant factors and reshapes of each sample"
)


class Layers:
    """The hidden equations found so far, in forward order, and the weights they are made of."""

    def __init__(self) -> None:
        self.hidden: list[Equation] = []
        self._uses: dict[str, int] = {}
        self._counts: dict[tuple[int, int], int] = {}

    @property
    def nonzeros(self) -> int:
        """Non-zero weights; a weight used several times, transposed or not, counts once."""
        return sum(self._counts.values())

    def count(self, weight: Tensor) -> None:
        """Count a weight's non-zeros, unless it was counted before.

        Args:
            weight: The matrix of a linear map, as the network stores it.
        """
        self._counts[weight.data_ptr(), weight.numel()] = int(weight.count_nonzero())

    def equation(self, node: fx.Node, value: Affine, phi: Phi) -> Equation:
        """Write a value down as an equation.

        Args:
            node: The operation it ends with; names the equation if no linear map does.
            value: The pre-activation.
            phi: φ.

        Returns:
            The equation.
        """
        name = value.name or module_path(node) or node.name
        uses = self._uses[name] = self._uses.get(name, 0) + 1
        terms = tuple(Term(source, as_matrix(M)) for source, M in sorted(value.maps.items()))
        unique = name if uses == 1 else f"{name}@{uses - 1}"  # as torch.export writes reuse
        return Equation(unique, terms, value.bias, phi)

    def state(self, node: fx.Node, value: Affine, phi: Phi) -> Affine:
        """Make φ(value) the next hidden layer.

        Args:
            node: The operation it ends with.
            value: The pre-activation.
            phi: φ.

        Returns:
            The layer's state, as a value.
        """
        self.hidden.append(self.equation(node, value, phi))
        return Affine.of_source(len(self.hidden) - 1, value.constant)


def module_path(node: fx.Node) -> str:
    """Find the module an operation belongs to.

    Args:
        node: The operation.

    Returns:
        The module's path, empty for the network itself.
    """
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def refuse(node: fx.Node, reason: str) -> NoReturn:
    """Say which operation of which module cannot be captured.

    Args:
        node: The operation.
        reason: Why, and what is accepted.

    Raises:
        InputError: Always.
    """
    operation = getattr(node.target, "__name__", str(node.target)).split(".")[0].strip("_")
    where = f"module {module_path(node)!r}" if module_path(node) else "the network's forward"
    raise InputError(f"{where}: {operation} {reason}")


def sample_shape(node: fx.Node) -> tuple[int, ...]:
    """Look up the shape of one sample of an operation's result.

    Args:
        node: The operation.

    Returns:
        The shape without the batch, which is the first dimension.
    """
    value = node.meta["val"]
    shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
    if not shape or isinstance(shape[0], int) or not all(isinstance(k, int) for k in shape[1:]):
        refuse(node, "mixes samples; accepted: operations on each sample by itself")
    return tuple(shape[1:])


def _vector(node: fx.Node, operand: Any, like: Affine) -> Tensor:
    # a constant operand, broadcast to one sample: one number per entry of `like`
    if not isinstance(operand, (Tensor, int, float)):
        refuse(
            node, "with a value computed from the input or its size; accepted: a constant operand"
        )
    constant = torch.as_tensor(operand).to(like.constant)
    entries = constant.broadcast_to((1, *sample_shape(node))).reshape(-1)
    if entries.shape != like.constant.shape:
        refuse(node, "broadcasts the input's values; accepted: operands of the result's shape")
    return entries


def _linear(
    layers: Layers, node: fx.Node, x: Any, weight: Any, bias: Tensor | None = None
) -> Affine:
    if not (isinstance(x, Affine) and isinstance(weight, Tensor)):
        refuse(node, "with a weight computed from the input; accepted: a constant weight")
    if weight.ndim != 2 or x.constant.shape[0] != weight.shape[1]:
        refuse(node, "along one of several dimensions; accepted: flattened samples")
    layers.count(weight)
    if x.has_matrix:  # two linear maps in a row: keep both, as a layer whose φ is the identity
        x = layers.state(node, x, Phi("identity"))
    maps = {source: weight * diagonal for source, diagonal in x.maps.items()}
    product = Affine(maps, bias, module_path(node) or node.name)
    return product if x.bias is None else product.shifted(weight @ x.bias)


def _matmul(layers: Layers, node: fx.Node, x: Any, weight: Any) -> Affine:
    return _linear(layers, node, x, weight.T if isinstance(weight, Tensor) else weight)


def _add(layers: Layers, node: fx.Node, x: Any, y: Any, alpha: float = 1.0) -> Affine:
    if not isinstance(x, Affine):
        return y.scaled(alpha).shifted(_vector(node, x, y))
    if not isinstance(y, Affine):
        return x.shifted(alpha * _vector(node, y, x))
    if x.constant.shape != y.constant.shape:
        refuse(node, "broadcasts the input's values; accepted: summands of one shape")
    return x.plus(y.scaled(alpha))


def _sub(layers: Layers, node: fx.Node, x: Any, y: Any, alpha: float = 1.0) -> Affine:
    return _add(layers, node, x, y, -alpha)


def _mul(layers: Layers, node: fx.Node, x: Any, y: Any) -> Affine:
    value, factor = (x, y) if isinstance(x, Affine) else (y, x)
    return value.scaled(_vector(node, factor, value))


def _div(layers: Layers, node: fx.Node, x: Any, y: Any) -> Affine:
    if not isinstance(x, Affine):
        refuse(node, "by a value computed from the input; accepted: a constant divisor")
    return x.scaled(1 / _vector(node, y, x))


def _batch_norm(
    layers: Layers,
    node: fx.Node,
    x: Affine,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> Affine:
    gain = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * gain
    channels = (-1, *[1] * (len(sample_shape(node)) - 1))
    factor, constant = (_vector(node, v.reshape(channels), x) for v in (gain, shift))
    return x.scaled(factor).shifted(constant)


def _phi(name: PhiName) -> Callable[..., Affine]:
    def handle(layers: Layers, node: fx.Node, z: Affine, *slope: float) -> Affine:
        return layers.state(node, z, Phi(name, *slope))

    return handle


def _same(layers: Layers, node: fx.Node, x: Affine, *ignored: Any, **options: Any) -> Affine:
    return x  # entries of a sample stay in their order


aten = torch.ops.aten

OPERATIONS: dict[Any, Callable[..., Affine]] = {
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.mul.Tensor: _mul,
    aten.div.Tensor: _div,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    operator.getitem: _same,  # of batch norm, whose other results have no use in evaluation
    aten.relu.default: _phi("relu"),
    aten.leaky_relu.default: _phi("leaky_relu"),
    aten.tanh.default: _phi("tanh"),
    aten.sigmoid.default: _phi("sigmoid"),
    aten.view.default: _same,
    aten.reshape.default: _same,
    aten._unsafe_view.default: _same,
    aten.flatten.using_ints: _same,
    aten.squeeze.dim: _same,
    aten.squeeze.dims: _same,
    aten.unsqueeze.default: _same,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten._to_copy.default: _same,
}

LOGITS = "is not accepted: return the logits before it"

HINTS: dict[Any, str] = {
    aten.softmax.int: LOGITS,
    aten._softmax.default: LOGITS,
    aten.log_softmax.int: LOGITS,
    aten._log_softmax.default: LOGITS,
}
"""What to say of operations that are refused with more than the list of accepted ones."""
