"""Coordinate descent: alone where it may, and left in time where it may not."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from degenerate_suite import DegenerateSuite
from shapes import unchecked
from simplicit.convex import duality
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.convex.scaled import ScaledRows
from simplicit.convex.shared import ScaledGram
from simplicit.convex.solution import Solution
from simplicit.solvers import Settings, solve
from simplicit.solvers.methods import coordinates, newton
from simplicit.solvers.status import Status
from solver_suite import MIXED


class TestForced(DegenerateSuite):
    """No row is left to ADMM for its work."""

    settings = Settings(descent=1e3)
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
    assert not design._made
    assert int(solution.iterations.max()) < 16


def objective(scaled: ScaledRows, V: torch.Tensor) -> torch.Tensor:
    return duality.objective(scaled.gram, scaled.terms, scaled.loss, V, scaled.moments(V))


@pytest.mark.parametrize("name", PENALTIES)
def test_it_ends_where_no_weight_has_a_better_value(name):
    """From exact moments again and again, the gap falls as far as float64 tells."""
    penalty, ball, loss = PENALTIES[name]
    scaled, state, most = start(RowProblem(sparse(), penalty, ball=ball, loss=loss))
    before, work = scaled.gap(state.V, state.moments, state.mu, state.sigma), 1e9
    for near in (1e-3, 1e-5, 1e-7):
        found = coordinates.descend(scaled, state, most, near, work)
        assert found.there.all()
        # what float32 sums up is near the moments
        own = found.state
        torch.testing.assert_close(own.moments, scaled.moments(own.V), rtol=0, atol=1e-5)
        state = newton.init(scaled, own.V, own.mu, own.sigma)
        gap = scaled.gap(state.V, state.moments, state.mu / state.sigma, state.sigma)
        assert (gap < before).all()
        before = gap
    assert float(before.max()) < 1e-6
    if ball is not None:
        assert bool((state.mu > 0).all())


def test_a_slack_ball_has_no_multiplier():
    problem = RowProblem(sparse(), Penalty(l1=0.2), ball=Ball(slice(None), 1e3))
    scaled, state, most = start(problem)
    found = coordinates.descend(scaled, state, most, 1e-4, 1e9)
    assert found.there.all() and not found.state.mu.any()
    free, state, most = start(replace(problem, ball=None))
    alone = coordinates.descend(free, state, most, 1e-4, 1e9)
    torch.testing.assert_close(found.state.V, alone.state.V, rtol=0, atol=1e-3)


@pytest.mark.parametrize("loss", ["squared", "root"])
def test_the_objective_falls_with_every_pass(loss):
    scaled, state, most = start(RowProblem(sparse(0.7), Penalty(l1=0.05), loss=loss))
    before = objective(scaled, state.V)
    for passes in range(1, 6):
        found = coordinates.descend(scaled, state, most.clamp_max(passes), 1e-6, 1e9)
        now = objective(scaled, found.state.V)
        assert (now <= before + 1e-6).all()
        before = now
    # where it started is as it was
    assert not state.V.any()


def test_a_row_does_not_feel_the_others():
    scaled, state, most = start(RowProblem(sparse(0.7), Penalty(l1=0.05)))
    every = coordinates.descend(scaled, state, most, 1e-4, 1e9)
    for k in (torch.tensor([2]), torch.tensor([3, 0])):
        own = coordinates.descend(scaled.rows(k), state.rows(k), most[k], 1e-4, 1e9)
        assert torch.equal(own.state.V, every.state.V[k])
        assert torch.equal(own.work, every.work[k])


@pytest.mark.parametrize("what", ["alike", "out of passes", "zero is best"])
def test_rows_it_does_not_suit_are_left_and_solved_all_the_same(what):
    gram = sparse(3.0 if what == "alike" else 0.0, few=200 if what == "alike" else 8)
    l1 = {"alike": 1e-3, "zero is best": 100.0}.get(what, 0.1)
    problem = RowProblem(gram, Penalty(l1=l1))
    scaled, state, most = start(problem)
    if what == "out of passes":
        most = most.clamp_max(2)
    found = coordinates.descend(scaled, state, most, 1e-4, 8.0 * scaled.R.shape[1] ** 2)
    assert bool((found.there == (what == "zero is best")).all())
    assert bool((found.passes <= most).all())
    assert bool(found.state.V.isfinite().all())
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
    rounds, settle = [], newton.settle

    def settled(*args):
        rounds.append(settle(*args)[1])
        return settle(*args)

    with patch.object(newton, "settle", settled):
        assert solve(RowProblem(sparse(few=4), Penalty(l1=l1)), tol=1e-9).solved.all()
    assert bool(torch.cat(rounds).any()) == rough


def test_long_work_is_looked_at_between_rows_and_stops_there(monkeypatch):
    scaled, state, most = start(RowProblem(sparse(0.7), Penalty(l1=0.05)))
    every = coordinates.descend(scaled, state, most, 1e-4, 1e9)
    monkeypatch.setattr(coordinates, "LONG", 0.0)
    looks = []

    def second() -> bool:
        looks.append(len(looks))
        return len(looks) == 2

    found = coordinates.descend(scaled, state, most, 1e-4, 1e9, second)
    assert len(looks) == 2
    assert torch.equal(found.state.V[:2], every.state.V[:2])
    # the others stand where they stood
    assert not found.state.V[2:].any() and not found.there[2:].any() and not found.passes[2:].any()
    assert torch.equal(found.state.moments[2:], state.moments[2:].float().double())
    looks = [0] * 9  # never the second again
    again = coordinates.descend(scaled, state, most, 1e-4, 1e9, second)
    assert len(looks) == 9 + len(most)
    assert torch.equal(again.state.V, every.state.V)


def test_a_call_that_is_stopped_in_between_keeps_what_it_has(monkeypatch):
    monkeypatch.setattr(coordinates, "LONG", 0.0)
    problem = RowProblem(sparse(), Penalty(l1=0.2))
    calls = []

    def third(progress) -> bool:
        calls.append(progress)
        return len(calls) == 3

    solution = solve(problem, tol=1e-9, workers=1, callback=third)
    assert len(calls) == 3
    assert set(solution.status) <= {Status.SOLVED, Status.INTERRUPTED}
    assert Status.INTERRUPTED in solution.status and bool((solution.W != 0).any())
    assert solve(problem, tol=1e-9, warm_start=solution).solved.all()
