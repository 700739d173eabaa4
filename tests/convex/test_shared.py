"""The Gram in unit scale: what its rows are solved with."""

import pytest
import torch

from cases import normal
from simplicit.convex import shared as file
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.convex.products import fill
from simplicit.convex.shared import ScaledGram


@pytest.fixture(params=[False, True], ids=["inverse", "factor"])
def gram(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ScaledGram:
    """31 features are few, or many."""
    monkeypatch.setattr(file, "FACTORED", 31 if request.param else 32)
    data = Gram.from_data(normal(90, 31, seed=0), normal(90, 2, seed=1))
    found = ScaledGram(RowProblem(data, Penalty(l1=1e-3)))
    found.solved(normal(1, 31, seed=4), 3.0)
    (made,) = found._made.values()  # an inverse is symmetric, a factor is not
    assert bool(made.triu(1).any()) != request.param
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 7, 8, 9, 40])
def test_rows_are_solved(gram, dtype, k):
    B, to = (normal(k, len(gram.G), seed=seed).to(dtype) for seed in (2, 3))
    shifted = gram.G + 3.0 * torch.eye(len(gram.G), dtype=gram.G.dtype)
    wanted = torch.linalg.solve(shifted, B.double().T).T
    close = {"rtol": 0, "atol": 1e3 * torch.finfo(dtype).eps}
    torch.testing.assert_close(gram.solved(B, 3.0).double(), wanted, **close)
    found = gram.solved(B, 3.0, to.clone(), 2.0)
    torch.testing.assert_close(found.double(), to.double() + 2 * wanted, **close)


def test_no_bit_of_a_row_depends_on_the_others(gram):
    B = normal(21, len(gram.G), seed=2)
    B[5] = B[20]
    every = gram.solved(B[fill(torch.arange(21))], 3.0)
    for rows in ([0, 1, 2], [20], [*range(20)], [5, 20, 7, 20]):
        assert torch.equal(gram.solved(B[rows], 3.0), every[rows])
