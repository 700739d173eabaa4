"""Operations that move the entries of a sample, and pooling.

What a movement does is read off an image of indices: 1, 2, 3, … in the operand's shape goes through
the operation itself, and whatever comes out says where each entry is from. Zeros are nothing's.
"""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from simplicit.capture.affine import Affine
from simplicit.capture.found import Layers, shape_of_one
from simplicit.equations.compose import averages, by_axis
from simplicit.equations.layer_phi import MaxPool
from simplicit.equations.weighted_maps import Gather, Sparse


def move(layers: Layers, node: fx.Node, *args: Any, **options: Any) -> Any:
    """Read any operation that only moves entries, repeats them or puts constants between them.

    Args:
        layers: The layers found so far.
        node: The operation.
        *args: Its arguments.
        **options: Its options.

    Returns:
        Its result, or a list of them.
    """
    if any(isinstance(leaf, Affine) for leaf in pytree.tree_leaves(_indices(node, args, options))):
        return layers.keep(node, args, options)  # places that depend on the input
    leaves, tree = pytree.tree_flatten((args, options))
    operands = [leaf for leaf in leaves if isinstance(leaf, Affine)]
    starts = [1]
    for operand in operands:
        starts.append(starts[-1] + operand.size)

    def applied(numbered: bool, constants: bool) -> list[Tensor]:
        begins, filled = iter(starts), []
        for leaf in leaves:
            if isinstance(leaf, Affine):
                image = torch.arange(leaf.size, dtype=torch.float64) + next(begins)
                filled.append((image if numbered else 0 * image).reshape(leaf.shape))
            elif isinstance(leaf, Tensor) and leaf.is_floating_point():
                filled.append(leaf.cpu().double() if constants else torch.zeros_like(leaf.cpu()))
            else:
                filled.append(leaf.cpu() if isinstance(leaf, Tensor) else leaf)
        inner, keywords = pytree.tree_unflatten(filled, tree)
        assert callable(node.target)
        result = node.target(*inner, **keywords)
        return [result] if isinstance(result, Tensor) else list(result)

    background = applied(False, False)
    pairs = zip(applied(True, False), background, applied(False, True), strict=True)
    moved = []
    for output, (image, empty, constant) in enumerate(pairs):
        index = (image.double() - empty).reshape(-1).round().long() - 1
        shape = shape_of_one(node, output)
        moved.append(_value(layers, node, operands, index, shape, constant.reshape(-1)))
    return moved[0] if isinstance(node.meta["val"], Tensor) else moved


def _indices(node: fx.Node, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return (args[1:], options) if "index" in str(node.target) else ()


def _value(
    layers: Layers,
    node: fx.Node,
    operands: list[Affine],
    index: Tensor,
    shape: tuple[int, ...],
    constant: Tensor,
) -> Affine:
    first = operands[0]
    if len(operands) == 1 and torch.equal(index, torch.arange(first.size)):
        return first.reshaped(shape)
    total, start = None, 0
    for position, operand in enumerate(operands):
        # a value that was used before, in the same operation, is a layer by now
        where = next(k for k, o in enumerate(operands) if o is operand)
        if where == position and operand.terms:
            settled = layers.settled(node, operand)
            operands[:] = [settled if o is operand else o for o in operands]
            operand = settled
        local = index - start
        local = torch.where((local >= 0) & (local < operand.size), local, -1)
        start += operand.size
        part = operand.mapped(Gather(local.to(operand.like.device), operand.size), shape)
        total = part if total is None else total.plus(part)
    assert total is not None
    return total.shifted(constant.to(total.like)) if constant.any() else total


def permuted(layers: Layers, node: fx.Node, value: Affine, order: list[int]) -> Affine:
    """Exchange dimensions.

    Args:
        layers: The layers found so far.
        node: The operation that does so.
        value: The value.
        order: Of its dimensions.

    Returns:
        The value with them in that order.
    """
    if order == sorted(order):
        return value
    return _indexed(layers, node, value, lambda image: image.permute(order))


def _indexed(
    layers: Layers, node: fx.Node, value: Affine, change: Callable[[Tensor], Tensor]
) -> Affine:
    value = layers.settled(node, value)
    index = change(torch.arange(value.size, device=value.like.device).reshape(value.shape))
    return value.mapped(Gather(index.flatten(), value.size), tuple(index.shape))


def broadcast(layers: Layers, node: fx.Node, value: Affine, shape: tuple[int, ...]) -> Affine:
    """Repeat a value's entries along dimensions where it has one.

    Args:
        layers: The layers found so far.
        node: The operation that does so.
        value: The value.
        shape: Of the result.

    Returns:
        The value of that shape.
    """
    if value.shape == shape:
        return value
    if prod(shape) == value.size:
        return value.reshaped(shape)
    return _indexed(layers, node, value, lambda image: image.broadcast_to(shape))


def reduction(total: bool) -> Callable[..., Affine]:
    """Read a mean or a sum over some dimensions; all if none are named.

    Args:
        total: Whether it is the sum.

    Returns:
        What reads the operation. It ignores a change of dtype, which is noticed by whoever reads
        the result.
    """

    def handle(
        layers: Layers, node: fx.Node, x: Affine, dims: Any = None, *ignored: Any, **options: Any
    ) -> Affine:
        x = layers.settled(node, x)
        dims = list(range(len(x.shape))) if not dims and dims != 0 else dims
        dims = [dims] if isinstance(dims, int) else list(dims)
        image = torch.arange(x.size).reshape(x.shape)
        last = list(range(len(x.shape) - len(dims), len(x.shape)))
        k = prod(x.shape[d] for d in dims)
        groups = image.movedim(dims, last).reshape(-1, k)
        linear = averages(groups, x.size, x.like)
        ordered = sorted(d % len(x.shape) for d in dims) == last and last[0] > 0
        linear = replace(linear, value=linear.value * k) if total else linear
        linear = replace(linear, means=ordered and not total)
        return x.mapped(linear, shape_of_one(node))

    return handle


def average_pool(
    layers: Layers,
    node: fx.Node,
    x: Affine,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: list[int] | int = 0,
    ceil: bool = False,
    include: bool = True,
    divisor: int | None = None,
) -> Any:
    """Read average pooling; the average of a window is one along each axis.

    Args:
        layers: The layers found so far.
        node: The operation.
        x: Its operand.
        kernel: Size of a window.
        stride: Steps between windows; the kernel by default.
        padding: Zeros around the image.
        ceil: Whether a last window may reach over the edge.
        include: Whether those zeros count.
        divisor: What sums are divided by instead.

    Returns:
        Its result.
    """
    n = len(kernel)
    if divisor is not None:
        return layers.keep(node, (x, kernel, stride, padding, ceil, include, divisor), {})
    sizes = zip(kernel, per_axis(stride or kernel, n), per_axis(padding, n), strict=True)

    def along(k: int, s: int, p: int) -> Callable[[Tensor], Tensor]:
        return lambda unit: F.avg_pool1d(unit[:, None], k, s, p, ceil, include)[:, 0]

    x = layers.settled(node, x)
    linear = by_axis(x.shape, [along(*some) for some in sizes], x.like)
    return x.mapped(linear, shape_of_one(node))


def adaptive_average_pool(layers: Layers, node: fx.Node, x: Affine, size: Any) -> Affine:
    """Read average pooling to a given size.

    Args:
        layers: The layers found so far.
        node: The operation.
        x: Its operand.
        size: Of the result, per axis.

    Returns:
        Its result.
    """

    def along(n: int) -> Callable[[Tensor], Tensor]:
        return lambda unit: F.adaptive_avg_pool1d(unit[:, None], n)[:, 0]

    x = layers.settled(node, x)
    linear = by_axis(x.shape, [along(n) for n in size], x.like)
    if isinstance(linear, Sparse) and set(size) == {1}:
        linear = replace(linear, means=True)
    return x.mapped(linear, shape_of_one(node))


def max_pool(
    layers: Layers,
    node: fx.Node,
    x: Affine,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: list[int] | int = 0,
    dilation: list[int] | int = 1,
    ceil: bool = False,
) -> Any:
    """Read max-pooling: the φ of a layer.

    Args:
        layers: The layers found so far.
        node: The operation.
        x: Its operand.
        kernel: Size of a window.
        stride: Steps between windows; the kernel by default.
        padding: Entries of −∞ around the image.
        dilation: Steps between the entries of a window.
        ceil: Whether a last window may reach over the edge.

    Returns:
        Its result, in a list if the indices are another.
    """
    n = len(kernel)
    if x.shape[0] != 1 or len(x.shape) != n + 2:
        return layers.keep(node, (x, kernel, stride, padding, dilation, ceil), {})
    kernels, strides = per_axis(kernel, n), per_axis(stride or kernel, n)
    around, steps = per_axis(padding, n), per_axis(dilation, n)
    phi = MaxPool(x.shape[1:], kernels, strides, around, steps, bool(ceil))
    state = layers.state(node, x, phi, (1, *phi.output_shape))
    return state if isinstance(node.meta["val"], Tensor) else [state]


def per_axis(some: list[int] | tuple[int, ...] | int, axes: int) -> tuple[int, ...]:
    """Write an option that may be one number for all axes.

    Args:
        some: A number, or a list of one or of one per axis.
        axes: Number of axes.

    Returns:
        One number per axis.
    """
    numbers = [some] if isinstance(some, int) else list(some)
    return tuple(numbers * axes if len(numbers) == 1 else numbers)
