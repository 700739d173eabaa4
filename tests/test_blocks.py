"""A row's bits do not depend on how many rows there are."""

import pytest
import torch

from cases import normal
from simplicit.blocks import BLOCK, fill, product


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 7, 100])
def test_products_of_some_rows_have_the_bits_of_all(n, dtype):
    X, M = normal(3 * BLOCK + 5, n, seed=0).to(dtype), normal(n, 13, seed=1).to(dtype)
    whole = product(X, M)
    torch.testing.assert_close(whole, X @ M)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(2))
    for k in (0, 1, BLOCK, BLOCK + 1, len(X)):
        assert torch.equal(product(X[order[:k]], M), whole[order[:k]])


@pytest.mark.parametrize("k", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_blocks_are_filled_with_the_last_row(k):
    rows = torch.arange(k) + 3
    filled = fill(rows)
    assert len(filled) % BLOCK == 0 and torch.equal(filled[:k], rows)
    assert (filled[k:] == k + 2).all()
