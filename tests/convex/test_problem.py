import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cases import LOSSES, PENALTIES, Case, degenerate, known, normal, uniform
from certified import judge
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.errors import InputError

EVERY = [
    pytest.param((penalty, ball, loss), id=f"{name}-{'ball' if ball else 'free'}-{loss}")
    for (name, penalty), ball, loss in itertools.product(PENALTIES.items(), (False, True), LOSSES)
]


@pytest.fixture(params=EVERY, name="case")
def _case(request):
    penalty, ball, loss = request.param
    return known(penalty, ball=ball, loss=loss)


def feasible(case: Case, seed: int, size: float) -> Tensor:
    """Weights somewhere around the optimum, inside the ball."""
    W = case.W + size * normal(*case.W.shape, seed=seed)
    return case.problem.terms.into_ball(W) if case.problem.ball else W


def unit(case: Case) -> np.ndarray:
    return judge(case.problem, case.V, case.T, case.W).unit


def test_the_constructed_optimum_is_optimal(case):
    verdict = judge(case.problem, case.V, case.T, case.W)
    assert (verdict.gap <= 1e-13 * verdict.unit).all() and (verdict.excess <= 1e-14).all()


def test_gap_vanishes_at_the_optimum(case):
    gap = case.problem.gap(case.problem.terms.into_ball(case.W)).numpy()
    assert (gap <= 1e-12 * unit(case)).all()


def test_objective_is_that_of_the_data(case):
    for seed, size in ((1, 0.0), (2, 0.3), (3, 10.0)):
        W = feasible(case, seed, size)
        verdict = judge(case.problem, case.V, case.T, W)
        np.testing.assert_allclose(case.problem.objective(W).numpy(), verdict.primal, rtol=1e-12)


def test_gap_bounds_the_true_suboptimality(case):
    """Weak duality, everywhere: objective − gap never exceeds the optimum."""
    optimum = judge(case.problem, case.V, case.T, case.W).primal
    for seed, size in enumerate((1e-6, 1e-3, 0.1, 1.0, 30.0)):
        W = feasible(case, seed, size)
        gap = case.problem.gap(W).numpy()
        primal = judge(case.problem, case.V, case.T, W).primal
        assert (primal - gap <= optimum + 1e-13 * (primal + 1)).all()
        assert (gap >= 0).all()
    zero = torch.zeros_like(case.W)
    value = case.problem.objective(zero) - case.problem.gap(zero)
    assert (value.numpy() <= optimum * (1 + 1e-13)).all()


def test_kkt_residual_is_zero_only_at_the_optimum(case):
    at_optimum = case.problem.kkt_residual(case.problem.terms.into_ball(case.W))
    assert (at_optimum <= 1e-9).all()
    assert (case.problem.kkt_residual(feasible(case, 4, 0.1)) > 1e-3).all()


def test_rows_are_problems_of_their_own(case):
    W = feasible(case, 5, 0.2)
    part = case.problem.select(torch.tensor([2, 0]))
    torch.testing.assert_close(part.gap(W[[2, 0]]), case.problem.gap(W)[[2, 0]])
    torch.testing.assert_close(part.objective(W[[2, 0]]), case.problem.objective(W)[[2, 0]])
    single = case.problem.select(slice(1, 2))
    torch.testing.assert_close(single.gap(W[1:2]), case.problem.gap(W)[1:2])


@pytest.mark.parametrize("loss", LOSSES)
def test_coefficients_may_differ_by_row(loss):
    V, T, W = normal(30, 6, seed=0), normal(30, 3, seed=1), 0.1 * normal(3, 6, seed=2)
    gram = Gram.from_data(V, T)
    l0, l1, l2 = (uniform(3, seed=3 + i, low=0.01, high=0.2) for i in range(3))
    radius = torch.tensor([0.5, 10.0, math.inf], dtype=torch.float64)
    rows = RowProblem(gram, Penalty(l0, l1, l2), Ball(slice(0, 3), radius), loss)
    for k in range(3):
        penalty = Penalty(float(l0[k]), float(l1[k]), float(l2[k]))
        alone = RowProblem(
            gram.select(rows=[k]), penalty, Ball(slice(0, 3), float(radius[k])), loss
        )
        torch.testing.assert_close(
            alone.objective(W[[k]]), rows.objective(W)[[k]], rtol=1e-13, atol=0
        )
        torch.testing.assert_close(alone.gap(W[[k]]), rows.gap(W)[[k]], rtol=1e-11, atol=1e-15)


def test_numbers_keep_their_float64_digits():
    gram = Gram.from_data(normal(30, 6, seed=0), normal(30, 3, seed=1))
    problem = RowProblem(gram, Penalty(0.1, 0.3, 1e-60), Ball(slice(0, 2), 0.99))
    for name, value in (("l0", 0.1), ("l1", 0.3), ("l2", 1e-60), ("radius", 0.99)):
        assert (getattr(problem.terms, name) == value).all()
        assert getattr(problem.terms, name).dtype == torch.float64


def test_gap_is_infinite_outside_the_ball_and_nan_where_the_weights_are():
    case = known(PENALTIES["l1"], ball=True)
    W = case.W.clone()
    W[0] *= 1.001
    W[1, 3] = math.nan
    gap = case.problem.gap(W)
    assert gap[0] == math.inf and gap[1].isnan()
    assert (gap[2:] <= 1e-12).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("where", [slice(0, 4), torch.tensor([1, 3, 7])], ids=["slice", "index"])
def test_ball_features_may_be_a_slice_or_indices(loss, where):
    V, T = normal(30, 8, seed=0), normal(30, 2, seed=1)
    weights = uniform(len(torch.arange(8)[where]), seed=2, low=0.5, high=2)
    problem = RowProblem(Gram.from_data(V, T), Penalty(l1=0.1), Ball(where, 0.4, weights), loss)
    omega = torch.zeros(8, dtype=torch.float64)
    omega[where] = weights
    assert torch.equal(problem.terms.omega, omega)
    W = torch.zeros(2, 8, dtype=torch.float64)
    W[:, 5] = 100.0
    assert torch.isfinite(problem.gap(W)).all()
    W[:, 3] = 1.0
    assert (problem.gap(W) == math.inf).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_free_feature_counts_in_neither_penalty_nor_ball(loss):
    V, T = torch.cat([normal(30, 5, seed=0), torch.ones(30, 1)], 1), normal(30, 2, seed=1)
    scales = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    problem = RowProblem(Gram.from_data(V, T), Penalty(l1=0.1, scales=scales), loss=loss)
    assert problem.free.tolist() == [False] * 5 + [True]
    W = 0.1 * normal(2, 6, seed=2)
    # the gap knows that the best level of the bias is the mean of the residual
    centred = RowProblem(
        Gram.from_data(V[:, :5] - V[:, :5].mean(0), T - T.mean(0)), Penalty(l1=0.1), loss=loss
    )
    W[:, 5] = (T - V[:, :5] @ W[:, :5].T).mean(0)
    torch.testing.assert_close(problem.gap(W), centred.gap(W[:, :5]), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(problem.objective(W), centred.objective(W[:, :5]))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_without_penalty_is_least_squares(loss):
    V, T = normal(30, 5, seed=0), normal(30, 2, seed=1)
    problem = RowProblem(Gram.from_data(V, T), Penalty(), loss=loss)
    W = torch.linalg.lstsq(V, T).solution.T
    assert (problem.gap(W) <= 1e-14).all()
    worse = problem.objective(W + 0.1) - problem.objective(W)
    assert (problem.gap(W + 0.1) >= worse * (1 - 1e-12)).all()


@pytest.mark.parametrize("kind", degenerate())
def test_gap_is_valid_on_degenerate_data(kind):
    V, T = degenerate()[kind]
    N, K = V.shape[1], T.shape[1]
    gram = Gram.from_data(V, T)
    size = gram.G.diagonal().clamp_min(1e-300).sqrt()
    for name, ball, loss in itertools.product(("l1", "l0+l2", "none"), (None, 0.0, 0.5), LOSSES):
        part = None if ball is None else Ball(slice(0, N // 2), ball)
        problem = RowProblem(gram, Penalty(**PENALTIES[name]), part, loss)
        zero = torch.zeros(K, N, dtype=torch.float64)
        W = problem.terms.into_ball(normal(K, N, seed=7) / size)
        if N:
            bound = problem.objective(zero) - problem.gap(zero)
            # the square root of a rounded residual keeps half of the digits
            tiny = 1e-12 if loss == "squared" else 1e-7
            tiny = tiny * (problem.objective(W) + problem.objective(zero))
            assert (bound <= problem.objective(W) + tiny).all()
            bound = problem.objective(W) - problem.gap(W)
            assert (bound <= problem.objective(zero) + tiny).all()


def test_the_gap_is_never_worse_than_knowing_nothing(case):
    """The dual point 0 always proves that the objective is not negative."""
    for size in (0.0, 1.0, 100.0):
        W = case.problem.terms.into_ball(size * normal(*case.W.shape, seed=8))
        assert (case.problem.gap(W) <= case.problem.objective(W) * (1 + 1e-12)).all()


def test_rooted_loss_without_residual():
    V, W = normal(30, 5, seed=0), normal(2, 5, seed=1)
    problem = RowProblem(Gram.from_data(V, V @ W.T), Penalty(), loss="root")
    assert (problem.objective(W) <= 1e-7).all()
    assert (problem.gap(W) <= 1e-7).all()
    zero = RowProblem(Gram.from_data(V, torch.zeros(30, 2).double()), Penalty(l1=1.0), loss="root")
    assert not zero.gap(torch.zeros_like(W)).any() and not zero.objective(0 * W).any()
    assert (zero.gap(W) >= zero.objective(W) * (1 - 1e-12)).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_rotating_the_samples_changes_nothing(loss):
    Q = torch.linalg.qr(normal(30, 30, seed=0))[0]
    V, T, W = normal(30, 5, seed=1), normal(30, 2, seed=2), 0.1 * normal(2, 5, seed=3)
    problems = [
        RowProblem(Gram.from_data(q @ V, q @ T), Penalty(l1=0.1), loss=loss) for q in (Q, Q @ Q)
    ]
    torch.testing.assert_close(problems[0].gap(W), problems[1].gap(W), rtol=1e-10, atol=1e-14)


def test_multiplying_a_penalty():
    penalty = Penalty(0.1, 0.2, 0.4, scales=torch.ones(3)) * 2.0
    assert (penalty.l0, penalty.l1, penalty.l2) == (0.2, 0.4, 0.8)
    assert penalty.scales is not None


def test_rows_with_bad_data_are_not_valid():
    gram = Gram.from_data(normal(30, 3, seed=0), normal(30, 4, seed=1))
    gram.R[1, 2], gram.t2[2] = math.nan, math.inf
    l1 = torch.tensor([0.1, 0.1, 0.1, math.nan], dtype=torch.float64)
    problem = RowProblem(gram, Penalty(l1=l1))
    assert problem.valid.tolist() == [True, False, False, False]
    radius = torch.tensor([math.nan, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert not RowProblem(gram, Penalty(), Ball(slice(0, 2), radius)).valid[0]


ONE = torch.ones(3, dtype=torch.float64)
GRAM = Gram.from_data(normal(30, 3, seed=0), normal(30, 4, seed=1))
NAN_GRAM = Gram.from_data(normal(30, 3, seed=0) * math.nan, normal(30, 4, seed=1))
HUGE_GRAM = Gram.from_data(normal(30, 3, seed=0) * 1e200, normal(30, 4, seed=1))

WRONG = {
    "l0 negative": (lambda: Penalty(l0=-1.0, l2=1.0), "l0"),
    "l1 nan": (lambda: Penalty(l1=math.nan), "l1"),
    "l1 negative entry": (lambda: Penalty(l1=-ONE), "l1"),
    "l2 infinite": (lambda: Penalty(l2=math.inf), "l2"),
    "l0 without l2": (lambda: Penalty(l0=1.0), "l0 .* l2"),
    "l0 without l2 in one row": (lambda: Penalty(l0=ONE, l2=ONE - ONE[0]), "l0 .* l2"),
    "scales negative": (lambda: Penalty(l1=1.0, scales=-ONE), "scales"),
    "scales nan": (lambda: Penalty(l1=1.0, scales=ONE * math.nan), "scales"),
    "radius negative": (lambda: Ball(slice(0, 2), -1.0), "radius"),
    "radius negative entry": (lambda: Ball(slice(0, 2), -ONE), "radius"),
    "radius nan": (lambda: Ball(slice(0, 2), math.nan), "radius"),
    "weights zero": (lambda: Ball(slice(0, 3), 1.0, 0 * ONE), "weights"),
    "weights infinite": (lambda: Ball(slice(0, 3), 1.0, ONE / 0), "weights"),
    "features nan": (lambda: RowProblem(NAN_GRAM, Penalty()), "gram.G .* features"),
    "features overflow": (lambda: RowProblem(HUGE_GRAM, Penalty()), "gram.G .* features"),
    "scales of another length": (lambda: RowProblem(GRAM, Penalty(scales=torch.ones(2))), "scales"),
    "l1 of another length": (lambda: RowProblem(GRAM, Penalty(l1=ONE)), r"l1 .* \(4,\)"),
    "radius of another length": (
        lambda: RowProblem(GRAM, Penalty(), Ball(slice(0, 2), ONE)),
        r"radius .* \(4,\)",
    ),
    "ball weights of another length": (
        lambda: RowProblem(GRAM, Penalty(), Ball(slice(0, 2), 1.0, ONE)),
        "weights",
    ),
    "ball features out of range": (
        lambda: RowProblem(GRAM, Penalty(), Ball(torch.tensor([1, 3]), 1.0)),
        "features",
    ),
    "ball feature named twice": (
        lambda: RowProblem(GRAM, Penalty(), Ball(torch.tensor([1, 1]), 1.0, ONE[:2])),
        "features",
    ),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.filterwarnings("ignore")
def test_a_wrong_argument_is_named(what):
    build, name = WRONG[what]
    with pytest.raises(InputError, match=name) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ball", [False, True], ids=["free", "ball"])
@pytest.mark.parametrize("name", ["l0+l2", "elastic", "l1"])
def test_a_rooted_gap_beside_the_optimum_is_that_of_the_best_multiple(name, ball):
    """Weights optimal for another σ than their own residual: r/‖r‖ is a poor dual point."""
    case = known(PENALTIES[name], ball=ball)
    m, terms = len(case.T), case.problem.terms
    # optimal for the squared loss, so for the rooted one if the penalty is divided by ‖r‖
    sigma = 1.02 * (case.T - case.V @ case.W.T).square().mean(0).sqrt()
    coefficients = {name: getattr(terms, name)[:, 0] / sigma for name in ("l0", "l1", "l2")}
    penalty = Penalty(**coefficients, scales=terms.rho)
    problem = RowProblem(case.problem.gram, penalty, case.problem.ball, "root")
    r = case.T - case.V @ case.W.T
    theta = r / r.square().mean(0).sqrt()
    c, least = (case.V.T @ theta).T / m, torch.full_like(sigma, torch.inf)
    for s in torch.linspace(0.9, 1.0, 201).tolist():
        conjugate = problem.terms.conjugate(s * c, problem.terms.dual_multiplier(s * c))
        gap = problem.objective(case.W) - s * (theta * case.T).sum(0) / m + conjugate
        least = torch.minimum(least, gap)
    assert (problem.gap(case.W) <= least * (1 + 1e-6) + 1e-12).all()
