"""Degenerate and drawn problems: solved, or reported as what they are; see `solver_suite`."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cases import LOSSES, PENALTIES, Case, degenerate, known, normal, uniform
from certified import judge
from simplicit.convex.duality import Loss
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Status
from solver_suite import FREE, MIXED, SolverSuite, rounding

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
    scales = torch.tensor(
        draw(st.lists(st.sampled_from([0.0, 1e-8, 1.0, 1.0, 2.0]), min_size=N, max_size=N))
    )
    radius = draw(st.sampled_from([None, 0.0, 1e-8, 0.5, 1e8, math.inf]))
    ball = None if radius is None else Ball(slice(0, draw(st.integers(0, N))), radius)
    loss: Loss = draw(st.sampled_from(LOSSES))
    penalty = Penalty(l0, l1, l2, scales=scales.double())
    return RowProblem(Gram.from_data(V, T), penalty, ball, loss), V, T


class DegenerateSuite(SolverSuite):
    """Zeros, ties, limits and chance."""

    mixed = MIXED
    """What degenerate data is solved with."""

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
        for penalty, radius, loss in self.mixed:
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
        hard: list[tuple[str, bool, Loss]] = [
            ("l1", False, "squared"),
            ("l0+l2", True, "squared"),
            ("l1", True, "root"),
        ]
        for name, ball, loss in hard:
            case = known(PENALTIES[name], ball=ball, loss=loss, decay=decay)
            solution = self.check(case.problem, case.V, case.T, max_iterations=100)
            optimum = judge(case.problem, case.V, case.T, case.W).primal
            slack = rounding(case.problem, solution.W) + rounding(case.problem, case.W)
            assert ((solution.objective - solution.gap).numpy() <= optimum + slack).all()

    @pytest.mark.parametrize(("name", "loss"), FREE)
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
        torch.testing.assert_close(
            solution.objective[3:], free.objective[3:], rtol=10 * self.tol, atol=0
        )

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
        for name, ball in (("l0+l2", False), ("l0+l2", True), ("l0+l1+l2", True), ("l1", False)):
            case = known(PENALTIES[name], ball=ball, loss=loss, ties=True)
            solution = self.check_solved(case.problem, case.V, case.T)
            self.near(solution, case)

    def test_rooted_loss_with_no_residual(self):
        """The loss has a corner at r = 0: solved there, or an honest gap."""
        W, options = normal(3, 8, seed=0), dict(tol=1e-5, max_iterations=100)
        for m, l1 in itertools.product((30, 5), (0.0, 1e-3, 0.1)):
            V = normal(m, 8, seed=1)
            T = V @ W.T
            for ball in (None, Ball(slice(0, 8), W.abs().sum(1))):
                self.check(
                    RowProblem(Gram.from_data(V, T), Penalty(l1=l1), ball, "root"), V, T, **options
                )

    @pytest.mark.parametrize("radius", [0.7, 0.9, 2.0])
    def test_rooted_rows_nearly_matched_inside_a_ball(self, radius):
        """Singular supports without curvature: only rounds that stop at a sign's change end."""
        V, T = degenerate()["fewer samples than features"]
        most = self.max_iterations if self.exact else 100
        for name in ("l0+l2", "l0+l1+l2"):
            problem = RowProblem(
                Gram.from_data(V, T), Penalty(**PENALTIES[name]), Ball(slice(0, 4), radius), "root"
            )
            solution = self.check(problem, V, T, max_iterations=most)
            assert solution.solved.all() or not self.exact

    def test_rooted_rows_matched_along_weak_directions(self):
        """Rank 20 of 80, most of it 1e-5 and less: careful rounds must move every feature."""
        if not self.exact:
            return
        left, right = (torch.linalg.qr(normal(n, 20, seed=n))[0] for n in (40, 80))
        weak = 10 ** torch.linspace(-2.5, -4.5, 17, dtype=torch.float64)
        V = left * torch.cat([torch.ones(3).double(), weak]) @ right.T
        V /= V.square().mean(0).sqrt()
        T = V @ normal(80, 2, seed=2)
        T = T / T.square().mean(0).sqrt() + 3e-3 * normal(40, 2, seed=3)
        scales = 10 ** uniform(80, seed=4, low=-1.3)
        problem = RowProblem(Gram.from_data(V, T), Penalty(1e-9, 0.0, 0.1, scales), None, "root")
        self.check_solved(problem, V, T, tol=1e-6, max_iterations=2000)

    @given(problems())
    @settings(
        max_examples=40,
        phases=(Phase.explicit, Phase.generate),
        derandomize=True,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    def test_whatever_it_says_is_true(self, drawn):
        """33."""
        problem, V, T = drawn
        solution = self.check(problem, V, T, tol=1e-6, max_iterations=60)
        assert Status.NUMERICAL_ERROR not in solution.status
