"""Fixed linear maps put together: in a row, summed, scaled, and those of pooling."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.equations.weighted_maps import Gather, Sparse

Fixed = Gather | Sparse


def identity(size: int, device: torch.device | None = None) -> Gather:
    """Make the map that leaves a sample as it is.

    Args:
        size: Its entries.
        device: Of its index.

    Returns:
        The identity.
    """
    return Gather(torch.arange(size, device=device), size)


def scale(factor: Float[Tensor, " size"]) -> Sparse:
    """Make the map that multiplies entry by entry.

    Args:
        factor: One number per entry.

    Returns:
        A diagonal matrix.
    """
    here = torch.arange(len(factor), device=factor.device)
    return Sparse(here, here, factor, len(factor), len(factor))


def compose(outer: Fixed, inner: Fixed, like: Tensor) -> Fixed:
    """Apply one map after another.

    Args:
        outer: The second.
        inner: The first.
        like: A tensor of the dtype and device of the samples.

    Returns:
        outer ∘ inner.
    """
    if isinstance(outer, Gather) and isinstance(inner, Gather):
        index = torch.where(outer.index < 0, -1, inner.index[outer.index.clamp_min(0)])
        return Gather(index, inner.columns)
    if isinstance(outer, Gather) and outer.is_identity:
        return inner
    if isinstance(inner, Gather) and inner.is_identity:
        return outer
    a, b = as_sparse(outer, like), as_sparse(inner, like)
    # every entry (i, k) of the outer map meets the entries (k, j) of the inner one
    starts = torch.searchsorted(b.row, torch.arange(b.rows + 1, device=b.row.device))
    counts = starts.diff()[a.column]
    pair = torch.arange(len(a.row), device=a.row.device).repeat_interleave(counts)
    within = torch.arange(len(pair), device=pair.device) - (counts.cumsum(0) - counts)[pair]
    other = starts[a.column[pair]] + within
    value = a.value[pair] * b.value[other]
    return _collected(a.row[pair], b.column[other], value, a.rows, b.columns)


def plus(first: Fixed, second: Fixed, like: Tensor) -> Fixed:
    """Add two maps of the same sizes.

    Args:
        first: One.
        second: The other.
        like: A tensor of the dtype and device of the samples.

    Returns:
        Their sum.
    """
    a, b = as_sparse(first, like), as_sparse(second, like)
    row, column = torch.cat([a.row, b.row]), torch.cat([a.column, b.column])
    return _collected(row, column, torch.cat([a.value, b.value]), a.rows, a.columns)


def averages(groups: Sequence[Tensor] | Tensor, columns: int, like: Tensor) -> Sparse:
    """Make the map whose results are means, each of its own entries.

    Args:
        groups: (rows, k): the entries that each result is the mean of.
        columns: Size of what it reads.
        like: A tensor of the dtype and device of the samples.

    Returns:
        The map.
    """
    index = torch.as_tensor(groups, device=like.device)
    rows, k = index.shape
    row = torch.arange(rows, device=like.device).repeat_interleave(k)
    value = torch.full((rows * k,), 1 / k, dtype=like.dtype, device=like.device)
    return Sparse(row, index.flatten(), value, rows, columns)


def by_axis(
    shape: tuple[int, ...], along: Sequence[Callable[[Tensor], Tensor]], like: Tensor
) -> Fixed:
    """Make a map that works on each of the last dimensions by itself, as average pooling does.

    Args:
        shape: Of a sample.
        along: For each of its last dimensions, a linear map of batches (k, n) to (k, n').
        like: A tensor of the dtype and device of the samples.

    Returns:
        Their product, the dimensions before them left as they are.
    """
    lead = shape[: len(shape) - len(along)]
    whole = as_sparse(identity(prod(lead), like.device), like)
    for size, apply in zip(shape[len(lead) :], along, strict=True):
        factor = apply(torch.eye(size, dtype=torch.float64)).T.to(like)
        row, column = factor.nonzero().unbind(1)
        whole = Sparse(
            (whole.row[:, None] * len(factor) + row).flatten(),
            (whole.column[:, None] * size + column).flatten(),
            (whole.value[:, None] * factor[row, column]).flatten(),
            whole.rows * len(factor),
            whole.columns * size,
        )
    return _collected(whole.row, whole.column, whole.value, whole.rows, whole.columns)


def as_sparse(linear: Fixed, like: Tensor) -> Sparse:
    """Write a map by its entries.

    Args:
        linear: The map.
        like: A tensor of the dtype and device of the samples.

    Returns:
        The same map.
    """
    if isinstance(linear, Sparse):
        return linear
    row = (linear.index >= 0).nonzero()[:, 0]
    return Sparse(row, linear.index[row], like.new_ones(len(row)), linear.rows, linear.columns)


def _collected(row: Tensor, column: Tensor, value: Tensor, rows: int, columns: int) -> Fixed:
    # sorted by row, entries of one place added up
    place, index = torch.unique(row * columns + column, return_inverse=True)
    total = value.new_zeros(len(place)).index_add(0, index, value)
    row, column = place // max(columns, 1), place % max(columns, 1)
    if bool((total == 1).all()) and len(row.unique()) == len(row):
        index_of = torch.full((rows,), -1, device=row.device)
        index_of[row] = column
        return Gather(index_of, columns)
    return Sparse(row, column, total, rows, columns)
