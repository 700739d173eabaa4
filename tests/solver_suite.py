"""What every solver of `RowProblem` must do; `test_solvers` inherits it once per solver.

The numbers are those of the list of hard cases the suite was drawn from (what SCS, OSQP, Clarabel,
HiGHS, scikit-learn, celer and skglm test themselves on). Not here, and why:

* 1, 2 (bad numbers): shared data are refused by `RowProblem` (test_problem); a row's own are here.
* 12, 13 (dtypes): a `Gram` is float64 whatever it is fed (test_gram); there is no other input.
* 28 (a Gram that does not fit the data): only the Gram is given, so nothing can disagree with it.
* 32 (safe rules): no solver screens.
* 34 (out of memory): `solve` allocates a few tiles of rows beside the Gram that is already there.
"""

import itertools
import math
import pickle
from unittest.mock import patch

import numpy as np
import pytest
import torch
from cases import LOSSES, PENALTIES, Case, degenerate, features, known, normal, uniform
from certified import judge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simplicit.gram import Gram
from simplicit.problem import Ball, Loss, Penalty, RowProblem
from simplicit.solution import Solution, Status
from simplicit.solvers import loop, solve
from torch import Tensor

MIXED = [
    (PENALTIES["l1"], None, "squared"),
    (PENALTIES["l1"], 0.3, "root"),
    (PENALTIES["l0+l2"], 0.3, "squared"),
    (PENALTIES["elastic"], None, "root"),
    (PENALTIES["none"], None, "squared"),
    (PENALTIES["none"], 0.3, "squared"),
    (PENALTIES["ridge"], 0.3, "root"),
]
"""Each penalty, with and without the ball, each loss; not every combination."""

entries = st.sampled_from([0.0, 1.0, -1.0, 1e8, -1e8, 1e-8, 2.0])


@st.composite
def problems(draw: st.DrawFn) -> tuple[RowProblem, Tensor, Tensor]:
    """Shapes 0 to 12, entries that collide and span sixteen orders of magnitude."""
    m, N, K = (draw(st.integers(0, most)) for most in (12, 12, 3))
    few = draw(st.lists(entries, min_size=1, max_size=3))

    def matrix(columns: int) -> Tensor:
        cells = st.lists(st.sampled_from(few), min_size=m * columns, max_size=m * columns)
        return torch.tensor(draw(cells), dtype=torch.float64).reshape(m, columns)

    V, T = matrix(N), matrix(K)
    coefficient = st.sampled_from([0.0, 1e-8, 0.1, 1.0, 1e8])
    l1, l2 = draw(coefficient), draw(coefficient)
    l0 = draw(coefficient) if l2 else 0.0
    scales = torch.tensor(draw(st.lists(st.sampled_from([0.0, 1e-8, 1.0, 1.0, 2.0]), min_size=N, max_size=N)))
    radius = draw(st.sampled_from([None, 0.0, 1e-8, 0.5, 1e8, math.inf]))
    ball = None if radius is None else Ball(slice(0, draw(st.integers(0, N))), radius)
    loss: Loss = draw(st.sampled_from(LOSSES))
    penalty = Penalty(l0, l1, l2, scales=scales.double())
    return RowProblem(Gram.from_data(V, T), penalty, ball, loss), V, T


def rounding(problem: RowProblem, W: Tensor) -> np.ndarray:
    """What float64 moments can lose of an objective, per row."""
    size = W.abs() @ problem.gram.G.diagonal().sqrt()
    lost = 1e-14 * (problem.gram.t2 + size**2)
    if problem.loss == "squared":
        return lost.numpy()
    q = (problem.gram.t2 - ((problem.gram.R + problem.gradient_moments(W)) * W).sum(1)).clamp_min(0)
    return (torch.sqrt(q + lost) - torch.sqrt(q) + 1e-14 * torch.sqrt(q)).numpy()


def same(one: Solution, two: Solution) -> bool:
    """Bit for bit."""
    names = ("W", "gap", "objective", "multiplier")
    equal = all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)
    return equal and one.status == two.status


class SolverSuite:
    """Inherit, and override what the solver is."""

    patched: dict[str, object] = {"METHODS": loop.METHODS}
    """What `solvers.loop` is patched with."""

    tol = 1e-9
    max_iterations = 400
    hardest = 2.0
    """Decay of the Gram's spectrum up to which every row must be solved."""

    exact = True
    """Whether degenerate rows must be solved, too, and not just be reported honestly."""

    crowd = 1000
    """Rows of the test of many rows."""

    def solve(self, problem: RowProblem, **options) -> Solution:
        with patch.multiple(loop, **self.patched):
            return solve(problem, **{"tol": self.tol, "max_iterations": self.max_iterations} | options)

    def check(self, problem: RowProblem, V: Tensor, T: Tensor, **options) -> Solution:
        """Solve, and hold the answer against the data (30): whatever it says must be true."""
        tol = options.get("tol", self.tol)
        before = [x.clone() for x in (problem.gram.G, problem.gram.R, problem.gram.t2)]
        solution = self.solve(problem, **options)
        after = (problem.gram.G, problem.gram.R, problem.gram.t2)
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))

        assert solution.W.shape == problem.gram.R.shape and torch.isfinite(solution.W).all()
        verdict = judge(problem, V, T, solution.W)
        slack = rounding(problem, solution.W)
        assert (verdict.excess <= 1e-12).all()
        assert (abs(solution.objective.numpy() - verdict.primal) <= slack + 1e-13 * verdict.primal).all()
        assert (solution.multiplier >= 0).all() and (solution.gap >= 0).all()
        # weak duality against every feasible point at hand: the answer itself, and 0, whose
        # objective is the unit
        bound = (solution.objective - solution.gap).numpy()
        assert (bound <= verdict.primal + slack).all()
        assert (bound <= verdict.unit * (1 + 1e-12) + slack).all()
        solved = solution.solved.numpy()
        assert (solution.gap.numpy() <= tol * verdict.unit)[solved].all()
        assert (verdict.gap <= tol * verdict.unit + slack)[solved].all()
        assert (solution.iterations >= 0).all()
        return solution

    def check_solved(self, problem: RowProblem, V: Tensor, T: Tensor, **options) -> Solution:
        solution = self.check(problem, V, T, **options)
        assert solution.solved.all(), [status.name for status in solution.status]
        return solution

    def near(self, solution: Solution, case: Case) -> None:
        """The objective is the known optimum, to the tolerance."""
        verdict = judge(case.problem, case.V, case.T, case.W)
        excess = solution.objective.numpy() - verdict.primal
        slack = rounding(case.problem, solution.W)
        assert (excess <= self.tol * verdict.unit + slack).all()
        assert (excess >= -slack).all()

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("ball", [False, True], ids=["free", "ball"])
    @pytest.mark.parametrize("name", PENALTIES)
    def test_finds_the_known_optimum(self, name, ball, loss):
        for decay, scaled in ((0.0, False), (self.hardest, True)):
            case = known(PENALTIES[name], ball=ball, loss=loss, decay=decay, scaled=scaled)
            solution = self.check_solved(case.problem, case.V, case.T)
            self.near(solution, case)
            if decay == 0:  # G = I is strongly convex: weights and multiplier are determined
                error = 3 * math.sqrt(self.tol * float(case.problem.gram.t2.max()))
                torch.testing.assert_close(solution.W, case.W, rtol=0, atol=error)
                torch.testing.assert_close(solution.multiplier, case.mu, rtol=0, atol=3 * error)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_unique_solutions_have_the_known_support(self, loss):
        """Moments at a zero weight stay 5 % off their bound, so the support is determined."""
        for name in ("l1", "elastic", "l0+l2", "l0+l1+l2"):
            case = known(PENALTIES[name], ball=True, loss=loss, decay=0.5)
            solution = self.check_solved(case.problem, case.V, case.T)
            assert torch.equal(solution.W != 0, case.W != 0)

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

    @pytest.mark.parametrize("mixed", MIXED)
    def test_a_target_of_zero_has_weights_zero(self, mixed):
        """4."""
        penalty, radius, loss = mixed
        V, T = normal(20, 6, seed=0), torch.zeros(20, 2).double()
        ball = None if radius is None else Ball(slice(0, 4), radius)
        problem = RowProblem(Gram.from_data(V, T), Penalty(**penalty), ball, loss)
        solution = self.check_solved(problem, V, T)
        assert not solution.W.any() and not solution.gap.any()
        assert (solution.iterations <= 1).all()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_from_the_critical_level_on_weights_are_exactly_zero(self, loss):
        """5."""
        V, T = normal(30, 8, seed=0), normal(30, 3, seed=1)
        gram = Gram.from_data(V, T)
        level = gram.R.abs().amax(1) / (gram.t2.sqrt() if loss == "root" else 1)
        above = RowProblem(gram, Penalty(l1=level * 1.0001), loss=loss)
        assert not self.check_solved(above, V, T).W.any()
        below = RowProblem(gram, Penalty(l1=level * 0.99), loss=loss)
        assert self.check_solved(below, V, T).W.any(1).all()

    @pytest.mark.parametrize("name", degenerate())
    def test_degenerate_data(self, name):
        """6, 7, 8, 9, 11, 15, 20."""
        V, T = degenerate()[name]
        gram = Gram.from_data(V, T)
        for penalty, radius, loss in MIXED:
            ball = None if radius is None else Ball(slice(0, V.shape[1] // 2), radius)
            problem = RowProblem(gram, Penalty(**penalty), ball, loss)
            solution = self.check(problem, V, T, max_iterations=100)
            if self.exact and not solution.solved.all():
                self.check_solved(problem, V, T, tol=1e-4)
            dead = gram.G.diagonal() == 0
            assert not solution.W[:, dead].any()

    @pytest.mark.parametrize("decay", [2, 4, 6, 8])
    def test_bad_conditioning_is_solved_or_admitted(self, decay):
        """9: condition numbers 1e2 to 1e11."""
        for name, ball, loss in (("l1", False, "squared"), ("l0+l2", True, "squared"), ("l1", True, "root")):
            case = known(PENALTIES[name], ball=ball, loss=loss, decay=decay)
            solution = self.check(case.problem, case.V, case.T, max_iterations=100)
            optimum = judge(case.problem, case.V, case.T, case.W).primal
            slack = rounding(case.problem, solution.W) + rounding(case.problem, case.W)
            assert ((solution.objective - solution.gap).numpy() <= optimum + slack).all()

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("ball", [False, True], ids=["free", "ball"])
    def test_units_of_features_and_targets_cancel(self, ball, loss):
        """10: powers of two change no bit; 1e±147 on the features, 1e±60 on both, no answer."""
        case = known(PENALTIES["l0+l1+l2"], ball=ball, loss=loss, scaled=False)
        terms, old = case.problem.terms, case.problem.ball
        l0, l1, l2 = (float(x[0]) for x in (terms.l0, terms.l1, terms.l2))
        base = self.solve(case.problem)
        near, far = [(20, 0), (-20, 30), (15, -40)], [(490, 0), (-490, 0), (200, 200), (-200, 200)]
        for v, t in near + far:
            a, b = 2.0**v, 2.0**t
            c = b if loss == "squared" else 1.0
            limit = old and Ball(old.features, terms.radius[:, 0] * (b / a), old.weights)
            penalty = Penalty(l0 * b * c, l1 * a * c, l2 * a * a * c / b)
            scaled = RowProblem(Gram.from_data(case.V * a, case.T * b), penalty, limit, loss)
            solution = self.solve(scaled)
            assert solution.status == base.status
            if (v, t) in near:
                assert torch.equal(solution.W * a / b, base.W)
                assert torch.equal(solution.gap / (b * c), base.gap)
            else:
                error = 10 * self.tol * float(base.objective.max())
                assert torch.equal(solution.W != 0, base.W != 0)
                torch.testing.assert_close(solution.objective / (b * c), base.objective, rtol=0, atol=error)

    def test_units_of_each_feature_cancel(self):
        """11: with scales that follow the features, a spread of 1e±8 is the same problem."""
        V, T, spread = normal(30, 9, seed=0), normal(30, 3, seed=1), 10 ** torch.linspace(-8, 8, 9).double()
        for loss in LOSSES:
            weights = uniform(6, seed=2, low=0.5, high=2)
            plain = RowProblem(
                Gram.from_data(V, T), Penalty(0.01, 0.05, 0.1), Ball(slice(0, 6), 0.4, weights), loss
            )
            spreaded = RowProblem(
                Gram.from_data(V * spread, T),
                Penalty(0.01, 0.05, 0.1, scales=spread),
                Ball(slice(0, 6), 0.4, weights * spread[:6]),
                loss,
            )
            one = self.check_solved(plain, V, T)
            two = self.check_solved(spreaded, V * spread, T)
            torch.testing.assert_close(two.W * spread, one.W, rtol=0, atol=1e-3 * math.sqrt(self.tol / 1e-9))
            torch.testing.assert_close(two.objective, one.objective, rtol=10 * self.tol, atol=0)

    def test_no_rows(self):
        """15."""
        for N in (0, 4):
            V, T = normal(10, N, seed=0), torch.zeros(10, 0).double()
            solution = self.check(RowProblem(Gram.from_data(V, T), Penalty(l1=0.1)), V, T)
            assert solution.status == () and solution.W.shape == (0, N)

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("name", PENALTIES)
    def test_radii(self, name, loss):
        """16: none, tiny, large, infinite, one per row."""
        V, T = normal(30, 8, seed=0), normal(30, 5, seed=1)
        gram, inside = Gram.from_data(V, T), slice(0, 5)
        # without a penalty, only the radius bounds what the rounding of a moment costs
        large = 1e3 if name == "none" else 1e12
        radii = torch.tensor([0.0, 1e-12, 0.2, large, math.inf], dtype=torch.float64)
        problem = RowProblem(gram, Penalty(**PENALTIES[name]), Ball(inside, radii), loss)
        solution = self.check_solved(problem, V, T)
        assert not solution.W[0, inside].any()
        assert (solution.multiplier[3:] == 0).all()
        free = self.check_solved(RowProblem(gram, Penalty(**PENALTIES[name]), None, loss), V, T)
        torch.testing.assert_close(solution.objective[3:], free.objective[3:], rtol=10 * self.tol, atol=0)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_a_ball_that_touches_the_free_optimum(self, loss):
        """17: active with multiplier 0."""
        for name in ("l1", "l0+l2", "ridge"):
            case = known(PENALTIES[name], loss=loss, scaled=False)
            touching = RowProblem(
                case.problem.gram,
                case.problem.penalty,
                Ball(slice(0, 24), case.W.abs().sum(1)),
                loss,
            )
            solution = self.check_solved(touching, case.V, case.T)
            self.near(solution, Case(touching, case.V, case.T, case.W, case.mu))

    @pytest.mark.parametrize("loss", LOSSES)
    def test_limits_of_the_penalty(self, loss):
        """18: each coefficient to 0 is the problem without it."""
        V, T = normal(30, 8, seed=0), normal(30, 3, seed=1)
        gram = Gram.from_data(V, T)
        pairs = [
            (dict(l1=0.1, l2=1e-13), dict(l1=0.1)),
            (dict(l1=1e-13, l2=0.1), dict(l2=0.1)),
            (dict(l0=1e-26, l2=0.1), dict(l2=0.1)),
            (dict(l2=1e-13), dict()),
            # much smaller, and rounding of the moments decides how far θ is scaled back
            (dict(l1=1e-6), dict()),
        ]
        for small, limit in pairs:
            one = self.check_solved(RowProblem(gram, Penalty(**small), loss=loss), V, T)
            two = self.check_solved(RowProblem(gram, Penalty(**limit), loss=loss), V, T)
            torch.testing.assert_close(one.objective, two.objective, rtol=10 * self.tol, atol=1e-5)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_weights_on_the_knee_and_moments_on_the_threshold(self, loss):
        """19: every tie there is, at once; Newton must not cycle."""
        for name, ball in itertools.product(("l0+l2", "l0+l1+l2", "l1"), (False, True)):
            case = known(PENALTIES[name], ball=ball, loss=loss, ties=True)
            solution = self.check_solved(case.problem, case.V, case.T)
            self.near(solution, case)

    @pytest.mark.parametrize("mixed", MIXED)
    def test_gap_is_honest_after_every_iteration(self, mixed):
        """21, 31: gap ≥ true suboptimality and weak duality wherever it stops."""
        penalty, radius, loss = mixed
        case = known(penalty, ball=radius is not None, loss=loss)
        optimum = judge(case.problem, case.V, case.T, case.W).primal
        for most in (0, 1, 2, 5, 12, 25, 30):
            solution = self.check(case.problem, case.V, case.T, max_iterations=most, tol=1e-13)
            slack = rounding(case.problem, solution.W)
            assert ((solution.objective - solution.gap).numpy() <= optimum + slack).all()
            assert (solution.iterations <= most).all()
        start = self.check(case.problem, case.V, case.T, max_iterations=0)
        assert not start.iterations.any()

    def test_max_iterations_is_said(self):
        case = known(PENALTIES["l0+l2"], ball=True, decay=1.0)
        solution = self.check(case.problem, case.V, case.T, max_iterations=1, tol=1e-12)
        assert set(solution.status) == {Status.MAX_ITERATIONS}
        near = self.check(case.problem, case.V, case.T, tol=float(solution.gap.min()) / 1e4, max_iterations=0)
        assert Status.SOLVED not in near.status

    def test_time_limit(self):
        """22: feasible weights, a valid gap, and no crash."""
        V, T = features(200, 40, 1.5, seed=0), normal(200, 70, seed=1)
        problem = RowProblem(Gram.from_data(V, T), Penalty(l1=0.01), Ball(slice(0, 30), 0.5))
        solution = self.check(problem, V, T, time_limit=1e-10)
        assert Status.TIME_LIMIT in solution.status
        assert set(solution.status) <= {Status.TIME_LIMIT, Status.SOLVED}
        assert self.check_solved(problem, V, T, time_limit=1e6).W.any()

    @pytest.mark.parametrize("stage", [1, 2, 4, 6])
    def test_stopped_and_taken_up_again(self, stage):
        """23, 24: bit for bit what it would have been."""
        V, T = features(60, 20, 1.5, seed=0), normal(60, 70, seed=1)
        # rows of one tile that end at different times
        l1 = 10 ** uniform(70, seed=2, low=-4, high=-1)
        problem = RowProblem(Gram.from_data(V, T), Penalty(l1=l1), Ball(slice(0, 12), 0.7))
        whole = self.solve(problem, max_iterations=150, tol=1e-7)
        calls = itertools.count(1)
        stopped = self.check(problem, V, T, max_iterations=150, tol=1e-7, callback=lambda _: next(calls) >= stage)
        assert set(stopped.status) <= {Status.INTERRUPTED, Status.SOLVED}
        resumed = self.solve(problem, max_iterations=150, tol=1e-7, warm_start=pickle.loads(pickle.dumps(stopped)))
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

    @pytest.mark.parametrize("loss", LOSSES)
    def test_warm_start_from_the_optimum(self, loss):
        """25: nothing left to do."""
        for name, ball in itertools.product(("l1", "l0+l2", "ridge"), (False, True)):
            case = known(PENALTIES[name], ball=ball, loss=loss)
            first = self.check_solved(case.problem, case.V, case.T)
            again = self.check_solved(case.problem, case.V, case.T, warm_start=first)
            assert (again.iterations <= 1).all()
            torch.testing.assert_close(again.multiplier, first.multiplier, rtol=1e-3, atol=1e-6)
            exact = self.check_solved(case.problem, case.V, case.T, warm_start=case.W)
            assert (exact.iterations <= 1).all()

    def test_any_warm_start_ends_at_the_optimum(self):
        case = known(PENALTIES["l0+l2"], ball=True)
        outside = 1e3 * normal(*case.W.shape, seed=9)
        self.near(self.check_solved(case.problem, case.V, case.T, warm_start=outside), case)

    def test_twice_the_same_bits_alone_or_in_company(self):
        """26: once more, permuted rows, a part of them."""
        V, T = features(60, 20, 1.0, seed=0), normal(60, 70, seed=1)
        problem = RowProblem(Gram.from_data(V, T), Penalty(0.01, 0.02, 0.1), Ball(slice(0, 12), 0.5))
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

    @pytest.mark.parametrize("loss", LOSSES)
    def test_permuted_and_mirrored_features(self, loss):
        """27."""
        V, T = normal(30, 9, seed=0), normal(30, 3, seed=1)
        order, sign = torch.randperm(9, generator=torch.Generator().manual_seed(2)), normal(9, seed=3).sign()
        scales, weights = uniform(9, seed=4, low=0.5, high=2), uniform(9, seed=5, low=0.5, high=2)
        inside = torch.tensor([0, 2, 3, 7])
        place = torch.tensor([order.tolist().index(j) for j in inside.tolist()])
        one = self.check_solved(
            RowProblem(
                Gram.from_data(V, T),
                Penalty(0.01, 0.03, 0.1, scales),
                Ball(inside, 0.3, weights[inside]),
                loss,
            ),
            V,
            T,
        )
        moved = V[:, order] * sign
        two = self.check_solved(
            RowProblem(
                Gram.from_data(moved, T),
                Penalty(0.01, 0.03, 0.1, scales[order]),
                Ball(place, 0.3, weights[inside]),
                loss,
            ),
            moved,
            T,
        )
        error = 1e-4 * math.sqrt(self.tol / 1e-9)
        torch.testing.assert_close(two.W, one.W[:, order] * sign, rtol=0, atol=error)
        torch.testing.assert_close(two.objective, one.objective, rtol=10 * self.tol, atol=0)

    def test_equal_features_are_as_good_as_one(self):
        """7: l1 does not see how a weight is split between equal columns."""
        V, T = normal(30, 6, seed=0), normal(30, 3, seed=1)
        twice = torch.cat([V, V, -V], 1)
        for loss in LOSSES:
            one = self.check_solved(RowProblem(Gram.from_data(V, T), Penalty(l1=0.1), loss=loss), V, T)
            two = self.check_solved(
                RowProblem(Gram.from_data(twice, T), Penalty(l1=0.1), loss=loss), twice, T
            )
            torch.testing.assert_close(two.objective, one.objective, rtol=10 * self.tol, atol=0)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_optimum_is_monotone(self, loss):
        """29: a dearer penalty or a smaller ball never lowers it."""
        V, T = normal(30, 8, seed=0), normal(30, 3, seed=1)
        gram = Gram.from_data(V, T)

        def best(l0: float = 0.01, l1: float = 0.02, l2: float = 0.1, radius: float = 0.5) -> Tensor:
            problem = RowProblem(gram, Penalty(l0, l1, l2), Ball(slice(0, 5), radius), loss)
            return self.check_solved(problem, V, T).objective

        slack = 1 + 2 * self.tol * 10
        for name, values in {
            "l0": (0.0, 1e-3, 0.01, 0.1),
            "l1": (0.0, 0.01, 0.1, 1.0),
            "l2": (0.01, 0.1, 1.0),
            "radius": (math.inf, 1.0, 0.3, 0.1, 0.0),
        }.items():
            optima = [best(**{name: value}) for value in values]
            for low, high in itertools.pairwise(optima):
                assert (low <= high * slack).all()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_a_free_constant_feature_is_centring(self, loss):
        V, T = 3 + normal(40, 8, seed=0), 5 + normal(40, 3, seed=1)
        wide = torch.cat([V, torch.ones(40, 1).double()], 1)
        scales = torch.cat([torch.ones(8), torch.zeros(1)]).double()
        for penalty, ball in itertools.product(PENALTIES.values(), (None, Ball(slice(0, 5), 0.2))):
            biased = RowProblem(Gram.from_data(wide, T), Penalty(**penalty, scales=scales), ball, loss)
            v, t = V - V.mean(0), T - T.mean(0)
            centred = RowProblem(Gram.from_data(v, t), Penalty(**penalty), ball, loss)
            one, two = self.check_solved(biased, wide, T), self.check_solved(centred, v, t)
            torch.testing.assert_close(one.objective, two.objective, rtol=100 * self.tol, atol=0)
            level = T.mean(0) - one.W[:, :8] @ V.mean(0)
            torch.testing.assert_close(one.W[:, 8], level, rtol=1e-9, atol=1e-9)

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

    def test_rooted_loss_with_no_residual(self):
        """The loss has a corner at r = 0: solved there, or an honest gap."""
        W, options = normal(3, 8, seed=0), dict(tol=1e-5, max_iterations=100)
        for m, l1 in itertools.product((30, 5), (0.0, 1e-3, 0.1)):
            V = normal(m, 8, seed=1)
            T = V @ W.T
            for ball in (None, Ball(slice(0, 8), W.abs().sum(1))):
                self.check(RowProblem(Gram.from_data(V, T), Penalty(l1=l1), ball, "root"), V, T, **options)

    @given(problems())
    @settings(
        max_examples=50,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    def test_whatever_it_says_is_true(self, drawn):
        """33."""
        problem, V, T = drawn
        solution = self.check(problem, V, T, tol=1e-6, max_iterations=60)
        assert Status.NUMERICAL_ERROR not in solution.status
