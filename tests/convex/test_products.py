"""A row's bits do not depend on how many rows there are."""

import pytest
import torch

from cases import normal
from simplicit.convex.products import (
    BLOCK,
    SPARSE,
    SQUARE,
    fill,
    product,
    sparse_product,
    symmetric,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 7, 100])
def test_products_of_some_rows_have_the_bits_of_all(n, dtype):
    X, M = normal(3 * BLOCK + 5, n, seed=0).to(dtype), normal(n, 13, seed=1).to(dtype)
    whole = product(X, M)
    torch.testing.assert_close(whole, X @ M)
    torch.testing.assert_close(product(X, M, whole, -0.5), 0.5 * whole)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(2))
    for k in (0, 1, BLOCK, BLOCK + 1, len(X)):
        some = order[:k]
        assert torch.equal(product(X[some], M), whole[some])
        assert torch.equal(product(X[some], M, whole[some], 3.0), product(X, M, whole, 3.0)[some])


@pytest.mark.parametrize("k", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_blocks_are_filled_with_the_last_row(k):
    rows = torch.arange(k) + 3
    filled = fill(rows)
    assert len(filled) % BLOCK == 0 and torch.equal(filled[:k], rows)
    assert (filled[k:] == k + 2).all()


def test_a_sparse_product_is_the_product_and_feels_no_neighbour():
    n = 4 * SPARSE
    X, M = normal(BLOCK + 5, n, seed=0), normal(n, 13, seed=1)
    X[::2] *= torch.arange(n) < 4
    X[4] = 0.0
    whole = sparse_product(X, M)
    torch.testing.assert_close(whole, X @ M)
    for k in range(6):
        assert torch.equal(sparse_product(X[k : k + 1], M)[0], whole[k])
    assert sparse_product(X[:0], M).shape == (0, 13)
    to = torch.randn(len(X), 13, dtype=X.dtype)
    torch.testing.assert_close(sparse_product(X, M, to, -2.0), to - 2 * X @ M)
    torch.testing.assert_close(sparse_product(X + 1, M, to, -2.0), to - 2 * (X + 1) @ M)
    assert torch.equal(sparse_product(X[:3] * 0, M), torch.zeros(3, 13).double())


@pytest.mark.parametrize("shape", [(7, 1), (7, SQUARE), (3, SQUARE + 1), (2, 50, 2 * SQUARE + 5)])
def test_a_symmetric_product_is_the_product(shape):
    X = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(symmetric(X.mT, X), X.mT @ X)
