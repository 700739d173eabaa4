"""What is asked for: impossible values are refused, penalties have the seed's units."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simplicit.convex.gram import Gram
from simplicit.convex.problem import RowProblem
from simplicit.errors import InputError
from simplicit.recipe import Recipe
from simplicit.sparsity.choice import prune_smallest


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("sparsity", 1.0, r"None or \[0, 1\)"),
        ("sparsity", -0.1, r"None or \[0, 1\)"),
        ("kappa", 1.0, "a number above 0 and below 1"),
        ("kappa", math.nan, "a number above 0 and below 1"),
        ("alpha", math.inf, "a finite number, at least 0"),
        ("lambda1", 0.0, "a finite number above 0"),
        ("sparsity_ratio", 100.0, r"a percentage in \[0, 100\)"),
        ("tol", 0.0, "a number above 0 and below 1"),
    ],
)
def test_an_impossible_value_is_one_line_that_names_it(field, value, accepted):
    with pytest.raises(InputError, match=f"^{field}={value}: accepted is {accepted}$"):
        Recipe(**{field: value})


def test_the_papers_preset():
    recipe = Recipe(kappa=0.9, alpha=0.1).with_preset("paper")
    assert (recipe.structure, recipe.bias, recipe.closed_loop) == ("full", False, False)
    assert (recipe.kappa, recipe.alpha) == (0.9, 0.1)
    assert Recipe().with_preset(None) == Recipe()
    successor = Recipe(kappa=0.5).with_preset("acml2025")
    assert (successor.constraint, successor.alpha, successor.kappa) == ("row", 0.0, 0.5)
    with pytest.raises(InputError, match="preset 'papers': accepted are seed, paper, acml2025"):
        Recipe().with_preset("papers")


@pytest.mark.parametrize("objective", ["sparsity", "robustness"])
def test_without_a_budget_the_objective_is_the_seeds(objective):
    """The seed: α Σ w² + λ1 ‖r‖², or ‖w‖₁ + λ1 ‖r‖, the bias not penalised; up to a factor."""
    m, alpha, lambda1 = 40, 0.3, 0.7
    random = torch.Generator().manual_seed(0)
    V = torch.randn(m, 4, dtype=torch.float64, generator=random)
    V[:, 3] = 1
    T = torch.randn(m, 2, dtype=torch.float64, generator=random)
    W = torch.randn(2, 4, dtype=torch.float64, generator=random)
    recipe = Recipe(objective=objective, alpha=alpha, lambda1=lambda1)
    ones = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    penalty = recipe.penalty(m, 5 * ones, ones)
    mine = RowProblem(Gram.from_data(V, T), penalty, None, recipe.matching_loss).objective(W)
    residual = (T - V @ W.T).norm(dim=0)
    if objective == "sparsity":
        seed = alpha * W[:, :3].square().sum(1) + lambda1 * residual**2
        torch.testing.assert_close(mine * 2 * m * lambda1, seed, rtol=1e-12, atol=0)
    else:
        seed = W[:, :3].abs().sum(1) + lambda1 * residual
        torch.testing.assert_close(mine * lambda1 * math.sqrt(m), seed, rtol=1e-12, atol=0)


def test_under_a_budget_only_the_scales_of_the_features_count():
    scales = torch.tensor([3.0, 0.1, 0.0])
    for m in (10, 1000):
        penalty = Recipe(sparsity=0.5, alpha=7.0, lambda1=9.0).penalty(m, scales, torch.ones(3))
        assert penalty.l1 == 1.0 and penalty.scales is scales
        robust = Recipe(sparsity=0.5, objective="robustness").penalty(m, scales, torch.ones(3))
        assert (robust.l0, robust.l1, robust.l2) == (0.0, 1.0, 0.0)


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.floats(0, 99.99),
    st.sampled_from([torch.randn, torch.ones, torch.zeros]),
)
def test_pruning_zeroes_that_many_of_the_smallest(r, c, percentage, make):
    W = make(r, c)
    pruned = prune_smallest(W, percentage)
    count = int(r * c * percentage / 100)
    gone = (pruned == 0) & (W != 0)
    assert int(gone.sum()) <= count <= int((pruned == 0).sum())
    assert torch.equal(pruned[~gone], W[~gone])
    if gone.any() and (pruned != 0).any():
        assert W[gone].abs().max() <= pruned[pruned != 0].abs().min()
