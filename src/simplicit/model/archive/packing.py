"""Matrices in a file: CSR (`.indptr`, `.indices`, `.values`, int32) where that is smaller."""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Storage = Literal["csr", "dense"]

SPARSE_BELOW = 0.3
"""Density under which CSR is smaller: a float32 entry takes 8 bytes in CSR and 4 in a dense one."""


def pack(W: Float[Tensor, "r c"]) -> tuple[dict[str, Tensor], Storage]:
    """Take a matrix apart.

    Args:
        W: The matrix.

    Returns:
        Its parts by the end of their names, and how it is stored.
    """
    stored = W != 0
    if int(stored.sum()) >= SPARSE_BELOW * W.numel():
        return {"": W.contiguous()}, "dense"
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), stored.sum(1).cumsum(0)])
    indices = stored.nonzero()[:, 1]
    parts = {".indptr": indptr.int(), ".indices": indices.int(), ".values": W[stored]}
    return parts, "csr"


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
