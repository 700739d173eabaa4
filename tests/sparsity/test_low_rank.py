"""Reduced-rank regression against slow twins, and ranks against all ways to spend a budget."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.sparsity import splitting
from simplicit.sparsity.coupled import DAMPING
from simplicit.sparsity.low_rank import Ranks, allot_ranks, loss, metric, regress, with_sparse


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows(K: int = 6, d: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """G, R and S of rows whose features and errors are far from independent."""
    V = random(80, d, seed=seed) @ random(d, d, seed=seed + 1)
    T = V @ random(d, K, seed=seed + 2) + random(80, K, seed=seed + 3)
    g = random(40, K, seed=seed + 4) @ random(K, K, seed=seed + 5)
    return V.T @ V / 80, T.T @ V / 80, g.T @ g / 40


def alternating(G: torch.Tensor, R: torch.Tensor, S: torch.Tensor, rank: int) -> torch.Tensor:
    """The slow twin: either factor by least squares given the other, from many starts."""
    V = torch.stack([random(rank, len(G), seed=100 + seed) for seed in range(8)])
    T = S @ torch.linalg.solve(G, R.T).T
    U = V
    for _ in range(1500):
        U = torch.linalg.solve(V @ G @ V.mT, V @ R.T).mT
        V = torch.linalg.solve(U.mT @ S @ U, U.mT @ T)
    return min(U @ V, key=lambda found: loss(G, R, S, found))


@pytest.mark.parametrize(("K", "d"), [(6, 9), (7, 4)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_closed_form_is_what_alternation_finds_from_its_best_start(K, d, rank):
    G, R, S = rows(K, d)
    slow, found = alternating(G, R, S, rank), regress(G, R, S)
    torch.testing.assert_close(found.weights(rank), slow, rtol=1e-4, atol=1e-4)
    assert loss(G, R, S, found.weights(rank)) <= loss(G, R, S, slow) + 1e-12


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 5))
def test_the_singular_values_are_the_exact_loss_of_every_rank(seed, rank):
    """The bound of Eckart and Young is reached: the gap is 0."""
    G, R, S = rows(seed=seed)
    found, best = regress(G, R, S), torch.linalg.solve(G, R.T).T
    added = loss(G, R, S, found.weights(rank)) - loss(G, R, S, best)
    scale = -loss(G, R, S, best)
    assert abs(added - float(found.excess[rank])) < 1e-9 * scale
    assert found.excess[-1] == 0 and len(found.excess) == 7
    torch.testing.assert_close(found.weights(6), best, rtol=1e-6, atol=1e-8)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(1e-4, 1.0))
def test_no_weights_of_the_same_rank_are_better(seed, rank, size):
    G, R, S = rows(seed=seed)
    found = regress(G, R, S)
    left, right = found.left[:, :rank], found.right[:rank]
    least = loss(G, R, S, left @ right)
    other_left = left + size * left.norm() * random(*left.shape, seed=seed + 1)
    other_right = right + size * right.norm() * random(*right.shape, seed=seed + 2)
    assert loss(G, R, S, other_left @ other_right) >= least - 1e-12 * abs(least)
    # stationary in either factor
    missing = S @ (R - left @ right @ G)
    slack = 1e-8 * float((S @ R).norm())
    assert (missing @ right.T).norm() < slack * float(right.norm())
    assert (left.T @ missing).norm() < slack * float(left.norm())


def test_without_a_metric_it_is_the_truncated_singular_value_decomposition():
    W, eye = random(6, 9), torch.eye(9, dtype=torch.float64)
    found = regress(eye, W, torch.eye(6, dtype=torch.float64))
    P, values, Q = torch.linalg.svd(W, full_matrices=False)
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.weights(2), (P[:, :2] * values[:2]) @ Q[:2])
    torch.testing.assert_close(found.left.norm(dim=0), found.right.norm(dim=1))


@pytest.mark.parametrize("S", [torch.zeros(6, 6), torch.diag(torch.tensor([1.0, 2, 0, 0, 1, 3]))])
def test_rows_that_no_output_hears_take_what_the_others_leave(S):
    G, R, _ = rows()
    found = regress(G, R, metric(S.double()))
    V = found.right[:2]
    assert V.isfinite().all()
    least = torch.linalg.solve(V @ G @ V.T, V @ R.T).T
    torch.testing.assert_close(found.left[:, :2], least, rtol=1e-5, atol=1e-7)


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(1, 2), st.integers(1, 3))
def test_factors_and_single_weights_in_turn_never_raise_the_loss(seed, rank, keep):
    G, R, S = rows(seed=seed)
    problem = RowProblem(Gram.of(G, R, R.square().sum(1), 80), Penalty(l1=1.0))

    def supports(rest: RowProblem) -> torch.Tensor:
        return splitting.supports(rest, [keep] * len(R))

    low, sparse, losses = with_sparse(problem, S, rank, supports, torch.zeros_like(R), 4)
    assert (sparse.count_nonzero(1) <= keep).all()
    slack = 1e-7 * abs(losses[0])
    assert all(b <= a + slack for a, b in zip(losses, losses[1:], strict=False))
    damped = S + DAMPING * S.diagonal().diag()
    whole = low.weights(rank) + sparse
    assert abs(loss(G, R, damped, whole) - losses[-1]) < slack
    # better than either alone
    assert losses[-1] <= loss(G, R, damped, regress(G, R, damped).weights(rank)) + slack


def layers(seed: int, count: int = 3) -> list[Ranks]:
    found = []
    for k in range(count):
        K, d = 3 + k, 6 + 2 * k
        values = random(K, seed=seed + k).square().sort(descending=True).values
        tail = values.flip(0).cumsum(0).flip(0) / 2
        found.append(Ranks(torch.cat([tail, tail.new_zeros(1)]), K + d, K * d))
    return found


def relaxed(options: list[list[tuple[int, float]]], budget: int) -> float:
    """The linear relaxation has one layer between two ranks: that layer at the lower one."""
    flat = [(k, w, e) for k, own in enumerate(options) for w, e in own]
    each = [[float(k == layer) for k, _, _ in flat] for layer in range(len(options))]
    found: Any = linprog(
        [e for _, _, e in flat],
        A_ub=[[w for _, w, _ in flat]],
        b_ub=[budget],
        A_eq=each,
        b_eq=[1.0] * len(options),
    )
    taken = [one for one, part in zip(flat, found.x, strict=True) if part > 1e-6]
    return sum(max(e for k, _, e in taken if k == layer) for layer in range(len(options)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(40, 110))
def test_one_price_spends_nearly_as_well_as_the_best_of_all_ways(seed, budget):
    every = layers(seed)
    options = [layer.options for layer in every]
    _, places = allot_ranks(every, budget)
    spent = [own[p] for own, p in zip(options, places, strict=True)]
    assert sum(weights for weights, _ in spent) <= budget
    ways = (way for way in product(*options) if sum(w for w, _ in way) <= budget)
    best = min(sum(e for _, e in way) for way in ways)
    found = sum(e for _, e in spent)
    assert best - 1e-12 <= found <= relaxed(options, budget) + 1e-9


def test_a_layer_whose_factors_have_no_fewer_weights_has_only_itself():
    excess = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    small = Ranks(excess, unit=7, dense=6)
    assert small.most == 0 and small.options == [(6, 0.0)]
    wide = Ranks(excess, unit=7, dense=15)
    assert wide.most == 2 and [weights for weights, _ in wide.options] == [7, 14, 15]
    assert allot_ranks([small, wide], 21)[1] == [0, 1]
    assert allot_ranks([small, wide], 20)[1] == [0, 1]
    assert allot_ranks([small, wide], 19)[1] == [0, 0]
