"""The homotopy of cold starts: alone where it may, and left in time where it may not."""

from unittest.mock import patch

import pytest
import torch

from degenerate_suite import DegenerateSuite
from shapes import unchecked
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.convex.scaled import ScaledRows
from simplicit.convex.shared import ScaledGram
from simplicit.convex.solution import Solution
from simplicit.solvers import Settings, solve
from simplicit.solvers.methods import homotopy, newton
from solver_suite import MIXED


class TestForced(DegenerateSuite):
    """No row is left to ADMM before it reaches its level."""

    settings = Settings(crowd=0, unsteady=0)
    mixed = MIXED[:4]

    def solve(self, problem: RowProblem, **options) -> Solution:
        with unchecked():  # of the shapes that `TestSolve` has
            return super().solve(problem, **options)


def sparse(alike: float = 0.0, n: int = 400, few: int = 8) -> Gram:
    """Four rows of few weights on features that share a part."""
    random = torch.Generator().manual_seed(0)
    V = torch.randn(2 * n, n, generator=random, dtype=torch.float64)
    V += alike * torch.randn(2 * n, 1, generator=random, dtype=torch.float64)
    W = torch.zeros(4, n, dtype=torch.float64)
    W[:, torch.randperm(n, generator=random)[:few]] = 1.0
    T = V @ W.T
    noise = torch.randn(2 * n, 4, generator=random, dtype=torch.float64)
    return Gram.from_data(V, T + 0.1 * T.std(0) * noise)


def start(problem: RowProblem) -> tuple[ScaledRows, newton.NewtonState, torch.Tensor]:
    scaled = ScaledRows.of(problem, ScaledGram(problem))
    zero, one = torch.zeros_like(scaled.R), torch.ones_like(scaled.t2)
    state = newton.init(scaled, zero, 0 * one[:, None], one[:, None])
    return scaled, state, torch.full((len(one),), 100)


PENALTIES = {
    "l1": (Penalty(l1=0.2), None, "squared"),
    "l0+l2": (Penalty(l0=0.05, l2=0.05), None, "squared"),
    "ball": (Penalty(l1=0.1), Ball(slice(None), 4.0), "squared"),
    "root": (Penalty(l1=0.1), None, "root"),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_few_features_need_neither_an_inverse_nor_a_first_order_step(name):
    penalty, ball, loss = PENALTIES[name]
    problem = RowProblem(sparse(), penalty, ball=ball, loss=loss)
    design = ScaledGram(problem)
    solution = solve(problem, tol=1e-9, design=design)
    assert solution.solved.all()
    assert not design._inverses
    assert int(solution.iterations.max()) < 16


def test_the_last_level_is_the_penalty_itself():
    """Each level below the first is solved nearly: rounds from its end change little."""
    scaled, state, most = start(RowProblem(sparse(), Penalty(l1=0.2)))
    found, there, rounds = homotopy.descend(scaled, state, most, Settings())
    assert there.all()
    top = (scaled.R.abs() / scaled.terms.slope()).amax(1)
    assert torch.equal(rounds, torch.log2(top).ceil().long())
    settled, _ = newton.settle(scaled, found, most)
    assert float((settled.V - found.V).norm() / settled.V.norm()) < 0.1
    # where it started is as it was
    assert not state.V.any()


@pytest.mark.parametrize("what", ["alike", "unsteady", "dense", "out of rounds", "zero is best"])
def test_rows_it_does_not_suit_are_left_and_solved_all_the_same(what):
    alike = {"alike": 3.0, "unsteady": 0.7}.get(what, 0.0)
    gram = sparse(alike, few=200 if what == "dense" else 8)
    l1 = {"unsteady": 1.0, "dense": 1e-3, "zero is best": 100.0}.get(what, 0.1)
    problem = RowProblem(gram, Penalty(l1=l1))
    scaled, state, most = start(problem)
    if what == "out of rounds":
        most = most.clamp_max(1)
    found, there, rounds = homotopy.descend(scaled, state, most, Settings())
    assert not there.any()
    assert bool((rounds <= most).all())
    assert bool((found.V[~there].isfinite()).all())
    assert solve(problem, tol=1e-9).solved.all()


def test_rough_moments_are_those_of_float32():
    scaled, _, _ = start(RowProblem(sparse(), Penalty(l1=0.2)))
    V = torch.randn_like(scaled.R) * (torch.rand_like(scaled.R) < 0.1)
    V[1] = 0.0
    error = (scaled.rough_moments(V) - scaled.moments(V)).abs()
    assert float(error.max()) < 1e-5 * float(V.norm())
    assert not error[1].any()


def test_a_feature_that_left_in_a_round_may_not_come_back_in_the_next():
    """At its price but for float32's rounding it would come and go for ever."""
    scaled, state, most = start(RowProblem(sparse(), Penalty(l1=0.02)))
    settled, rounds = newton.settle(scaled, state, most)
    assert int(rounds.max()) < 30
    assert float(newton.beyond(scaled, settled).max()) < 1e-5


@pytest.mark.parametrize(("l1", "rough"), [(0.1, True), (1e-6, False)])
def test_rows_that_are_hardly_penalised_do_no_rough_rounds(l1, rough):
    """Their prices are below what float32 tells: such rounds would stop short of the optimum."""
    rounds, settle, descend = [], newton.settle, homotopy.descend

    def settled(*args):
        rounds.append(settle(*args)[1])
        return settle(*args)

    def descended(*args):
        rounds.append(descend(*args)[2])
        return descend(*args)

    with patch.object(newton, "settle", settled), patch.object(homotopy, "descend", descended):
        assert solve(RowProblem(sparse(few=4), Penalty(l1=l1)), tol=1e-9).solved.all()
    assert bool(torch.cat(rounds).any()) == rough
