"""What the loop around a method promises, whatever the method is; see `solver_suite`."""

import itertools
import math
import pickle

import pytest
import torch

from cases import LOSSES, PENALTIES, features, known, normal, uniform
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Solution, Status
from simplicit.solvers import loop
from solver_suite import MIXED, SolverSuite


def same(one: Solution, two: Solution) -> bool:
    """Bit for bit."""
    names = ("W", "gap", "objective", "multiplier")
    equal = all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)
    return equal and one.status == two.status


class LoopSuite(SolverSuite):
    """Rows do not feel each other; stopping costs nothing; statuses say why."""

    crowd = 200
    """Rows of the test of many rows."""

    def test_one_bad_row_touches_no_other(self):
        """3: a row's bits depend on its own data alone."""
        bad_row = 537 % self.crowd
        V, T = features(40, 12, 1.0, seed=0), normal(40, self.crowd, seed=1)
        gram = Gram.from_data(V, T)
        for l1, l0, ball in ((0.05, 0.0, None), (0.0, 0.01, Ball(slice(0, 8), 0.3))):
            penalty = Penalty(l0=l0, l1=l1, l2=0.1)
            good = self.solve(RowProblem(gram, penalty, ball), tol=1e-4)
            others = (torch.arange(self.crowd) != bad_row).nonzero()[:, 0]
            for bad in (math.nan, 1e30):
                R, t2 = gram.R.clone(), gram.t2.clone()
                R[bad_row] *= bad
                t2[bad_row] *= bad * bad
                other = self.solve(RowProblem(gram.with_targets(R, t2), penalty, ball), tol=1e-4)
                assert same(good.rows(others), other.rows(others))
                assert torch.equal(good.iterations[others], other.iterations[others])
                if not math.isfinite(bad):
                    assert other.status[bad_row] is Status.INVALID_INPUT
                    assert not other.W[bad_row].any()

    @pytest.mark.parametrize("what", ["target", "penalty", "radius"])
    def test_a_row_with_bad_data_is_named(self, what):
        """1, 2: never `solved` with a NaN, whatever is NaN."""
        V, T = normal(20, 5, seed=0), normal(20, 3, seed=1)
        l1, radius = torch.full((3,), 0.1).double(), torch.full((3,), 0.5).double()
        for bad in (math.nan, math.inf) if what != "radius" else (math.nan,):
            target, price, size = T.clone(), l1.clone(), radius.clone()
            {"target": target[0], "penalty": price, "radius": size}[what][1] = bad
            gram = Gram.from_data(V, target)
            solution = self.solve(RowProblem(gram, Penalty(l1=price), Ball(slice(0, 3), size)))
            names = [status.name for status in solution.status]
            assert names == ["SOLVED", "INVALID_INPUT", "SOLVED"]
            assert torch.isfinite(solution.W).all()

    def test_no_rows(self):
        """15."""
        for N in (0, 4):
            V, T = normal(10, N, seed=0), torch.zeros(10, 0).double()
            solution = self.check(RowProblem(Gram.from_data(V, T), Penalty(l1=0.1)), V, T)
            assert solution.status == () and solution.W.shape == (0, N)

    def test_max_iterations_is_said(self):
        case = known(PENALTIES["l0+l2"], ball=True, decay=1.0)
        solution = self.check(case.problem, case.V, case.T, max_iterations=1, tol=1e-12)
        assert set(solution.status) == {Status.MAX_ITERATIONS}
        near = self.check(
            case.problem, case.V, case.T, tol=float(solution.gap.min()) / 1e4, max_iterations=0
        )
        assert Status.SOLVED not in near.status

    def test_time_limit(self):
        """22: feasible weights, a valid gap, and no crash."""
        V, T = features(60, 20, 1.5, seed=0), normal(60, min(40, self.crowd), seed=1)
        problem = RowProblem(Gram.from_data(V, T), Penalty(l1=0.01), Ball(slice(0, 12), 0.5))
        solution = self.check(problem, V, T, time_limit=1e-10)
        assert Status.TIME_LIMIT in solution.status
        assert set(solution.status) <= {Status.TIME_LIMIT, Status.SOLVED}
        assert same(self.solve(problem, time_limit=1e6), self.solve(problem))

    @pytest.mark.parametrize("stage", [1, 2, 4, 6])
    def test_stopped_and_taken_up_again(self, stage):
        """23, 24: bit for bit what it would have been."""
        V, T = features(60, 20, 1.5, seed=0), normal(60, 40, seed=1)
        # rows of one tile that end at different times
        l1 = 10 ** uniform(40, seed=2, low=-4, high=-1)
        problem = RowProblem(Gram.from_data(V, T), Penalty(l1=l1), Ball(slice(0, 12), 0.7))
        whole = self.solve(problem, max_iterations=150, tol=1e-7)
        calls = itertools.count(1)
        stopped = self.solve(
            problem, max_iterations=150, tol=1e-7, callback=lambda _: next(calls) >= stage
        )
        assert set(stopped.status) <= {Status.INTERRUPTED, Status.SOLVED}
        resumed = self.solve(
            problem, max_iterations=150, tol=1e-7, warm_start=pickle.loads(pickle.dumps(stopped))
        )
        assert Status.INTERRUPTED in stopped.status or same(stopped, whole)
        assert same(resumed, whole)

    def test_callback_sees_every_row_once_done(self):
        V, T = features(60, 20, 1.0, seed=0), normal(60, 70, seed=1)
        problem = RowProblem(Gram.from_data(V, T), Penalty(l1=0.05))
        seen: dict[int, float] = {}
        last = []

        def look(progress: loop.Progress) -> None:
            for row, gap in zip(progress.rows.tolist(), progress.gap.tolist(), strict=True):
                seen[row] = gap
            assert 0 <= progress.solved <= progress.total == 70 and progress.seconds >= 0
            last.append(progress.solved)

        solution = self.check_solved(problem, V, T, callback=look)
        assert sorted(seen) == list(range(70)) and last == sorted(last)
        # the callback's gaps are relative, and those of the rows they name
        relative = (solution.gap / (0.5 * problem.gram.t2)).tolist()
        assert all(abs(seen[k] - relative[k]) <= 1e-12 for k in seen)

    def test_the_last_event_has_the_last_gap(self):
        """Rooted rows whose σ is bisected, too, and rows that were solved before."""
        V, W = normal(30, 8, seed=0), normal(3, 8, seed=1)
        problem = RowProblem(Gram.from_data(V, V @ W.T), Penalty(l1=1e-3), loss="root")
        first = self.solve(problem, tol=1e-6)
        for start in (None, first):
            seen: list[loop.Progress] = []
            solution = self.solve(problem, tol=1e-6, warm_start=start, callback=seen.append)
            assert solution.solved.all() and seen[-1].solved == 3
            assert (seen[-1].gap <= 1e-6).all()

    def test_any_warm_start_ends_at_the_optimum(self):
        case = known(PENALTIES["l0+l2"], ball=True)
        outside = 1e3 * normal(*case.W.shape, seed=9)
        self.near(self.check_solved(case.problem, case.V, case.T, warm_start=outside), case)

    def test_twice_the_same_bits_alone_or_in_company(self):
        """26: once more, permuted rows, a part of them."""
        V, T = features(60, 20, 1.0, seed=0), normal(60, 70, seed=1)
        problem = RowProblem(
            Gram.from_data(V, T), Penalty(0.01, 0.02, 0.1), Ball(slice(0, 12), 0.5)
        )
        order = torch.randperm(70, generator=torch.Generator().manual_seed(2))
        one = self.solve(problem)
        assert same(one, self.solve(problem))
        assert same(one.rows(order), self.solve(problem.select(order)))
        assert same(one.rows(order[:40]), self.solve(problem.select(order[:40])))
        assert same(one.rows(order[:1]), self.solve(problem.select(order[:1])))

    @pytest.mark.parametrize("loss", LOSSES)
    def test_a_warm_start_feels_no_neighbour(self, loss):
        V, T = features(60, 20, 1.0, seed=0), normal(60, 40, seed=1)
        problem = RowProblem(Gram.from_data(V, T), Penalty(l1=0.02), Ball(slice(0, 12), 0.5), loss)
        start = 0.1 * normal(40, 20, seed=2) * (torch.arange(40) % 2)[:, None]
        together = self.solve(problem, warm_start=start)
        for k in (0, 1):
            alone = self.solve(problem.select(slice(k, k + 1)), warm_start=start[k : k + 1])
            assert same(alone, together.rows(torch.tensor([k])))

    @pytest.mark.parametrize("most", [5, 40])
    def test_running_out_feels_no_neighbour(self, most):
        V, T = features(60, 20, 1.5, seed=0), normal(60, 40, seed=1)
        l1 = 10 ** uniform(40, seed=2, low=-4, high=-1)
        problem = RowProblem(Gram.from_data(V, T), Penalty(l1=l1), Ball(slice(0, 12), 0.7))
        together = self.solve(problem, max_iterations=most)
        for k in range(0, 40, 7):
            alone = self.solve(problem.select(slice(k, k + 1)), max_iterations=most)
            assert same(alone, together.rows(torch.tensor([k])))
        assert (together.iterations <= most).all()

    @pytest.mark.parametrize("mixed", MIXED)
    def test_rows_with_and_without_a_penalty(self, mixed):
        """A batch may hold least-squares rows next to others."""
        penalty, radius, loss = mixed
        V, T = normal(40, 8, seed=0), normal(40, 5, seed=1)
        on = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
        ball = None if radius is None else Ball(slice(0, 5), radius)
        rows = Penalty(**{name: value * on for name, value in ({"l1": 0.1} | penalty).items()})
        problem = RowProblem(Gram.from_data(V, T), rows, ball, loss)
        together = self.check_solved(problem, V, T)
        for k in range(5):
            alone = self.solve(problem.select(slice(k, k + 1)))
            torch.testing.assert_close(alone.W[0], together.W[k], rtol=1e-12, atol=1e-13)
