import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Lasso, Ridge

import naive
from cases import PENALTIES, features, known, normal
from degenerate_suite import DegenerateSuite
from fista import Fista
from loop_suite import LoopSuite
from shapes import unchecked
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem, mean_square
from simplicit.convex.scaled import ScaledRows
from simplicit.convex.shared import ScaledGram
from simplicit.convex.solution import Solution, Status
from simplicit.errors import InputError
from simplicit.solvers import Settings, solve
from simplicit.solvers.methods import newton
from simplicit.solvers.methods.admm import Admm
from solver_suite import MIXED, SolverSuite


class TestSolve(LoopSuite, DegenerateSuite):
    """The solver as it is shipped: ADMM in float32, then Newton."""


class FirstOrder(SolverSuite):
    """No Newton: the method must close the gap by itself, on well-conditioned problems."""

    tol = 1e-5
    max_iterations = 1000
    hardest = 0.5
    exact = False

    def solve(self, problem: RowProblem, **options) -> Solution:
        with unchecked():  # up to a thousand steps, of the shapes that `TestSolve` has
            return super().solve(problem, **options)


class TestAdmm(FirstOrder, DegenerateSuite):
    settings = Settings(methods=(Admm(dtype=torch.float64),), newton_rounds=0)
    mixed = MIXED[1:4]


class TestFista(FirstOrder):
    """The twin, whose state the loop holds as it holds any other."""

    settings = Settings(methods=(Fista(),), newton_rounds=0)


class TestHandOver:
    """Newton after a few steps of either method."""

    @pytest.mark.parametrize("name", PENALTIES)
    def test_both_first_order_methods_lead_to_the_same_row(self, name):
        case = known(PENALTIES[name], ball=True, decay=1.0)
        by_admm = solve(case.problem, tol=1e-10)
        by_fista = solve(case.problem, tol=1e-10, settings=Settings(methods=(Fista(),)))
        assert by_admm.solved.all() and by_fista.solved.all()
        torch.testing.assert_close(by_fista.objective, by_admm.objective, rtol=1e-9, atol=0)
        torch.testing.assert_close(by_fista.multiplier, by_admm.multiplier, rtol=1e-4, atol=1e-6)

    def test_newton_needs_few_rounds(self):
        """A ceiling, so that slow is a failure."""
        for name in ("l1", "l0+l2", "elastic"):
            for ball in (False, True):
                case = known(PENALTIES[name], ball=ball, decay=1.0, N=40, m=100)
                assert solve(case.problem, tol=1e-9).iterations.max() <= 60


class TestCareful:
    """Newton rounds that end where the first sign changes."""

    @pytest.mark.parametrize("name", ["l1", "l0+l2", "l0+l1+l2"])
    @pytest.mark.parametrize("ball", [False, True], ids=["free", "ball"])
    def test_every_round_lowers_the_objective_down_to_the_optimum(self, name, ball):
        case = known(PENALTIES[name], ball=ball, decay=2.0)
        problem = ScaledRows.of(case.problem, ScaledGram(case.problem))
        V = problem.scale(torch.zeros_like(case.W))
        mu = torch.zeros(len(V), 1, dtype=torch.float64)
        state = newton.init(problem, V, mu, mu + 1)

        def objective(V: torch.Tensor) -> torch.Tensor:
            return 0.5 * mean_square(problem.gram, V, problem.moments(V)) + problem.terms.value(V)

        for _ in range(150):
            old, state = state, newton.step(problem, state, len(V), careful=True)
            assert (objective(state.V) <= objective(old.V) + 1e-14).all()
            inside = problem.terms.ball_norm(state.V) <= problem.terms.radius[:, 0] * (1 + 1e-12)
            assert inside.all()
        best = objective(problem.scale(case.W))
        torch.testing.assert_close(objective(state.V), best, rtol=1e-8, atol=1e-10)


class TestFistaAlone:
    def scaled(self, penalty: str, **options) -> tuple[ScaledRows, torch.Tensor]:
        case = known(PENALTIES[penalty], **options)
        problem = ScaledRows.of(case.problem, ScaledGram(case.problem))
        return problem, problem.scale(torch.zeros_like(case.W))

    @pytest.mark.parametrize("name", PENALTIES)
    def test_the_objective_falls_below_that_of_a_plain_gradient_method(self, name):
        """The rate of acceleration, O(1/k²): 4 ‖w₀ − w*‖² L / (k + 1)² (Beck & Teboulle 2009)."""
        case = known(PENALTIES[name], decay=2.0, scaled=False)
        problem = ScaledRows.of(case.problem, ScaledGram(case.problem))
        best = problem.scale(case.W)
        method, V = Fista(), torch.zeros_like(best)
        state = method.init(problem, V)
        for _ in range(100):
            state = method.step(problem, state)
        gram, terms = problem.gram, problem.terms
        values = [
            0.5 * mean_square(gram, W, problem.moments(W)) + terms.value(W) for W in (state.W, best)
        ]
        bound = 2 * state.L * (best * best).sum(1) / 101**2
        assert (values[0] - values[1] <= bound).all()

    def test_it_stays_at_the_optimum(self):
        for loss in ("squared", "root"):
            case = known(PENALTIES["l0+l1+l2"], ball=True, loss=loss)
            problem = ScaledRows.of(case.problem, ScaledGram(case.problem))
            best = problem.scale(case.W)
            state = Fista().init(problem, best)
            for _ in range(5):
                state = Fista().step(problem, state)
            torch.testing.assert_close(state.W, best, rtol=0, atol=1e-12)

    def test_momentum_starts_again_row_by_row(self):
        problem, V = self.scaled("ridge", decay=2.0)
        method = Fista()
        state, restarts = method.init(problem, V), torch.zeros(len(V), 1)
        for _ in range(200):
            state = method.step(problem, state)
            restarts += state.tau == 1
        assert (restarts > 0).all() and len(restarts.unique()) > 1


@pytest.mark.parametrize("n", [3, 1500])
def test_submatrices_of_the_gram(n):
    V = normal(20, n, seed=0)
    design = ScaledGram(RowProblem(Gram.from_data(V, V[:, :1]), Penalty(l1=1.0)))
    index = torch.tensor([[0, 2, n - 1], [1, n, n]])
    first, second = design.submatrices(index)
    assert torch.equal(first, design.G[index[0]][:, index[0]])
    assert float(second[0, 0]) == float(design.G[1, 1])
    assert not second[1:].any() and not second[:, 1:].any()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return features(60, 12, 1.0, seed=0), normal(60, 3, seed=1)


@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_l1_is_the_lasso_of_scikit_learn(alpha):
    V, T = data()
    mine = solve(RowProblem(Gram.from_data(V, T), Penalty(l1=alpha)), tol=1e-10)
    theirs = Lasso(alpha=alpha, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(
        V.numpy(), T.numpy()
    )
    np.testing.assert_allclose(mine.W.numpy(), theirs.coef_, atol=1e-5)
    assert ((mine.W != 0).numpy() == (theirs.coef_ != 0)).all()


@pytest.mark.parametrize("ratio", [0.2, 0.9])
def test_l1_and_l2_are_the_elastic_net_of_scikit_learn(ratio):
    V, T = data()
    penalty = Penalty(l1=0.1 * ratio, l2=0.1 * (1 - ratio))
    mine = solve(RowProblem(Gram.from_data(V, T), penalty), tol=1e-10)
    theirs = ElasticNet(alpha=0.1, l1_ratio=ratio, fit_intercept=False, tol=1e-12, max_iter=100_000)
    np.testing.assert_allclose(mine.W.numpy(), theirs.fit(V.numpy(), T.numpy()).coef_, atol=1e-5)


def test_l2_is_the_ridge_of_scikit_learn():
    V, T = data()
    mine = solve(RowProblem(Gram.from_data(V, T), Penalty(l2=0.1)), tol=1e-12)
    theirs = Ridge(alpha=0.1 * len(V), fit_intercept=False).fit(V.numpy(), T.numpy())
    np.testing.assert_allclose(mine.W.numpy(), theirs.coef_, atol=1e-6)


def test_a_constant_feature_of_scale_zero_is_the_intercept_of_scikit_learn():
    V, T = data()
    V, T = V + 2, T - 3
    wide = torch.cat([V, torch.ones(60, 1).double()], 1)
    scales = torch.cat([torch.ones(12), torch.zeros(1)]).double()
    mine = solve(RowProblem(Gram.from_data(wide, T), Penalty(l1=0.05, scales=scales)), tol=1e-10)
    theirs = Lasso(alpha=0.05, fit_intercept=True, tol=1e-12, max_iter=100_000).fit(
        V.numpy(), T.numpy()
    )
    np.testing.assert_allclose(mine.W[:, :12].numpy(), theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(mine.W[:, 12].numpy(), theirs.intercept_, atol=1e-5)


def test_lasso_is_that_of_plain_coordinate_descent():
    V, T = data()
    gram = Gram.from_data(V, T)
    mine = solve(RowProblem(gram, Penalty(l1=0.05)), tol=1e-10)
    slow = naive.lasso(gram.G, gram.R[1], 0.05, sweeps=300)
    torch.testing.assert_close(mine.W[1], slow, rtol=0, atol=1e-5)


def test_a_design_can_be_used_again():
    V, T = data()
    gram = Gram.from_data(V, T)
    first = RowProblem(gram, Penalty(l1=0.1))
    design = ScaledGram(first)
    for l1 in (0.1, 0.03):
        problem = RowProblem(gram, Penalty(l1=l1))
        assert torch.equal(solve(problem, design=design).W, solve(problem).W)


def test_solutions_are_joined_and_parted():
    V, T = data()
    problem = RowProblem(Gram.from_data(V, T), Penalty(l1=0.05))
    whole = solve(problem)
    parts = [whole.rows(torch.tensor([0])), whole.rows(torch.tensor([1, 2]))]
    joined = Solution.concatenate(parts)
    assert torch.equal(joined.W, whole.W) and joined.status == whole.status
    assert whole.nonzeros.tolist() == [(row != 0).sum().item() for row in whole.W]
    assert whole.solved.all() and all(status is Status.SOLVED for status in whole.status)


WRONG = {
    "tol negative": (dict(tol=-1.0), "tol"),
    "tol nan": (dict(tol=math.nan), "tol"),
    "tol infinite": (dict(tol=math.inf), "tol"),
    "max_iterations negative": (dict(max_iterations=-1), "max_iterations"),
    "time_limit negative": (dict(time_limit=-1.0), "time_limit"),
    "time_limit nan": (dict(time_limit=math.nan), "time_limit"),
    "warm_start of another shape": (
        dict(warm_start=torch.zeros(2, 12, dtype=torch.float64)),
        r"warm_start .* \(3, 12\)",
    ),
    "warm_start nan": (
        dict(warm_start=torch.full((3, 12), math.nan, dtype=torch.float64)),
        "warm_start",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_is_named(what):
    V, T = data()
    options, name = WRONG[what]
    with pytest.raises(InputError, match=name) as caught:
        solve(RowProblem(Gram.from_data(V, T), Penalty(l1=0.05)), **options)
    assert "\n" not in str(caught.value)
