"""Supports by either method, and the sensitivities that spend the budget."""

import pytest
import torch
from torch import Tensor

from simplicit.calibration.batches import batches
from simplicit.calibration.rows import rows_of
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.outputs.distance import Distance
from simplicit.outputs.sensitivity import sensitivity
from simplicit.sparsity import choice
from simplicit.sparsity.choice import METHODS, allot, choose
from simplicit.sparsity.refit import refit
from teachers import read, samples, teacher


def problem(seed: int = 0, K: int = 5, N: int = 12) -> RowProblem:
    random = torch.Generator().manual_seed(seed)
    V = torch.randn(100, N + 1, generator=random).double()
    V[:, -1], V[:, 4] = 1.0, 0.0  # the bias, and a pixel that is always zero
    W = torch.randn(K, N + 1, generator=random).double() ** 3
    T = V @ W.T + 0.1 * torch.randn(100, K, generator=random).double()
    scales = torch.cat([torch.ones(N), torch.zeros(1)]).double()
    return RowProblem(Gram.from_data(V, T), Penalty(l1=1.0, scales=scales))


def loss(rows: RowProblem, W: Tensor) -> Tensor:
    return RowProblem(rows.gram, Penalty()).objective(W)


def total(parts: list[RowProblem], worth: list[Tensor], keep: list[list[int]]) -> float:
    found = [loss(p, choose(p, k, "elimination")) for p, k in zip(parts, keep, strict=True)]
    return float(sum(w @ one.to(w) for w, one in zip(worth, found, strict=True)))


def test_wide_rows_are_priced_among_candidates_nearly_as_among_all(monkeypatch):
    parts = [problem(seed, K=6, N=60) for seed in (1, 2, 3)]
    worth = [torch.full((6,), w) for w in (9.0, 1.0, 0.1)]
    for budget in (40, 150, 400):
        _, exact = allot(parts, worth, budget)
        with monkeypatch.context() as patch:
            patch.setattr(choice, "WIDE", 10)
            price, keep = allot(parts, worth, budget)
        assert sum(map(sum, keep)) == budget and price > 0
        assert total(parts, worth, keep) <= 1.03 * total(parts, worth, exact)


def test_of_many_wide_rows_a_sample_says_what_the_others_are_worth(monkeypatch):
    parts = [problem(seed, K=40, N=60) for seed in (1, 2)]
    worth = [torch.linspace(0.1, w, 40) for w in (9.0, 1.0)]
    monkeypatch.setattr(choice, "WIDE", 10)
    for budget in (0, 300, 1000, 4000):
        _, exact = allot(parts, worth, budget)
        with monkeypatch.context() as patch:
            patch.setattr(choice, "PRICED", 8)
            price, keep = allot(parts, worth, budget)
        assert [len(k) for k in keep] == [40, 40] and sum(map(sum, keep)) == budget and price > 0
        assert total(parts, worth, keep) <= 1.03 * total(parts, worth, exact)


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_spends_the_budget_to_the_unit_and_weighs_rows(method):
    one, two = problem(0), problem(1, K=3)
    equal = [torch.ones(5), torch.ones(3)]
    for budget in (0, 7, 40, 88, 96):
        price, keep = allot([one, two], equal, budget, method)
        assert [len(k) for k in keep] == [5, 3] and sum(map(sum, keep)) == budget
        assert price >= 0
    _, keep = allot([one, two], [torch.ones(5), torch.full((3,), 1e6)], 30, method)
    assert sum(keep[1]) > 25
    # rows that no output hears keep a quarter of their share
    _, keep = allot([one, two], [torch.ones(5), torch.zeros(3)], 64, method)
    assert min(keep[1]) >= 2 and sum(map(sum, keep)) == 64


@pytest.mark.parametrize("method", METHODS)
def test_each_row_gets_its_number_refitted(method):
    rows, keep = problem(), [0, 1, 4, 8, 11]
    W = choose(rows, keep, method)
    assert torch.count_nonzero(W[:, :-1], dim=1).tolist() == keep
    torch.testing.assert_close(W, refit(rows, W != 0))
    assert not W[:, 4].any()


@pytest.mark.parametrize("method", METHODS)
def test_chosen_weights_beat_the_largest(method):
    rows = problem()
    W = choose(rows, [4] * 5, method)
    full = refit(rows, torch.ones(5, 13, dtype=torch.bool))
    mask = torch.zeros(5, 13, dtype=torch.bool)
    mask.scatter_(1, full[:, :-1].abs().topk(4, dim=1).indices, True)
    assert (loss(rows, W) <= loss(rows, refit(rows, mask)) + 1e-12).all()


def test_sensitivity_is_the_curvature_of_the_outputs_distance_in_every_row(monkeypatch):
    """By random directions: their mean over 8,000 is within a few percent."""
    monkeypatch.setattr("simplicit.outputs.sensitivity.ENOUGH", 4000)
    net, u = teacher("tanh"), samples(40)
    equations = read("tanh")
    layers = rows_of(equations)
    found = sensitivity(equations, equations, layers, batches(u.repeat(100, 1), 1000))
    Y = net(u).detach()
    distance = Distance(Y)
    for depth, layer in zip((1, 3, 5), found, strict=True):
        z = net[:depth](u).detach()
        J = torch.stack([torch.func.jacrev(net[depth:])(row) for row in z])
        if depth == 5:
            J = torch.eye(3).expand(40, 3, 3)
        expected = (J.mT @ distance.curvature(Y).times(J)).mean(0).detach().double()
        error = (layer.coupling[0] - expected).norm() / expected.norm()
        assert error < 0.05 and layer.coherence < 1e-9  # one position
