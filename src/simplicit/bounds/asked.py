"""What `certify` is asked: samples, classes, radii and bounds in any form, checked."""

from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.equations.equation import Equation
from simplicit.equations.weighted_maps import Gather
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel


def _tensor(name: str, value: Any, dtype: torch.dtype | None = None) -> Tensor:
    try:
        return torch.as_tensor(value, dtype=dtype).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is a {type(value).__name__}: accepted are numbers") from None


def samples(x: Any) -> Float[Tensor, "m *shape"]:
    """Check samples.

    Args:
        x: A tensor or an array.

    Returns:
        The samples, on the CPU.

    Raises:
        InputError: If they are none, or not finite.
    """
    found = _tensor("x", x)
    if not found.is_floating_point() or found.ndim < 2:
        raise InputError(
            f"x of shape {tuple(found.shape)}, {found.dtype}: accepted are samples (m, …) of "
            "floating-point numbers"
        )
    if not found.isfinite().all():
        raise InputError("x holds NaN or infinity: accepted are finite samples")
    return found


def classes(y: Any, m: int, q: int) -> Int[Tensor, " m"]:
    """Check classes.

    Args:
        y: Classes (m,) or (m, 1), or one-hot (m, q).
        m: Samples.
        q: How many classes there are.

    Returns:
        The classes.

    Raises:
        InputError: If they are something else.
    """
    found = _tensor("y", y)
    hot = found.ndim == 2 and found.shape[1] == q > 1
    if hot and bool(((found == 0) | (found == 1)).all()) and bool((found.sum(1) == 1).all()):
        found = found.argmax(1)
    elif found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.shape != (m,):
        raise InputError(
            f"y of shape {tuple(found.shape)} for {m} samples: accepted is one class per sample, "
            f"({m},), or one-hot ({m}, {q})"
        )
    if found.is_floating_point() and not bool((found == found.round()).all()):
        raise InputError("y has fractions: accepted are classes, whole numbers")
    found = found.long()
    if m and not (0 <= int(found.min()) and int(found.max()) < q):
        raise InputError(f"y: accepted are classes from 0 to {q - 1}")
    return found


def radii(eps: Any, m: int) -> Float[Tensor, " m"]:
    """Check radii.

    Args:
        eps: One for all samples, or one for each.
        m: Samples.

    Returns:
        One for each, float64.

    Raises:
        InputError: If they are negative, not finite, or of another number.
    """
    found = _tensor("eps", eps, torch.float64)
    found = found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
    if found.shape not in ((), (1,), (m,)):
        raise InputError(
            f"eps of shape {tuple(found.shape)} for {m} samples: accepted is one radius, or one "
            "for each sample"
        )
    if not bool(((found >= 0) & found.isfinite()).all()):
        raise InputError(f"eps={eps}: accepted is a finite number, at least 0")
    return found.expand(m)


def within(
    bounds: Any, u: Float[Tensor, "m p"], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor] | None:
    """Check bounds of the inputs.

    Args:
        bounds: Least and largest value, or one of each per input; None for none.
        u: Samples, flattened.
        shape: Of a sample.

    Returns:
        Both, as they broadcast over u.

    Raises:
        InputError: If they are no such pair, or samples are outside.
    """
    if bounds is None:
        return None
    try:
        low, high = bounds
    except (TypeError, ValueError):
        raise InputError(f"bounds={bounds}: accepted are two, the least and the largest") from None
    pair = []
    for bound in (_tensor("bounds", b, torch.float64) for b in (low, high)):
        try:
            every = bound.broadcast_to(shape) if bound.ndim else bound
        except RuntimeError:
            raise InputError(
                f"bounds of shape {tuple(bound.shape)}: accepted are two numbers, or two tensors "
                f"of shape {shape}"
            ) from None
        pair.append(every.reshape(prod(shape)) if bound.ndim else every)
    if len(u) and not bool(((pair[0] <= u) & (u <= pair[1])).all()):
        raise InputError(f"bounds={bounds}: x has values outside of them")
    return pair[0], pair[1]


def with_two_classes(model: ImplicitModel) -> ImplicitModel:
    """Give a network with one logit a second one, 0, so that its classes are 0 and 1.

    Args:
        model: Any model.

    Returns:
        The model itself if it has several outputs; otherwise one with the outputs 0 and y.

    Raises:
        InputError: If the only output is no sum of matrix products.
    """
    if model.q > 1:
        return model
    output = model.equations.output
    alike = all(term.is_matrix for term in output.terms)
    if not alike or not all(isinstance(part.map, Gather) for part in output.fixed):
        raise InputError("one output that is no Linear's: accepted are at least two")
    equations = replace(model.equations, output=_behind_zero(output), interface=None)
    return ImplicitModel.from_equations(
        equations, model.reference_nonzeros, model.structure, model.omega
    )


def _behind_zero(e: Equation) -> Equation:
    bias = None if e.full_bias is None else F.pad(e.full_bias, (1, 0))
    terms = tuple(
        replace(t, map=replace(t.map, weight=F.pad(t.weight.detach(), (0, 0, 1, 0))), gain=None)
        for t in e.terms
    )
    fixed = tuple(
        replace(part, map=Gather(F.pad(part.map.index, (1, 0), value=-1), part.map.columns))
        for part in e.fixed
        if isinstance(part.map, Gather)
    )
    return replace(e, terms=terms, fixed=fixed, bias=bias, adjust=None)
