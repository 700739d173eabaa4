"""Operations that are kept as they are, but work on parts of their operands one by one.

The heads of an attention are such parts, and single entries where an operation goes entry by entry.
A part can go, and the operation is left with the others.
"""

from dataclasses import replace
from math import prod

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from simplicit.equations.layer_phi import Kept

MATRICES = {"scaled_dot_product_attention", "matmul", "bmm"}
"""They work on the last two axes of their operands."""

SOFTMAX = {"softmax", "log_softmax"}
"""They work along one axis, their second argument."""

ENTRIES = {
    "mul", "div", "maximum", "minimum", "hardswish", "hardsigmoid", "hardtanh", "mish", "elu",
    "softplus", "exp", "log", "sqrt", "rsqrt", "abs", "neg", "square",
}  # fmt: skip
"""They go entry by entry."""


def axes(phi: Kept) -> int | None:
    """Count the leading axes along which an operation works on parts one by one.

    Args:
        phi: The operation.

    Returns:
        Their number; None where nothing is known, or operands differ there.
    """
    shape, like = phi.output_shape, [*phi.operands, phi.output_shape]
    if phi.output is not None or not phi.operands:
        return None
    if phi.name in ENTRIES:
        alone = not phi.constants or all(c.numel() == 1 for c in phi.constants)
        return len(shape) if alone and all(own == shape for own in like) else None
    if phi.name in MATRICES:
        count = len(shape) - 2
    elif phi.name in SOFTMAX and isinstance(phi.arguments[1], int):
        count = phi.arguments[1] % len(shape)
    else:
        return None
    same = all(len(own) == len(shape) and own[:count] == shape[:count] for own in like)
    for constant in phi.constants:  # one for all parts
        lead = len(shape) - count
        same &= constant.ndim <= lead or prod(constant.shape[:-lead]) == 1
    return count if same and count > 0 else None


def parts_of(phi: Kept) -> tuple[Int[Tensor, "_"], Int[Tensor, "_"]] | None:
    """Number the parts.

    Args:
        phi: The operation.

    Returns:
        The part of each entry of z, operand by operand, and of each result; None without parts.
    """
    if (count := axes(phi)) is None:
        return None
    number = torch.arange(prod(phi.output_shape[:count]))
    read = [number.repeat_interleave(prod(shape[count:])) for shape in phi.operands]
    return torch.cat(read), number.repeat_interleave(prod(phi.output_shape[count:]))


def with_parts(phi: Kept, left: Bool[Tensor, "_"]) -> Kept:
    """Leave some parts out.

    Args:
        phi: An operation that has parts.
        left: Which entries of z are left: those of whole parts.

    Returns:
        The operation on the others.
    """
    count = axes(phi)
    if count is None or bool(left.all()):
        return phi
    size = prod(phi.operands[0])
    parts = left[:size].view(-1, prod(phi.operands[0][count:]))[:, 0]
    lead = (*[1] * (count - 1), int(parts.sum()))
    return replace(
        phi,
        operands=tuple((*lead, *shape[count:]) for shape in phi.operands),
        output_shape=(*lead, *phi.output_shape[count:]),
    )
