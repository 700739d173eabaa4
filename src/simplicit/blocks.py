"""Rows in blocks of a fixed size, so that no bit of a row depends on how many others there are."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

BLOCK = 32
"""Rows of every product. The last bits of a product depend on its number of rows."""

LARGE = 8000
"""Features from which rows are worth treating one by one (see `solvers.working_set`)."""

SPARSE = 24
"""One weight in so many non-zero is where adding up rows of a matrix costs what a product does."""


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


def sparse_product(X: Float[Tensor, "k n"], M: Float[Tensor, "n p"]) -> Float[Tensor, "k p"]:
    """Multiply row by row, mostly zero rows by adding up the rows of M that they weigh.

    Returns:
        X M.
    """
    few = torch.count_nonzero(X, dim=1) * SPARSE <= X.shape[1]
    Y = X.new_empty(len(X), M.shape[1])
    if not bool(few.all()):
        Y[~few] = product(X[~few], M)
    thin = X[few]
    row, column = thin.nonzero(as_tuple=True)
    start = torch.searchsorted(row, torch.arange(len(thin), device=row.device))
    Y[few] = embedding_bag(column, M, start, mode="sum", per_sample_weights=thin[row, column])
    return Y
