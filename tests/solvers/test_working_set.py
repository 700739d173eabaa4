"""Working sets, forced on problems small enough to solve whole as well."""

import itertools
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from cases import LOSSES, PENALTIES, degenerate, normal
from loop_suite import LoopSuite, same
from simplicit.convex.duality import Loss
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.convex.shared import ScaledGram
from simplicit.convex.solution import Solution, Status
from simplicit.errors import InputError
from simplicit.solvers import Settings, loop, solve, tiles, working_set
from simplicit.sparsity.path import solve_to_budget
from simplicit.system import memory
from solver_suite import MIXED


def by_sets(problem: RowProblem, first: int = 4, share: int = 1, **options) -> Solution:
    settings = Settings(large=0, first_set=first, share=share)
    with patch.object(working_set, "ScaledGram", no_room):
        return solve(problem, settings=settings, **options)


def no_room(*_, **__) -> ScaledGram:
    """No scaled copy of the whole Gram, so that every row goes by sets."""
    raise InputError("no room")


class Forced(LoopSuite):
    """Row by row on sets of 12 features and, where those do not do, on all."""

    __test__ = False
    crowd = 10

    def solve(self, problem: RowProblem, **options) -> Solution:
        defaults: dict[str, Any] = {"tol": self.tol, "max_iterations": self.max_iterations}
        return by_sets(problem, first=12, **defaults | options)


SUITE = Forced()


@pytest.mark.parametrize(
    ("name", "ball", "loss"),
    [("l1", False, "root"), ("l0+l2", True, "squared"), ("ridge", False, "squared")],
)
def test_the_known_optimum(name, ball, loss):
    SUITE.test_finds_the_known_optimum(name, ball, loss)


def test_gaps_are_honest_wherever_it_stops():
    SUITE.test_gap_is_honest_after_every_iteration(MIXED[2])


@pytest.mark.parametrize("mixed", MIXED[:2])
def test_rows_with_and_without_a_penalty(mixed):
    SUITE.test_rows_with_and_without_a_penalty(mixed)


@pytest.mark.parametrize(
    "promise",
    [
        SUITE.test_one_bad_row_touches_no_other,
        SUITE.test_max_iterations_is_said,
        SUITE.test_time_limit,
        SUITE.test_no_rows,
        partial(SUITE.test_a_row_with_bad_data_is_named, "target"),
        partial(SUITE.test_warm_start_from_the_optimum, "root"),
    ],
    ids=lambda p: getattr(p, "func", p).__name__[5:],
)
def test_promises_of_the_loop(promise):
    promise()


@pytest.mark.parametrize("loss", LOSSES)
def test_stopping_costs_nothing_and_no_row_feels_another(loss):
    problem, seen = wide(loss), []
    whole = by_sets(problem, tol=1e-7, callback=seen.append)
    order = torch.tensor([5, 0, 3])
    assert same(by_sets(problem.select(order), tol=1e-7), whole.rows(order))
    assert seen[-1].solved == seen[-1].total == 6
    assert {int(event.rows) for event in seen if event.gap <= 1e-7} == set(range(6))
    calls = itertools.count(1)
    stopped = by_sets(problem, tol=1e-7, callback=lambda _: next(calls) >= 7)
    assert Status.INTERRUPTED in stopped.status
    assert set(stopped.status) <= {Status.INTERRUPTED, Status.SOLVED}
    assert same(by_sets(problem, tol=1e-7, warm_start=stopped), whole)
    few = by_sets(problem, tol=1e-7, max_iterations=40)
    assert (few.iterations <= 40).all() and Status.MAX_ITERATIONS in few.status


@pytest.mark.parametrize("name", ["zero columns", "equal columns", "target is a column"])
def test_degenerate_features(name):
    V, T = degenerate()[name]
    gram = Gram.from_data(V, T)
    for penalty, radius, loss in MIXED[1:3]:
        ball = None if radius is None else Ball(slice(0, 4), radius)
        problem = RowProblem(gram, Penalty(**penalty), ball, loss)
        solution = SUITE.check(problem, V, T)
        assert not solution.W[:, gram.G.diagonal() == 0].any()


def wide(loss: Loss = "squared", ball: bool = False, penalty: str = "l1") -> RowProblem:
    """300 features, a bias among them; supports from a few to about eighty."""
    V, W = normal(200, 300, seed=0), normal(6, 300, seed=1)
    W *= torch.arange(300) < torch.tensor([2, 5, 10, 20, 40, 80])[:, None]
    V[:, -1], T = 1.0, 1.0 + V @ W.T + 0.3 * normal(200, 6, seed=2)
    scales = torch.ones(300).double()
    scales[-1] = 0.0
    levels = {name: 0.3 * value for name, value in PENALTIES[penalty].items()}
    limit = Ball(slice(0, 200), 0.8 * W[:, :200].abs().sum(1)) if ball else None
    gram = Gram.from_data(V, T)
    return RowProblem(gram, Penalty(**levels, scales=scales), limit, loss)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ball", [False, True], ids=["free", "ball"])
@pytest.mark.parametrize("penalty", ["l0+l1+l2"])
def test_the_optimum_is_that_of_all_features_at_once(penalty, ball, loss):
    problem = wide(loss, ball, penalty)
    one, two = solve(problem, tol=1e-9), by_sets(problem, first=16, tol=1e-9)
    assert one.solved.all() and two.solved.all()
    torch.testing.assert_close(one.objective, two.objective, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.multiplier, two.multiplier, rtol=1e-4, atol=1e-6)
    assert (two.nonzeros > 16).any()


def test_sparse_rows_never_factorise_the_whole_gram():
    problem, sizes = wide(), []

    class Watched(ScaledGram):
        def __init__(self, part: RowProblem, *rest) -> None:
            sizes.append(len(part.gram.G))
            super().__init__(part, *rest)

    with patch.object(tiles, "ScaledGram", Watched), patch.object(loop, "ScaledGram", Watched):
        assert by_sets(problem, first=8).solved.all()
    assert 8 in sizes and max(sizes) < 300


@pytest.mark.parametrize("loss", LOSSES)
def test_where_the_gram_has_room_only_what_coordinate_descent_leaves_goes_by_sets(loss):
    problem, by_set = wide(loss), []
    by_sets_alone = working_set.WorkingSets.solve

    def watched(self, part: RowProblem, *rest):
        by_set.append(part)
        return by_sets_alone(self, part, *rest)

    settings = Settings(large=0, first_set=16, share=1, descent=0.05, newton_rounds=4)
    by_few = partial(solve, tol=1e-7, settings=settings)
    with patch.object(working_set.WorkingSets, "solve", watched):
        whole = by_few(problem)
        assert whole.solved.all() and 0 < len(by_set) < 6
        assert same(by_few(problem, workers=1), whole) and same(by_few(problem, workers=3), whole)
        order = torch.tensor([5, 0, 3])
        assert same(by_few(problem.select(order)), whole.rows(order))
        calls = itertools.count(1)
        stopped = by_few(problem, callback=lambda _: next(calls) >= 3)
        assert Status.INTERRUPTED in stopped.status
        assert same(by_few(problem, warm_start=stopped), whole)
        few = by_few(problem, max_iterations=9)
        assert (few.iterations <= 9).all() and Status.MAX_ITERATIONS in few.status
        seen = []
        by_few(problem, callback=seen.append)
    assert seen[-1].solved == seen[-1].total == 6


def test_rows_without_iterations_left_are_not_begun_again_on_sets():
    problem = wide()
    settings = Settings(large=0, first_set=16, share=1)
    with patch.object(working_set.WorkingSets, "solve", side_effect=AssertionError):
        found = solve(problem, tol=1e-9, max_iterations=1, settings=settings)
    assert Status.MAX_ITERATIONS in found.status and (found.iterations <= 1).all()
    zero = torch.zeros_like(found.W)
    assert (found.objective <= problem.objective(zero)).all()


def test_a_row_too_wide_for_sets_is_solved_on_all_features():
    problem = wide()
    found = by_sets(problem, first=4, share=20)
    assert found.solved.all() and found.nonzeros.max() > 300 // 20
    alone = by_sets(problem.select(slice(5, 6)), first=4, share=20)
    assert torch.equal(alone.W, found.W[5:]) and torch.equal(alone.gap, found.gap[5:])


def test_a_set_that_cannot_be_enough_is_not_solved(monkeypatch):
    row, sizes, restrict = wide().select(slice(5, 6)), [], RowProblem.restrict

    def noted(problem: RowProblem, chosen: torch.Tensor) -> RowProblem:
        sizes.append(len(chosen))
        return restrict(problem, chosen)

    monkeypatch.setattr(RowProblem, "restrict", noted)
    assert by_sets(row, first=4, share=15).solved.all()
    assert sizes == [4, 8]  # 16 of at most 20, where more than 20 matter


def test_a_row_too_wide_for_memory_says_so_and_the_others_are_solved(monkeypatch):
    problem, require = wide(), memory.require
    whole = solve(problem.select(slice(5, 6)), tol=1e-9)

    def small(size: float, what: str, device=None) -> None:
        if what.endswith("rows of 300 features") and size > 2e6:
            raise InputError("too large")
        require(size, what, device)

    monkeypatch.setattr(memory, "require", small)
    found = by_sets(problem, first=4, share=20)
    assert found.status[0] is Status.SOLVED and found.status[5] is not Status.SOLVED
    assert (found.gap[5:] >= found.objective[5:] - whole.objective).all()


def test_memory_is_asked_for_first(monkeypatch):
    problem = wide()
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(InputError, match="6 rows of 300 features: .* GB needed"):
        by_sets(problem)


def test_a_path_to_a_budget_goes_by_sets_too():
    problem = wide()
    settings = Settings(large=0, first_set=8, share=2)
    with (
        patch("simplicit.solvers.loop.DEFAULTS", settings),
        patch("simplicit.sparsity.path.pays", partial(working_set.pays, settings=settings)),
        patch("simplicit.sparsity.path.ScaledGram", side_effect=AssertionError),
    ):
        _, (found,) = solve_to_budget([problem], 150, tol=1e-6)
    assert 150 <= int((found.W[:, :-1] != 0).sum()) <= 153 and found.solved.all()
