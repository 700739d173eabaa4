"""Operations with weights: linear layers, convolutions and transposed convolutions."""

from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from simplicit.capture.affine import Affine
from simplicit.capture.found import Layers, module_path, shape_of_one
from simplicit.capture.rearrange import per_axis, permuted
from simplicit.equations.network import Term
from simplicit.equations.weighted_maps import Conv, ConvTranspose, Dense


def linear(layers: Layers, node: fx.Node, x: Any, weight: Any, bias: Tensor | None = None) -> Any:
    """Read a linear layer.

    Args:
        layers: The layers found so far.
        node: The operation.
        x: Its operand.
        weight: (outputs, inputs).
        bias: One number per output.

    Returns:
        Its result.
    """
    if not (isinstance(x, Affine) and isinstance(weight, Tensor) and weight.ndim == 2):
        return layers.keep(node, (x, weight, bias), {})
    return _dense(layers, node, x, weight, bias)


def _dense(
    layers: Layers, node: fx.Node, x: Affine, weight: Tensor, bias: Tensor | None = None
) -> Affine:
    layers.count(weight)
    positions = prod(x.shape[:-1])
    # two linear maps in a row: keep both, as a layer whose φ is the identity
    x = layers.settled(node, x, single=positions > 1)
    dense, (name, transposed) = Dense(weight, positions), layers.parameter(weight)
    # W applies to the constant, too, and moves what is in it
    offsets = [x.bias, *[None] * (len(x.summands) - 1)]
    terms = [
        Term(s.source, dense, _or_none(s.map), c, name, transposed)
        for s, c in zip(x.summands, offsets, strict=True)
    ]
    return Affine(
        (*x.shape[:-1], len(weight)),
        x.like,
        tuple(terms),
        bias=None if bias is None else dense.spread(bias),
        name=module_path(node) or node.name,
        adjust=adjustable(layers, bias),
    )


def _or_none(moved: Any) -> Any:
    return None if getattr(moved, "is_identity", False) else moved


def adjustable(layers: Layers, bias: Tensor | None) -> tuple[str, Tensor] | None:
    """Say which parameter moves a layer's bias.

    Args:
        layers: The layers found so far.
        bias: What is added, one number per channel.

    Returns:
        The parameter's name and how far the bias moves with it; None if it is no parameter.
    """
    name, _ = layers.parameter(bias)
    return None if bias is None or not name else (name, torch.ones_like(bias))


def matmul(layers: Layers, node: fx.Node, x: Any, weight: Any) -> Any:
    """Read a product with a matrix.

    Args:
        layers: The layers found so far.
        node: The operation.
        x: Its operand.
        weight: (inputs, outputs).

    Returns:
        Its result.
    """
    if not (isinstance(x, Affine) and isinstance(weight, Tensor) and weight.ndim == 2):
        return layers.keep(node, (x, weight), {})
    return linear(layers, node, x, weight.T)


def addmm(
    layers: Layers, node: fx.Node, bias: Any, x: Any, weight: Any, *, beta: Any = 1, alpha: Any = 1
) -> Any:
    """Read a product with a matrix to which a bias is added.

    Args:
        layers: The layers found so far.
        node: The operation.
        bias: One number per output.
        x: Its operand; its first axis may hold samples and positions.
        weight: (inputs, outputs).
        beta: Factor of the bias.
        alpha: Factor of the product.

    Returns:
        Its result.
    """
    plain = isinstance(bias, Tensor) and bias.ndim == 1 and (beta, alpha) == (1, 1)
    if not (plain and isinstance(x, Affine) and isinstance(weight, Tensor)):
        return layers.keep(node, (bias, x, weight), {"beta": beta, "alpha": alpha})
    return linear(layers, node, x, weight.T, bias)


def bmm(layers: Layers, node: fx.Node, x: Any, weight: Any) -> Any:
    """Read a product of stacks of matrices, of which the second may be one matrix.

    Args:
        layers: The layers found so far.
        node: The operation.
        x: Its operand.
        weight: (1, inputs, outputs), or another operand.

    Returns:
        Its result.
    """
    if not (isinstance(x, Affine) and isinstance(weight, Tensor) and len(weight) == 1):
        return layers.keep(node, (x, weight), {})
    return linear(layers, node, x, weight[0].T)


def einsum(
    layers: Layers, node: fx.Node, equation: str, operands: list[Any], **options: Any
) -> Any:
    """Read a sum of products with a matrix, which may be written with more axes.

    Args:
        layers: The layers found so far.
        node: The operation.
        equation: Names of the axes.
        operands: What is multiplied.
        **options: In which order, if there are several.

    Returns:
        Its result.
    """
    inputs, _, out = equation.replace(" ", "").partition("->")
    names = inputs.split(",")
    moving = [k for k, operand in enumerate(operands) if isinstance(operand, Affine)]
    once = all(len(set(name)) == len(name) for name in (*names, out))
    if not (len(operands) == 2 and len(moving) == 1 and once and out and "." not in equation):
        return layers.keep(node, (equation, operands), options)
    (x, of_x), (weight, of_w) = ((operands[k], names[k]) for k in (moving[0], 1 - moving[0]))
    summed = [k for k in of_x if k in of_w]
    rest, new = [k for k in of_x if k not in of_w], [k for k in of_w if k not in of_x]
    if not summed or set(summed) & set(out) or set(rest + new) != set(out):
        return layers.keep(node, (equation, operands), options)
    order = [of_w.index(k) for k in (*new, *summed)]
    matrix = weight.permute(order).flatten(len(new)).flatten(0, len(new) - 1)
    x = permuted(layers, node, x, [of_x.index(k) for k in (*rest, *summed)])
    x = x.reshaped((*x.shape[: len(rest)], matrix.shape[1]))
    y = _dense(layers, node, x, matrix)
    y = y.reshaped((*x.shape[:-1], *(weight.shape[of_w.index(k)] for k in new)))
    return permuted(layers, node, y, [(rest + new).index(k) for k in out])


def convolution(
    layers: Layers,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Read a convolution in one to three dimensions.

    Args:
        layers: The layers found so far.
        node: The operation.
        x: Its operand.
        weight: (channels, input channels / groups, *kernel).
        bias: One number per channel.
        stride: One number, or one per axis.
        padding: Likewise, or `same` or `valid`.
        dilation: Likewise.
        groups: Groups of channels.

    Returns:
        Its result.
    """
    if not _on_images(x, weight):
        return layers.keep(node, (x, weight, bias, stride, padding, dilation, groups), {})
    spatial = weight.ndim - 2
    dilation = per_axis(dilation, spatial)
    around = _around(padding, weight.shape[2:], dilation)
    conv = Conv(weight, x.shape[1:], per_axis(stride, spatial), around, dilation, groups)
    return _convolved(layers, node, x, conv, weight, bias)


def transposed_convolution(
    layers: Layers,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Read a transposed convolution in one to three dimensions.

    Args:
        layers: The layers found so far.
        node: The operation.
        x: Its operand.
        weight: (input channels, channels / groups, *kernel).
        bias: One number per channel.
        stride: One number, or one per axis.
        padding: Likewise.
        output_padding: Likewise.
        groups: Groups of channels.
        dilation: Likewise.

    Returns:
        Its result.
    """
    if not _on_images(x, weight):
        args = (x, weight, bias, stride, padding, output_padding, groups, dilation)
        return layers.keep(node, args, {})
    conv = ConvTranspose(
        layers.swapped(weight, groups),
        x.shape[1:],
        per_axis(stride, weight.ndim - 2),
        per_axis(padding, weight.ndim - 2),
        per_axis(output_padding, weight.ndim - 2),
        per_axis(dilation, weight.ndim - 2),
        groups,
    )
    return _convolved(layers, node, x, conv, weight, bias, transposed=True)


def any_convolution(
    layers: Layers,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    """Read `torch.convolution`, which is a convolution or a transposed one.

    Args:
        layers: The layers found so far.
        node: The operation.
        x: Its operand.
        weight: As for either.
        bias: One number per channel.
        stride: One number per axis, or one for all.
        padding: Likewise.
        dilation: Likewise.
        transposed: Which of the two it is.
        output_padding: Likewise; for a transposed one only.
        groups: Groups of channels.

    Returns:
        Its result.
    """
    if not _on_images(x, weight):
        args = (x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
        return layers.keep(node, args, {})
    if transposed:
        options = (stride, padding, output_padding, groups, dilation)
        return transposed_convolution(layers, node, x, weight, bias, *options)
    return convolution(layers, node, x, weight, bias, stride, padding, dilation, groups)


def _on_images(x: Any, weight: Any) -> bool:
    # weights that the network computes from its input are no constants, and the first axis of a
    # sample without a batch is its channels
    if not (isinstance(x, Affine) and isinstance(weight, Tensor)):
        return False
    return x.shape[0] == 1 and weight.ndim == len(x.shape)


def _convolved(
    layers: Layers,
    node: fx.Node,
    x: Affine,
    conv: Conv | ConvTranspose,
    weight: Tensor,
    bias: Tensor | None,
    transposed: bool = False,
) -> Affine:
    layers.count(weight)
    x = layers.settled(node, x, single=True)
    ((source, moved),) = x.fixed.items()
    # a view of a parameter in another order is no parameter of a convolution
    name, turned = layers.parameter(weight)
    name = "" if turned else name
    term = Term(source, conv, _or_none(moved), x.bias, name, transposed and bool(name))
    return Affine(
        shape_of_one(node),
        x.like,
        (term,),
        bias=None if bias is None else conv.spread(bias),
        name=module_path(node) or node.name,
        adjust=adjustable(layers, bias),
    )


def _around(
    padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        padding = 0
    if padding == "same":  # an odd zero goes behind
        sums = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((both // 2, both - both // 2) for both in sums)
    return tuple((p, p) for p in per_axis(padding, len(kernel)))
