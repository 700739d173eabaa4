"""What every solver of `RowProblem` must do; `test_solvers` inherits it once per solver.

The numbers are those of the hard cases the suites were drawn from (what SCS, OSQP, Clarabel, HiGHS,
scikit-learn, celer and skglm test themselves on); `degenerate_suite` and `loop_suite` hold more.
In none of them, and why:

* 1, 2 (bad numbers) in data that all rows share: `RowProblem` refuses them (test_problem).
* 12, 13, 14 (dtypes, strides): a `Gram` is float64 and contiguous whatever it is fed (test_gram).
* 28 (a Gram that does not fit the data): only the Gram is given, so nothing can disagree with it.
* 32 (safe rules): no solver screens.
* 34 (out of memory): asked for before it is taken (test_memory, test_working_set).
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cases import LOSSES, PENALTIES, Case, known, normal, uniform
from certified import judge
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Solution
from simplicit.solvers import Settings, solve

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

FREE = list(zip(PENALTIES, itertools.cycle(LOSSES), strict=False))
BALL = list(zip(PENALTIES, itertools.cycle(LOSSES[::-1]), strict=False))
"""Each penalty with one loss, and with the other inside the ball."""


def rounding(problem: RowProblem, W: Tensor) -> np.ndarray:
    """What float64 moments can lose of an objective, per row."""
    size = W.abs() @ problem.gram.G.diagonal().sqrt()
    lost = 1e-14 * (problem.gram.t2 + size**2)
    if problem.loss == "squared":
        return lost.numpy()
    q = (problem.gram.t2 - ((problem.gram.R + problem.gradient_moments(W)) * W).sum(1)).clamp_min(0)
    return (torch.sqrt(q + lost) - torch.sqrt(q) + 1e-14 * torch.sqrt(q)).numpy()


class SolverSuite:
    """Inherit, and override what the solver is."""

    settings = Settings()
    """How the solver goes about it."""

    tol = 1e-9
    max_iterations = 400
    hardest = 2.0
    """Decay of the Gram's spectrum up to which every row must be solved."""

    exact = True
    """Whether degenerate rows must be solved, too, and not just be reported honestly."""

    def solve(self, problem: RowProblem, **options) -> Solution:
        defaults: dict[str, Any] = {"tol": self.tol, "max_iterations": self.max_iterations}
        defaults["settings"] = self.settings
        return solve(problem, **defaults | options)

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
        assert (
            abs(solution.objective.numpy() - verdict.primal) <= slack + 1e-13 * verdict.primal
        ).all()
        assert (solution.multiplier >= 0).all() and (solution.gap >= 0).all()
        # weak duality against every feasible point at hand: the answer itself, and 0, whose
        # objective is the unit
        bound = (solution.objective - solution.gap).numpy()
        assert (bound <= verdict.primal + slack).all()
        assert (bound <= verdict.unit * (1 + 1e-12) + slack).all()
        solved = solution.solved.numpy()
        assert (solution.gap.numpy() <= tol * verdict.unit)[solved].all()
        assert (verdict.gaps(solved) <= (tol * verdict.unit + slack)[solved]).all()
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

    @pytest.mark.parametrize(
        ("name", "loss", "ball"),
        [(*pair, False) for pair in FREE] + [(*pair, True) for pair in BALL],
    )
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

    @pytest.mark.parametrize(("ball", "loss"), [(True, "squared"), (False, "root")])
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
                torch.testing.assert_close(
                    solution.objective / (b * c), base.objective, rtol=0, atol=error
                )

    def test_units_of_each_feature_cancel(self):
        """11: with scales that follow the features, a spread of 1e±8 is the same problem."""
        V, T, spread = (
            normal(30, 9, seed=0),
            normal(30, 3, seed=1),
            10 ** torch.linspace(-8, 8, 9).double(),
        )
        for loss in LOSSES:
            weights = uniform(6, seed=2, low=0.5, high=2)
            plain = RowProblem(
                Gram.from_data(V, T),
                Penalty(0.01, 0.05, 0.1),
                Ball(slice(0, 6), 0.4, weights),
                loss,
            )
            spreaded = RowProblem(
                Gram.from_data(V * spread, T),
                Penalty(0.01, 0.05, 0.1, scales=spread),
                Ball(slice(0, 6), 0.4, weights * spread[:6]),
                loss,
            )
            one = self.check_solved(plain, V, T)
            two = self.check_solved(spreaded, V * spread, T)
            torch.testing.assert_close(
                two.W * spread, one.W, rtol=0, atol=1e-3 * math.sqrt(self.tol / 1e-9)
            )
            torch.testing.assert_close(two.objective, one.objective, rtol=10 * self.tol, atol=0)

    @pytest.mark.parametrize("mixed", MIXED)
    def test_gap_is_honest_after_every_iteration(self, mixed):
        """21, 31: gap ≥ true suboptimality and weak duality wherever it stops."""
        penalty, radius, loss = mixed
        case = known(penalty, ball=radius is not None, loss=loss)
        optimum = judge(case.problem, case.V, case.T, case.W).primal
        for most in (0, 1, 5, 12, 30):
            solution = self.check(case.problem, case.V, case.T, max_iterations=most, tol=1e-13)
            slack = rounding(case.problem, solution.W)
            assert ((solution.objective - solution.gap).numpy() <= optimum + slack).all()
            assert (solution.iterations <= most).all()
        start = self.check(case.problem, case.V, case.T, max_iterations=0)
        assert not start.iterations.any()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_warm_start_from_the_optimum(self, loss):
        """25: nothing left to do."""
        for name, ball in (("l1", False), ("l0+l2", True), ("ridge", True)):
            case = known(PENALTIES[name], ball=ball, loss=loss)
            first = self.check_solved(case.problem, case.V, case.T)
            again = self.check_solved(case.problem, case.V, case.T, warm_start=first)
            assert (again.iterations <= 1).all()
            torch.testing.assert_close(again.multiplier, first.multiplier, rtol=1e-3, atol=1e-6)
            exact = self.check_solved(case.problem, case.V, case.T, warm_start=case.W)
            assert (exact.iterations <= 1).all()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_permuted_and_mirrored_features(self, loss):
        """27."""
        V, T = normal(30, 9, seed=0), normal(30, 3, seed=1)
        order, sign = (
            torch.randperm(9, generator=torch.Generator().manual_seed(2)),
            normal(9, seed=3).sign(),
        )
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
            one = self.check_solved(
                RowProblem(Gram.from_data(V, T), Penalty(l1=0.1), loss=loss), V, T
            )
            two = self.check_solved(
                RowProblem(Gram.from_data(twice, T), Penalty(l1=0.1), loss=loss), twice, T
            )
            torch.testing.assert_close(two.objective, one.objective, rtol=10 * self.tol, atol=0)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_optimum_is_monotone(self, loss):
        """29: a dearer penalty or a smaller ball never lowers it."""
        V, T = normal(30, 8, seed=0), normal(30, 3, seed=1)
        gram = Gram.from_data(V, T)

        def best(
            l0: float = 0.01, l1: float = 0.02, l2: float = 0.1, radius: float = 0.5
        ) -> Tensor:
            problem = RowProblem(gram, Penalty(l0, l1, l2), Ball(slice(0, 5), radius), loss)
            return self.check_solved(problem, V, T).objective

        slack = 1 + 2 * self.tol * 10
        for name, values in {
            "l0": (0.0, 0.1),
            "l1": (0.0, 0.1),
            "l2": (0.01, 1.0),
            "radius": (math.inf, 0.3, 0.0),
        }.items():
            optima = [best(**{name: value}) for value in values]
            for low, high in itertools.pairwise(optima):
                assert (low <= high * slack).all()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_a_free_constant_feature_is_centring(self, loss):
        V, T = 3 + normal(40, 8, seed=0), 5 + normal(40, 3, seed=1)
        wide = torch.cat([V, torch.ones(40, 1).double()], 1)
        scales = torch.cat([torch.ones(8), torch.zeros(1)]).double()
        limit = Ball(slice(0, 5), 0.2)
        for name, ball in (("l1", None), ("l0+l2", limit), ("none", None), ("none", limit)):
            penalty = PENALTIES[name]
            biased = RowProblem(
                Gram.from_data(wide, T), Penalty(**penalty, scales=scales), ball, loss
            )
            v, t = V - V.mean(0), T - T.mean(0)
            centred = RowProblem(Gram.from_data(v, t), Penalty(**penalty), ball, loss)
            one, two = self.check_solved(biased, wide, T), self.check_solved(centred, v, t)
            torch.testing.assert_close(one.objective, two.objective, rtol=100 * self.tol, atol=0)
            level = T.mean(0) - one.W[:, :8] @ V.mean(0)
            torch.testing.assert_close(one.W[:, 8], level, rtol=1e-9, atol=1e-9)
