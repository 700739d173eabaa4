"""Budgets split to the unit: in proportion, and where removal costs most."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from simplicit.sparsity.budget import shares, spend


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.integers(0, 10**7))
def test_shares_add_up_to_the_budget_and_follow_the_counts(counts, budget):
    parts = shares(counts, budget)
    assert sum(parts) == min(budget, sum(counts))
    for share, size in zip(parts, counts, strict=True):
        assert 0 <= share <= size
        if budget < sum(counts):
            assert abs(share - budget * size / sum(counts)) <= 1


costs = st.lists(st.lists(st.floats(0, 10), max_size=6), min_size=1, max_size=6)


@given(costs, st.integers(0, 40))
def test_a_budget_is_spent_to_the_unit_where_removal_costs_most(rows, budget):
    tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    kept = spend(tensors, budget)
    assert sum(kept) == min(budget, sum(map(len, rows)))
    levels = [row.cummax(0).values if len(row) else row for row in tensors]
    removed = [float(x[len(x) - k - 1]) for x, k in zip(levels, kept, strict=True) if len(x) > k]
    stays = [float(x[len(x) - k]) for x, k in zip(levels, kept, strict=True) if k]
    assert max(removed, default=0.0) <= min(stays, default=float("inf"))
