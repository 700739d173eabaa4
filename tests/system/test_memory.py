from types import SimpleNamespace

import psutil
import pytest
import torch

from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.errors import InputError
from simplicit.solvers import solve
from simplicit.system.memory import require


def test_what_fits_passes():
    require(1e3, "a little")


def test_a_gram_too_large_is_refused_with_the_figures_before_it_is_allocated():
    with pytest.raises(InputError, match=r"5000000 features.*200000.* GB needed.* GB free on cpu"):
        Gram(5_000_000, 1)


def test_a_solve_too_large_is_refused_before_it_starts(monkeypatch):
    V, T = torch.randn(20, 10), torch.randn(20, 3)
    problem = RowProblem(Gram.from_data(V, T), Penalty(l1=0.1))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    with pytest.raises(InputError, match="3 rows of 10 features.*needed"):
        solve(problem)
