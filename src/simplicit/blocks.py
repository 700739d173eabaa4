"""Rows in blocks of a fixed size, so that no bit of a row depends on how many others there are."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 32
"""Rows of every product. The last bits of a product depend on its number of rows."""


def fill(rows: Int[Tensor, " k"]) -> Int[Tensor, " b"]:
    """Repeat the last of some rows until they make whole blocks.

    Returns:
        Row numbers, a multiple of `BLOCK`.
    """
    return torch.cat([rows, rows[-1:].expand(-len(rows) % BLOCK)])


def product(X: Float[Tensor, "k n"], M: Float[Tensor, "n p"]) -> Float[Tensor, "k p"]:
    """Multiply block by block.

    Returns:
        X M.
    """
    k = len(X)
    if k % BLOCK:
        X = torch.cat([X, X.new_zeros(-k % BLOCK, X.shape[1])])
    Y = X.new_empty(len(X), M.shape[1])
    for i in range(0, len(X), BLOCK):
        torch.mm(X[i : i + BLOCK], M, out=Y[i : i + BLOCK])
    return Y[:k]
