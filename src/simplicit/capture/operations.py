"""What each ATen operation does to an affine map of states; `OPERATIONS` is the list.

To read one more kind of network, add its operation here; one that is not here is kept as it is.
Every function gets the layers found so far, the node and the node's operands: `Affine` for what
depends on the input, tensors and numbers for what does not, all in a batch of one sample.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from simplicit.capture.affine import Affine
from simplicit.capture.found import Layers, refuse, shape_of_one
from simplicit.capture.rearrange import (
    adaptive_average_pool,
    average_pool,
    broadcast,
    max_pool,
    move,
    reduction,
)
from simplicit.capture.weighted import (
    addmm,
    adjustable,
    any_convolution,
    bmm,
    convolution,
    einsum,
    linear,
    matmul,
    transposed_convolution,
)
from simplicit.equations.phi import Phi, PhiName


def _vector(node: fx.Node, operand: Any, like: Affine) -> Tensor:
    # a constant operand, broadcast to one sample: one number per entry of the result
    constant = torch.as_tensor(operand).to(like.like)
    return constant.broadcast_to(shape_of_one(node)).reshape(-1)


def _add(layers: Layers, node: fx.Node, x: Any, y: Any, alpha: float = 1.0) -> Any:
    if not isinstance(x, Affine):
        return _shifted(layers, node, _times(layers, node, y, alpha), x)
    if not isinstance(y, Affine):
        return _shifted(layers, node, x, y, alpha)
    shape = shape_of_one(node)
    x, y = (broadcast(layers, node, value, shape) for value in (x, y))
    return x.plus(_times(layers, node, y, alpha))


def _shifted(layers: Layers, node: fx.Node, x: Affine, y: Any, alpha: float = 1.0) -> Affine:
    x = broadcast(layers, node, x, shape_of_one(node))
    return x.shifted(alpha * _vector(node, y, x))


def _times(layers: Layers, node: fx.Node, x: Affine, factor: Any) -> Affine:
    if not isinstance(factor, Tensor) and factor == 1:
        return x
    x = broadcast(layers, node, x, shape_of_one(node))
    factor = _vector(node, factor, x)
    if x.by_channel(factor) is None:
        x = layers.settled(node, x)
    return x.scaled(factor)


def _sub(layers: Layers, node: fx.Node, x: Any, y: Any, alpha: float = 1.0) -> Any:
    return _add(layers, node, x, y, -alpha)


def _rsub(layers: Layers, node: fx.Node, x: Any, y: Any, alpha: float = 1.0) -> Any:
    return _add(layers, node, y, x, -alpha)


def _neg(layers: Layers, node: fx.Node, x: Affine) -> Affine:
    return _times(layers, node, x, -1.0)


def _mul(layers: Layers, node: fx.Node, x: Any, y: Any) -> Any:
    if isinstance(x, Affine) and isinstance(y, Affine):
        return layers.keep(node, (x, y), {})
    return _times(layers, node, x, y) if isinstance(x, Affine) else _times(layers, node, y, x)


def _div(layers: Layers, node: fx.Node, x: Any, y: Any) -> Any:
    if isinstance(y, Affine):
        return layers.keep(node, (x, y), {})
    return _times(layers, node, x, 1 / torch.as_tensor(y).to(x.like))


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
) -> Any:
    channels = (-1, *[1] * (len(x.shape) - 2))
    gain = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * gain
    y = _times(layers, node, x, gain.reshape(channels))
    y = _shifted(layers, node, y, shift.reshape(channels))
    if bias is not None and y.terms:
        # from here on, this is the bias that can be moved
        y = y.adjusted_by(adjustable(layers, bias))
    return [y]


def _any_batch_norm(
    layers: Layers,
    node: fx.Node,
    x: Affine,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    _cudnn: bool,
) -> Any:
    if training or mean is None or variance is None:
        refuse(node, TRAINING)
    return _batch_norm(layers, node, x, weight, bias, mean, variance, momentum, eps)[0]


def _dropout(layers: Layers, node: fx.Node, x: Affine, p: float, train: bool) -> Affine:
    return x


def _phi(name: PhiName) -> Callable[..., Affine]:
    def handle(layers: Layers, node: fx.Node, z: Affine, *slope: float) -> Affine:
        return layers.state(node, z, Phi(name, *slope))

    return handle


def _hardtanh(
    layers: Layers, node: fx.Node, z: Affine, low: float = -1.0, high: float = 1.0
) -> Any:
    if (low, high) == (0, 6):
        return layers.state(node, z, Phi("relu6"))
    return layers.keep(node, (z, low, high), {})


def _gelu(layers: Layers, node: fx.Node, z: Affine, approximate: str = "none") -> Affine:
    return layers.state(node, z, Phi("gelu_tanh" if approximate == "tanh" else "gelu"))


def _same(layers: Layers, node: fx.Node, x: Affine, *ignored: Any, **options: Any) -> Affine:
    return x.reshaped(shape_of_one(node))  # entries of a sample stay in their order


def _item(layers: Layers, node: fx.Node, x: Any, index: int) -> Any:
    return x[index]


aten = torch.ops.aten

DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
"""Operations that are random in training, and change nothing in evaluation mode."""

TRAINING = "uses statistics of the batch; accepted: BatchNorm in evaluation mode"

OPERATIONS: dict[Any, Callable[..., Any]] = {
    aten.linear.default: linear,
    aten.matmul.default: matmul,
    aten.mm.default: matmul,
    aten.addmm.default: addmm,
    aten.bmm.default: bmm,
    aten.einsum.default: einsum,
    aten.conv1d.default: convolution,
    aten.conv1d.padding: convolution,
    aten.conv2d.default: convolution,
    aten.conv2d.padding: convolution,
    aten.conv3d.default: convolution,
    aten.conv3d.padding: convolution,
    aten.convolution.default: any_convolution,
    aten.conv_transpose1d.default: transposed_convolution,
    aten.conv_transpose2d.input: transposed_convolution,
    aten.conv_transpose3d.input: transposed_convolution,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.rsub.Scalar: _rsub,
    aten.neg.default: _neg,
    aten.mul.Tensor: _mul,
    aten.div.Tensor: _div,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.batch_norm.default: _any_batch_norm,
    **{getattr(aten, name).default: _dropout for name in DROPOUTS},
    operator.getitem: _item,
    aten.relu.default: _phi("relu"),
    aten.leaky_relu.default: _phi("leaky_relu"),
    aten.hardtanh.default: _hardtanh,
    aten.relu6.default: _phi("relu6"),
    aten.tanh.default: _phi("tanh"),
    aten.sigmoid.default: _phi("sigmoid"),
    aten.silu.default: _phi("silu"),
    aten.gelu.default: _gelu,
    aten.max_pool1d.default: max_pool,
    aten.max_pool2d.default: max_pool,
    aten.max_pool2d_with_indices.default: max_pool,
    aten.avg_pool1d.default: average_pool,
    aten.avg_pool2d.default: average_pool,
    aten.adaptive_avg_pool1d.default: adaptive_average_pool,
    aten.adaptive_avg_pool2d.default: adaptive_average_pool,
    aten._adaptive_avg_pool2d.default: adaptive_average_pool,
    aten.mean.dim: reduction(total=False),
    aten.mean.default: reduction(total=False),
    aten.sum.dim_IntList: reduction(total=True),
    aten.sum.default: reduction(total=True),
}
"""What is read. Operations of `SAME` and `MOVES` are read, too; all others are kept."""

SAME = (
    "view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int "
    "squeeze.default squeeze.dim squeeze.dims unsqueeze.default clone.default alias.default "
    "detach.default contiguous.default lift_fresh_copy.default _to_copy.default to.dtype to.device "
    "to.dtype_layout to.other type_as.default"
)
"""They leave the entries of a sample in their order."""

MOVES = (
    "permute.default transpose.int t.default movedim.int slice.Tensor select.int narrow.default "
    "cat.default stack.default split.Tensor split_with_sizes.default chunk.default unbind.int "
    "expand.default repeat.default repeat_interleave.self_int pad.default constant_pad_nd.default "
    "reflection_pad1d.default reflection_pad2d.default replication_pad1d.default "
    "replication_pad2d.default index_select.default index.Tensor flip.default roll.default "
    "pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default unfold.default "
    "im2col.default upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest2d.default"
)
"""They move them, repeat them, or put constants between them."""


CASTS = {
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
}
"""They change the dtype, or nothing."""

FILLED = "new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like"
"""They take no entries of a sample, only its shape and dtype."""


def _table(names: str, handle: Callable[..., Any]) -> dict[Any, Callable[..., Any]]:
    found = {}
    for name in names.split():
        operation, overload = name.split(".")
        packet = getattr(aten, operation, None)  # not every release has every one
        if packet is not None and overload in packet.overloads():
            found[getattr(packet, overload)] = handle
    return found


CONSTANT = {getattr(aten, name).default for name in FILLED.split()}
MOVED = _table(SAME, _same) | _table(MOVES, move)
OPERATIONS |= MOVED

HINTS: dict[Any, str] = {
    getattr(aten, packet): TRAINING
    for packet in (
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_functional",
        "native_batch_norm",
        "instance_norm",
    )
}
"""What to say of operations that are refused, whichever overload they are."""
