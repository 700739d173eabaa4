"""A row's bits do not depend on how many rows there are."""

import pytest
import torch

from cases import normal
from simplicit.convex import products
from simplicit.convex.products import (
    BLOCK,
    SPARSE,
    SQUARE,
    fill,
    product,
    sparse_product,
    square,
    times,
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


@pytest.mark.parametrize("d", [1, SQUARE, SQUARE + 5, 2 * SQUARE + 1])
@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_square_is_the_product_with_the_transpose(d, here, dtype, monkeypatch):
    monkeypatch.setattr(products, "_here", lambda _: here)
    A = normal(2 * d, 40, seed=0).to(dtype).unflatten(0, (2, d))
    for X in (A, A.mT.contiguous().mT, A[0], A[:, :, ::2]):
        found = square(X)
        torch.testing.assert_close(found, X @ X.mT, rtol=1e-5, atol=1e-4)
        assert not here or torch.equal(found, found.mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_is_that_of_torch_however_the_factors_lie(dtype):
    A, B = normal(60, 40, seed=0).to(dtype), normal(40, 24, seed=1).to(dtype)
    ways = [
        (A, B), (A.T.contiguous().T, B), (A, B.T.contiguous().T), (A[::2], B[:, 3:9]),
        (A[:, ::2], B[::2, ::3]), (A[:0], B), (A[:, :0], B[:0]), (A[:1], B[:, :1]),
        (A.expand(3, 60, 40), B), (A.unflatten(0, (3, 20)), B.expand(3, 40, 24)),
        (A[:1].expand(60, 40), B),
    ]  # fmt: skip
    for X, Y in ways:
        torch.testing.assert_close(times(X, Y), X @ Y, rtol=1e-5, atol=1e-5)
