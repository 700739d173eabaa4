"""Tensors in a file: matrices as CSR where that is smaller, whole numbers as differences."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Storage = Literal["csr", "dense"]

SHORT = 2**15
"""Columns up to which their indices take 16 bits, else 32."""

LEVEL = 9
"""Of zlib: what it takes is little beside a solve."""


def pack(W: Float[Tensor, "r c"]) -> tuple[dict[str, Tensor], Storage]:
    """Take a matrix apart.

    Args:
        W: The matrix.

    Returns:
        Its parts by the end of their names, and how it is stored.
    """
    stored = W != 0
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), stored.sum(1).cumsum(0)]).int()
    indices = stored.nonzero()[:, 1]
    indices = indices.short() if W.shape[1] <= SHORT else indices.int()
    parts = {".indptr": indptr, ".indices": indices, ".values": W[stored]}
    if sum(part.nbytes for part in parts.values()) >= W.nbytes:
        return {"": W.contiguous()}, "dense"
    return parts, "csr"


def squeeze(tensor: Tensor) -> Tensor | None:
    """Write a tensor as few bytes: whole numbers as differences, and what repeats once.

    Indices of pooling, strides and moves are regular, and take some dozens of bytes.

    Args:
        tensor: Any tensor.

    Returns:
        uint8; None if that is not shorter.
    """
    flat = tensor.flatten()
    if not tensor.is_floating_point() and tensor.dtype != torch.bool:
        flat = flat.diff(prepend=flat.new_zeros(1))
    raw = zlib.compress(flat.contiguous().numpy().tobytes(), LEVEL)
    if len(raw) >= tensor.nbytes:
        return None
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())


def restore(packed: Tensor, dtype: str, shape: Sequence[int]) -> Tensor:
    """Undo `squeeze`.

    Args:
        packed: What it returned.
        dtype: Name of the tensor's dtype.
        shape: Its shape.

    Returns:
        The tensor.

    Raises:
        ValueError: If it is damaged.
    """
    kind, size = np.dtype(dtype), int(np.prod(shape, dtype=np.int64))
    try:
        raw = zlib.decompress(packed.numpy().tobytes(), bufsize=size * kind.itemsize)
    except zlib.error as error:
        raise ValueError(f"a tensor that cannot be unpacked: {error}") from None
    if len(raw) != size * kind.itemsize:
        raise ValueError(f"a tensor of {len(raw)} bytes for shape {tuple(shape)}")
    flat = np.frombuffer(raw, dtype=kind)
    whole = np.issubdtype(kind, np.integer)
    return torch.from_numpy((flat.cumsum(dtype=kind) if whole else flat.copy()).reshape(shape))


def unpack(
    numbers: Mapping[str, Tensor], name: str, shape: tuple[int, int], storage: Storage
) -> Float[Tensor, "r c"]:
    """Put a matrix together again.

    Args:
        numbers: Parts by name.
        name: Its name.
        shape: Its shape.
        storage: How it is stored.

    Returns:
        The matrix, dense.
    """
    if storage == "dense":
        return numbers[name].reshape(shape)
    values = numbers[f"{name}.values"]
    rows = torch.repeat_interleave(numbers[f"{name}.indptr"].diff().long())
    W = torch.zeros(shape, dtype=values.dtype)
    W[rows, numbers[f"{name}.indices"].long()] = values
    return W
