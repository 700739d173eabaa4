"""Factors of Grams."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cases import normal
from simplicit.convex import cholesky as file
from simplicit.convex.cholesky import ROUNDING, cholesky, factor, solve_factored


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of 20 rows are long, and taken in blocks of 8 columns; the last one has fewer."""
    monkeypatch.setattr(file, "LONG", 20)
    monkeypatch.setattr(file, "BLOCK", 8)


def positive(n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A positive definite matrix."""
    V = normal(3 * n, n, seed=n).to(dtype)
    return V.T @ V / len(V)


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize("n", [8, 20, 24, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_blocks_give_the_factor(n, dtype, shift):
    G = positive(n, dtype)
    before = G.clone()
    L, exists = cholesky(G, shift)
    assert exists and torch.equal(G, before) and torch.equal(L, L.tril())
    wanted = torch.linalg.cholesky(G + shift * torch.eye(n, dtype=dtype))
    torch.testing.assert_close(L, wanted, rtol=0, atol=20 * torch.finfo(dtype).eps)
    right = normal(n, 3, seed=1).to(dtype)
    found = solve_factored(L, right)
    error = 1e4 * torch.finfo(dtype).eps
    torch.testing.assert_close(wanted @ (wanted.T @ found), right, rtol=0, atol=error)


@pytest.mark.usefixtures("in_blocks")
def test_threads_change_no_bit_of_it():
    G = positive(37, torch.float32)
    with ThreadPoolExecutor(2) as executor:
        assert torch.equal(cholesky(G, 0.5, executor)[0], cholesky(G, 0.5)[0])


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize("place", [0, 10, 30])
def test_a_matrix_that_is_not_positive_definite_has_none(place):
    G = positive(31)
    G[place, place] = -1.0
    assert not cholesky(G)[1]
    with pytest.raises(RuntimeError):
        factor(G)


@pytest.mark.usefixtures("in_blocks")
def test_a_shift_makes_dependent_features_independent():
    v = normal(9, 30, seed=5)
    G = v.T @ v
    L = factor(G, 1.0)
    torch.testing.assert_close(L @ L.T, G + torch.eye(30, dtype=G.dtype))


@pytest.mark.parametrize("unit", [1.0, 1e-5, 1e5])
def test_a_gram_of_float32_products_has_a_factor(unit):
    low = normal(400, 12, seed=2) @ normal(12, 40, seed=3)
    low[:, :20] *= unit
    G = (low.float().T @ low.float() / 400).double()
    assert torch.linalg.eigvalsh(G)[0] < 0  # else the test says nothing
    lower = factor(G)
    scale = G.diagonal().sqrt()
    torch.testing.assert_close(
        (lower @ lower.T - G) / scale / scale[:, None], 0 * G, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("above", [0.0, 1e-12, 1e-9])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_a_pivot_of_the_size_of_rounding_is_as_bad_as_none(unit, above):
    """What rounding leaves of dependent features is not divided by."""
    V = normal(400, 6, seed=2) @ normal(6, 20, seed=3)
    V[:, ::2] *= unit
    G = V.T @ V / 400
    G += above * G.diagonal().diag()
    scale = G.diagonal().sqrt()
    solved = solve_factored(factor(G), scale[:, None] * normal(20, 1, seed=4))[:, 0]
    assert float((scale * solved).norm()) < 20 / ROUNDING * 1.1
    assert float((factor(G).diagonal() / scale).square().min()) >= ROUNDING / 2


def test_a_positive_definite_gram_has_its_own_factor():
    G = positive(7)
    assert torch.equal(factor(G), torch.linalg.cholesky(G))


def test_an_indefinite_matrix_has_none():
    with pytest.raises(RuntimeError):
        factor(torch.diag(torch.tensor([1.0, -1.0])))
