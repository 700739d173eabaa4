"""Backward elimination against brute force."""

import pytest
import torch
from torch import Tensor

from simplicit.sparsity.elimination import eliminate


def problem(seed: int = 0, N: int = 9, K: int = 11) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    V = torch.randn(50, N, generator=random, dtype=torch.float64)
    V = V @ torch.randn(N, N, generator=random, dtype=torch.float64)
    return V.T @ V / 50, torch.randn(K, N, generator=random, dtype=torch.float64)


def least(G: Tensor, w: Tensor, support: list[int]) -> float:
    """Loss ½ (v − w)'G(v − w) of the best v on a support."""
    v = torch.zeros_like(w)
    v[support] = torch.linalg.solve(G[support][:, support], (G @ w)[support])
    return float((v - w) @ G @ (v - w) / 2)


@pytest.mark.parametrize("protected", [[], [3], [0, 8]])
def test_every_removal_is_the_cheapest_and_costs_what_it_says(protected):
    G, W = problem()
    mask = torch.zeros(9, dtype=torch.bool)
    mask[protected] = True
    orders, costs = eliminate(torch.linalg.inv(G), W, mask)
    for w, order, cost in zip(W, orders.tolist(), costs, strict=True):
        support, loss = list(range(9)), 0.0
        for j, added in zip(order, cost.tolist(), strict=True):
            choices = {
                i: least(G, w, [s for s in support if s != i])
                for i in support
                if i not in protected
            }
            support.remove(j)
            assert choices[j] <= min(choices.values()) * (1 + 1e-8) + 1e-12
            assert choices[j] - loss == pytest.approx(added, rel=1e-7, abs=1e-12)
            loss = choices[j]
        assert sorted(support) == protected


def test_stopping_early_is_the_beginning_of_the_same_order():
    G, W = problem()
    none = torch.zeros(9, dtype=torch.bool)
    all_orders, all_costs = eliminate(torch.linalg.inv(G), W, none)
    orders, costs = eliminate(torch.linalg.inv(G), W, none, keep=4)
    assert torch.equal(orders, all_orders[:, :5]) and torch.equal(costs, all_costs[:, :5])
    assert eliminate(torch.linalg.inv(G), W, none, keep=9)[0].shape == (11, 0)


def test_rows_do_not_depend_on_their_neighbours():
    G, W = problem()
    none = torch.zeros(9, dtype=torch.bool)
    orders, _ = eliminate(torch.linalg.inv(G), W, none)
    for k in range(len(W)):
        assert torch.equal(eliminate(torch.linalg.inv(G), W[k : k + 1], none)[0][0], orders[k])
