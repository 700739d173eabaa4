import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import naive
from cases import normal, uniform
from simplicit.convex.prox import Separable

PENALTIES = {
    "zero": (0.0, 0.0, 0.0),
    "l1": (0.0, 0.7, 0.0),
    "ridge": (0.0, 0.0, 0.8),
    "elastic": (0.0, 0.4, 0.8),
    "l0+l2": (0.3, 0.0, 0.8),
    "l0+l1+l2": (0.3, 0.2, 0.8),
    "small knee": (1e-6, 0.0, 1.0),
    "large knee": (5.0, 0.1, 0.01),
}
K, N = 4, 9
Price = tuple[float, float, float]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def separable(
    price: Price,
    rho: Tensor | None = None,
    omega: Tensor | None = None,
    radius: Tensor | None = None,
    rows: int = K,
) -> Separable:
    one = torch.ones(N, dtype=torch.float64)
    l0, l1, l2 = (column(*[value] * rows) for value in price)
    return Separable(
        l0,
        l1,
        l2,
        one if rho is None else rho,
        0 * one if omega is None else omega,
        column(*[math.inf] * rows) if radius is None else radius,
    )


RHO = uniform(N, seed=0, low=0.5, high=2)
OMEGA = uniform(N, seed=1, low=0.5, high=2) * (torch.arange(N) < 6)
RADII = column(0.0, 0.3, 2.0, math.inf)
STEP = uniform(N, seed=2, low=0.2, high=3)


@pytest.fixture(params=PENALTIES, name="price")
def _price(request):
    return PENALTIES[request.param]


@pytest.fixture(params=[False, True], ids=["free", "ball"], name="terms")
def _terms(request, price):
    return separable(price, RHO, OMEGA, RADII) if request.param else separable(price, RHO)


numbers = st.sampled_from([0.0, 1e-8, 0.3, 0.5, 1.0, 1.3, 7.0, 1e8])
steps = st.sampled_from([1e-8, 0.5, 1.0, 1e4])


@given(v=numbers, t=steps, l0=numbers, l1=numbers, l2=numbers, rho=numbers)
@example(v=1.0, t=1.0, l0=0.5, l1=0.0, l2=1.0, rho=1.0)  # v at the threshold
@example(v=2.0, t=1.0, l0=0.5, l1=0.0, l2=1.0, rho=1.0)  # w at the knee
@settings(max_examples=200)
def test_prox_is_where_the_derivative_changes_sign(v, t, l0, l1, l2, rho):
    l0 = l0 if l2 > 0 else 0.0
    terms = Separable(
        column(l0), column(l1), column(l2), column(rho)[0], column(0.0)[0], column(math.inf)
    )
    w, mu = terms.prox(column(-v), column(t)[0])
    assert float(w) == pytest.approx(-naive.prox(v, t, l0, l1, l2, rho), rel=1e-9, abs=1e-14 * v)
    assert float(mu) == 0.0


def test_prox_beats_a_grid(price):
    terms, v = separable(price, RHO, rows=1), 3 * normal(1, N, seed=3)
    w, _ = terms.prox(v, STEP)
    grid = torch.linspace(-4, 4, 801, dtype=torch.float64)[:, None]
    many = separable(price, RHO, rows=801)
    for j in range(N):
        only = torch.arange(N) == j
        value = (w - v)[0, j] ** 2 / (2 * STEP[j]) + terms.value(w * only)
        assert (
            value <= (grid[:, 0] - v[0, j]) ** 2 / (2 * STEP[j]) + many.value(grid * only)
        ).all()


def each_penalty(terms: Separable, w: Tensor) -> Tensor:
    """Penalty of each weight on its own, (rows, N)."""
    return torch.stack([terms.value(w * (torch.arange(N) == j)) for j in range(N)], dim=1)


def test_prox_meets_the_subgradient_condition(terms):
    v = 4 * normal(K, N, seed=4)
    w, mu = terms.prox(v, STEP)
    pull = (v - w).abs() / STEP - mu * terms.omega
    size = w.abs() * terms.rho
    inner = torch.where(size > terms.knee, terms.l2 * size, terms.huber)
    slope = (terms.l1 + inner) * terms.rho
    torch.testing.assert_close(pull[w != 0], slope[w != 0], rtol=1e-9, atol=1e-9)
    assert (pull <= terms.slope() + 1e-9)[w == 0].all()
    assert (w * v >= 0).all() and (w.abs() <= v.abs()).all()


def test_prox_stays_in_the_ball_and_its_multiplier_is_complementary(price):
    terms = separable(price, RHO, OMEGA, RADII)
    w, mu = terms.prox(4 * normal(K, N, seed=4), STEP)
    slack = terms.radius[:, 0] - terms.ball_norm(w)
    assert (mu >= 0).all() and (slack >= -1e-13).all()
    assert ((mu[:, 0] == 0) | (slack.abs() <= 1e-12)).all()
    assert float(mu[0]) > 0 and float(mu[3]) == 0


@pytest.mark.parametrize("radius", [1e-9, 0.05, 3.0])
def test_ball_multiplier_is_that_of_bisection(price: Price, radius):
    terms = separable(price, RHO, OMEGA, column(radius), rows=1)
    v = 4 * normal(1, N, seed=5)

    def weights(mu: float) -> Tensor:
        cells = zip(v[0].tolist(), STEP.tolist(), RHO.tolist(), OMEGA.tolist(), strict=True)
        return column(*[naive.prox(x, t, *price, r, mu * o) for x, t, r, o in cells])[:, 0]

    slow = naive.multiplier(weights, OMEGA, radius)
    for guess in (None, column(0.0), column(1.0), column(1e6)):
        w, mu = terms.prox(v, STEP, guess)
        assert float(mu) == pytest.approx(slow, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(w[0], weights(slow), rtol=1e-8, atol=1e-11)


def test_a_row_does_not_feel_its_neighbours(terms):
    v, guess = 4 * normal(K, N, seed=6), uniform(K, 1, seed=7)
    w, mu = terms.prox(v, STEP, guess)
    for k in range(K):
        others = torch.arange(K)[:, None] != k
        for factor in (0.0, 1e3):
            alone, own = terms.prox(torch.where(others, factor * v, v), STEP, guess)
            assert torch.equal(alone[k], w[k]) and torch.equal(own[k], mu[k])


def test_prox_does_not_expand(terms):
    v, step = 4 * normal(2, K, N, seed=8), torch.full((N,), 0.7, dtype=torch.float64)
    moved = terms.prox(v[0], step)[0] - terms.prox(v[1], step)[0]
    assert (moved.norm(dim=1) <= (v[0] - v[1]).norm(dim=1) * (1 + 1e-12)).all()


def test_step_may_differ_by_row(terms):
    v, t = 4 * normal(K, N, seed=9), uniform(K, N, seed=10, low=0.2, high=3)
    w, mu = terms.prox(v, t)
    for k in range(K):
        one = slice(k, k + 1)
        torch.testing.assert_close(terms.rows(one).prox(v[one], t[k])[0][0], w[k])


def test_float32_prox_is_the_float64_one_rounded(terms):
    v = 4 * normal(K, N, seed=11)
    w, _ = terms.to(torch.float32).prox(v.float(), STEP.float())
    assert w.dtype == torch.float32
    torch.testing.assert_close(w.double(), terms.prox(v, STEP)[0], rtol=1e-4, atol=1e-5)


def test_no_feature_at_all():
    none = torch.zeros(0, dtype=torch.float64)
    two = column(0.0, 1.0)
    terms = Separable(two, two, two, none, none, column(1.0, 2.0))
    nothing = torch.zeros(2, 0, dtype=torch.float64)
    w, mu = terms.prox(nothing, none)
    assert w.shape == (2, 0) and not mu.any()
    assert not terms.value(nothing).any()
    assert not terms.conjugate(nothing, terms.dual_multiplier(nothing)).any()


def test_projection_leaves_the_ball_alone():
    terms = separable((0.0, 0.0, 0.0), RHO, OMEGA, RADII)
    one = torch.ones(N, dtype=torch.float64)
    inside = terms.prox(4 * normal(K, N, seed=12), one)[0]
    torch.testing.assert_close(terms.prox(inside, one)[0], inside, rtol=1e-12, atol=1e-14)


def test_into_ball_shrinks_no_more_than_it_must():
    terms = separable((0.0, 1.0, 0.0), RHO, OMEGA, column(0.0, 0.3, 1e-200, math.inf))
    w = 4 * normal(K, N, seed=13)
    inside = terms.into_ball(w)
    assert (terms.ball_norm(inside) <= terms.radius[:, 0]).all()
    assert torch.equal(inside[3], w[3])
    assert torch.equal(inside[:, OMEGA == 0], w[:, OMEGA == 0])
    assert float(terms.ball_norm(inside)[1]) == pytest.approx(0.3, rel=1e-12)
    assert torch.equal(terms.into_ball(inside), inside)


def test_penalty_is_the_perspective(price):
    terms = separable(price, rows=1)
    for v in (0.0, 1e-3, 0.5, 1.0, 3.0, 40.0):
        w = torch.zeros(1, N, dtype=torch.float64)
        w[0, 4] = -v
        assert float(terms.value(w)) == pytest.approx(naive.penalty(v, *price), rel=1e-6)


def test_penalty_and_slope_are_scaled_by_rho(price):
    w = normal(K, N, seed=14)
    plain, scaled = separable(price), separable(price, RHO)
    torch.testing.assert_close(scaled.value(w), plain.value(w * RHO))
    torch.testing.assert_close(scaled.slope(), plain.slope() * RHO)
    assert torch.equal(scaled.quadratic(w), plain.quadratic(w * RHO))


def test_slope_is_the_derivative_beside_zero(price):
    terms = separable(price, RHO, rows=1)
    tiny = torch.full((1, N), 1e-9, dtype=torch.float64)
    torch.testing.assert_close(
        each_penalty(terms, tiny) / 1e-9, terms.slope(), rtol=1e-6, atol=1e-8
    )


def test_times_scales_every_row_by_its_own_factor(price):
    terms, w = separable(price, RHO, OMEGA, RADII), normal(K, N, seed=15)
    sigma = column(0.1, 1.0, 2.0, 5.0)
    torch.testing.assert_close(terms.times(sigma).value(w), sigma[:, 0] * terms.value(w))
    assert torch.equal(terms.times(sigma).radius, terms.radius)


def test_conjugate_is_the_supremum_on_a_grid(price: Price):
    terms = separable(price, RHO, rows=1)
    for c in (0.0, 0.2, 0.7, 1.5):
        value = float(terms.conjugate(torch.full((1, N), c, dtype=torch.float64), column(0.0)))
        grid = sum(naive.conjugate(c, *price, rho, reach=400.0) for rho in RHO.tolist())
        assert value >= grid - 1e-12
        if math.isfinite(value):
            assert value == pytest.approx(grid, rel=1e-5, abs=1e-5)
        else:
            assert grid > 10


def test_fenchel_young(terms):
    for seed in range(5):
        w, c = terms.into_ball(3 * normal(K, N, seed=seed)), 2 * normal(K, N, seed=seed + 50)
        for mu in (terms.dual_multiplier(c), uniform(K, 1, seed=seed), column(*[0.0] * K)):
            assert (terms.value(w) + terms.conjugate(c, mu) >= (c * w).sum(1) - 1e-12).all()


def test_fenchel_young_is_tight_at_the_prox(terms):
    """c = (v − w)/t is a subgradient of penalty and ball at w = prox(v)."""
    v = 4 * normal(K, N, seed=16)
    w, mu = terms.prox(v, STEP)
    c = (v - w) / STEP
    # a breath inside, where a flat penalty's conjugate would be infinite by rounding
    c = torch.where(terms.l2 > 0, c, c * (1 - 1e-13))
    best = terms.conjugate(c, terms.dual_multiplier(c))
    torch.testing.assert_close(terms.value(w) + best, (c * w).sum(1), rtol=1e-9, atol=1e-9)


def test_dual_multiplier_is_the_best(price):
    terms, c = separable(price, RHO, OMEGA, RADII), 3 * normal(K, N, seed=17)
    # features outside the ball decide nothing about the multiplier, but may be infeasible
    c = torch.where(OMEGA > 0, c, 0.0)
    best = terms.conjugate(c, terms.dual_multiplier(c))
    floor = terms.smallest_multiplier(c)
    assert (best[:3] < torch.inf).all()
    for mu in torch.linspace(0, 8, 400, dtype=torch.float64):
        assert (best <= terms.conjugate(c, torch.maximum(floor, mu)) + 1e-9).all()


def test_the_best_multiplier_is_feasible_in_spite_of_rounding():
    terms = separable((0.0, 0.4, 0.0), RHO, OMEGA + 0.1, column(*[0.3] * 200), rows=200)
    c = 3 * normal(200, N, seed=19)
    assert torch.isfinite(terms.conjugate(c, terms.dual_multiplier(c))).all()


def test_conjugate_of_a_row_without_radius_has_no_multiplier(price):
    terms, c = separable(price, RHO, OMEGA, RADII), normal(K, N, seed=18)
    free = separable(price, RHO)
    alone = free.conjugate(c, free.dual_multiplier(c))[3]
    assert float(terms.dual_multiplier(c)[3]) == 0
    torch.testing.assert_close(terms.conjugate(c, terms.dual_multiplier(c))[3], alone)
