"""Supports by splitting: as good as exact elimination, at any width, whatever the units."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.sparsity import splitting
from simplicit.sparsity.elimination import of_rows
from simplicit.sparsity.refit import refit


def problem(N: int = 120, K: int = 80, seed: int = 0, alike: float = 0.9) -> RowProblem:
    """Features of neighbours alike, as pixels are, and a bias; a few large weights a row."""
    random = torch.Generator().manual_seed(seed)
    V = torch.randn(400, N + 1, generator=random).double()
    for j in range(1, N):
        V[:, j] = alike * V[:, j - 1] + (1 - alike**2) ** 0.5 * V[:, j]
    V[:, -1] = 1.0
    W = torch.randn(K, N + 1, generator=random).double() ** 3
    T = V @ W.T + torch.randn(400, K, generator=random).double()
    scales = torch.ones(N + 1).double()
    scales[-1] = 0.0
    return RowProblem(Gram.from_data(V, T), Penalty(l1=1.0, scales=scales))


def loss(rows: RowProblem, support: Tensor) -> Tensor:
    return RowProblem(rows.gram, Penalty()).objective(refit(rows, support))


@pytest.mark.parametrize("part", [0.05, 0.1, 0.3, 0.6])
def test_supports_are_about_as_good_as_those_of_exact_elimination(part):
    rows = problem()
    keep = [round(part * 120)] * 80
    ours, exact = (loss(rows, way.supports(rows, keep)) for way in (splitting, of_rows))
    assert float(ours.mean()) <= 1.02 * float(exact.mean())


def test_supports_do_not_depend_on_workers_units_or_neighbours():
    rows = problem()
    keep = list(range(1, 81))
    found = splitting.supports(rows, keep)
    with ThreadPoolExecutor(2) as executor:
        assert torch.equal(splitting.supports(rows, keep, executor), found)
    assert found[:, :-1].sum(1).tolist() == keep and found[:, -1].all()
    G, R, t2 = rows.gram.G, rows.gram.R, rows.gram.t2
    unit = 4.0 ** torch.arange(121).remainder(7).double()
    scales = rows.penalty.scales
    assert scales is not None
    other = RowProblem(
        Gram.of(unit[:, None] * G * unit, R * unit, t2, 400), Penalty(l1=1.0, scales=scales * unit)
    )
    assert torch.equal(splitting.supports(other, keep), found)
    # a tile is rows that are solved together; others change nothing
    assert torch.equal(splitting.supports(rows.select(slice(0, 64)), keep[:64]), found[:64])


def test_features_that_are_never_on_and_rows_without_targets_are_no_obstacle():
    rows = problem(N=20, K=3)
    G, R = rows.gram.G.clone(), rows.gram.R.clone()
    G[[4, 5]], G[:, [4, 5]], R[:, [4, 5]] = 0.0, 0.0, 0.0
    R[1] = 0.0
    dead = RowProblem(Gram.of(G, R, rows.gram.t2, 400), rows.penalty)
    found = splitting.supports(dead, [5, 5, 20])
    assert found[:, :-1].sum(1).tolist() == [5, 5, 20] and not found[0, [4, 5]].any()
    assert splitting.supports(dead, [0, 0, 0])[:, :-1].sum() == 0


def test_the_longest_rows_are_split_alike_by_all_threads_and_with_known_systems(monkeypatch):
    rows, keep = problem(K=4), [10, 20, 30, 40]
    one_by_one = splitting.supports(rows, keep)
    monkeypatch.setattr(splitting, "LONG", 100)
    known: splitting.Known = {}
    with ThreadPoolExecutor(2) as executor:
        for _ in range(2):
            found = splitting.supports(rows, keep, executor, known=known)
            assert torch.equal(found, one_by_one)
        worth = [torch.ones(4).double()]
        spent = splitting.screen([rows], worth, 100, executor)
    assert len(known) == len(splitting.LEVELS)
    (scores, counts), (others, same) = *spent, *splitting.screen([rows], worth, 100)
    assert counts == same and torch.allclose(scores, others, rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(splitting, "KEPT", 3 * 4 * 120**2)
    known.clear()
    assert torch.equal(splitting.supports(rows, keep, known=known), one_by_one)
    assert set(known) == {0, 1, 2}
