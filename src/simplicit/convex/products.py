"""Products of matrices: the fast ones; and in blocks of a fixed size, for bits of their own.

No bit of a row that `product` gives depends on how many other rows there are.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

BLOCK = 32
"""Rows of every product. The last bits of a product depend on its number of rows, and with NumPy's
library on a row's place among them."""

SPARSE = 16
"""Features per non-zero weight from which adding up rows of a matrix is cheaper than a product."""

SQUARE = 192
"""Columns of a symmetric product that a device multiplies at once, of 96 to 1,024 about the
fastest."""

SMALL = 2**18
"""Multiplications below which torch multiplies: its calls are shorter."""


def times(A: Float[Tensor, "... k n"], B: Float[Tensor, "... n p"]) -> Float[Tensor, "... k p"]:
    """Multiply matrices.

    A processor does so in NumPy: on some of them torch's library takes up to 1.6 times as long
    (`benchmarks/kernels.py`). Where B is A' in the same memory, NumPy multiplies one triangle only.

    Args:
        A: Rows.
        B: Columns.

    Returns:
        A B.
    """
    if A.numel() * B.shape[-1] < SMALL or not (_here(A) and _dense(A) and _dense(B)):
        return A @ B
    with np.errstate(all="ignore"):  # whoever gets what is not finite says so
        return torch.from_numpy(np.matmul(A.numpy(), B.numpy()))


def square(A: Float[Tensor, "... d n"]) -> Float[Tensor, "... d d"]:
    """Multiply a matrix with its transpose: where that pays one triangle, the other copied.

    Args:
        A: Rows.

    Returns:
        A A'.
    """
    d = A.shape[-2]
    if _here(A) or d <= SQUARE:
        A = A if _dense(A) else A.contiguous()
        return times(A, A.mT)
    whole = A.new_empty(*A.shape[:-1], d)
    for i in range(0, d, SQUARE):
        own = slice(i, i + SQUARE)
        part = A[..., own, :] @ A[..., i:, :].mT
        whole[..., own, i:] = part
        whole[..., i + SQUARE :, own] = part[..., SQUARE:].mT
    return whole


def _here(A: Tensor) -> bool:
    return A.device.type == "cpu"


# whether rows or columns lie side by side: others NumPy multiplies number by number
def _dense(A: Tensor) -> bool:
    return 1 in A.stride()[-2:]


def fill(rows: Int[Tensor, " k"], block: int = BLOCK) -> Int[Tensor, " b"]:
    """Repeat the last of some rows until they make whole blocks.

    Args:
        rows: Row numbers, (k,).
        block: Rows of a block.

    Returns:
        Row numbers, a multiple of `block`.
    """
    return torch.cat([rows, rows[-1:].expand(-len(rows) % block)])


def product(
    X: Float[Tensor, "k n"],
    M: Float[Tensor, "n p"],
    to: Float[Tensor, "k p"] | None = None,
    factor: float = 1.0,
) -> Float[Tensor, "k p"]:
    """Multiply block by block.

    Args:
        X: Rows.
        M: What all are multiplied by.
        to: What the product is added to; nothing when omitted.
        factor: The product's factor.

    Returns:
        to + factor X M.
    """
    k, pad = len(X), -len(X) % BLOCK
    if pad:
        X = torch.cat([X, X.new_zeros(pad, X.shape[1])])
        to = None if to is None else torch.cat([to, to.new_zeros(pad, to.shape[1])])
    Y = X.new_empty(len(X), M.shape[1])
    for i in range(0, len(X), BLOCK):
        some = slice(i, i + BLOCK)
        start, beta = (Y[some], 0) if to is None else (to[some], 1)
        torch.addmm(start, X[some], M, beta=beta, alpha=factor, out=Y[some])
    return Y[:k]


def sparse_product(
    X: Float[Tensor, "k n"],
    M: Float[Tensor, "n p"],
    to: Float[Tensor, "k p"] | None = None,
    factor: float = 1.0,
) -> Float[Tensor, "k p"]:
    """Multiply as `product` does, but mostly zero rows by adding up the rows of M that they weigh.

    Args:
        X: Rows, (k, n).
        M: What all are multiplied by, (n, p).
        to: What the product is added to, (k, p); nothing when omitted.
        factor: The product's factor.

    Returns:
        to + factor X M.
    """
    few = torch.count_nonzero(X, dim=1) * SPARSE <= X.shape[1]
    if not bool(few.any()):
        return product(X, M, to, factor)
    Y = X.new_empty(len(X), M.shape[1])
    Y[few] = factor * weighted_rows(X[few], M)
    Y[~few] = product(X[~few], M, None, factor)
    return Y if to is None else Y.add_(to)


def weighted_rows(X: Float[Tensor, "k n"], M: Float[Tensor, "n p"]) -> Float[Tensor, "k p"]:
    """Add up the rows of M that each row of X weighs; zeros cost nothing.

    Args:
        X: Rows, mostly zero, (k, n).
        M: What all are multiplied by, (n, p).

    Returns:
        X M, in the precision of M.
    """
    row, column = X.nonzero(as_tuple=True)
    start = torch.searchsorted(row, torch.arange(len(X), device=row.device))
    weights = X[row, column].to(M)
    return embedding_bag(column, M, start, mode="sum", per_sample_weights=weights)
