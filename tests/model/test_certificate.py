from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from random_models import MIXED, contraction, lipschitz, same, strictly_upper
from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Stacked
from simplicit.model.certificate import (
    nilpotent_weights,
    perron_weights,
    round_toward_zero,
    weighted_norm,
    well_posedness,
)

N = sum(block.size for block in MIXED)
ONE = torch.ones(N, dtype=torch.float64)


def random(seed: int, n: int = N) -> Tensor:
    return torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive(seed: int, n: int = N, spread: float = 3.0) -> Tensor:
    logarithm = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return 10 ** (spread * logarithm)


def spectral_radius(M: Tensor) -> float:
    return torch.linalg.eigvals(M).abs().max().item()


@pytest.mark.parametrize("seed", range(20))
def test_norm_is_rounded_outward_and_tight(seed):
    A, L, omega = random(seed), positive(seed + 1, spread=1), positive(seed + 2)
    fractions = [[Fraction(v) for v in row] for row in A.abs().tolist()]
    ell, w = map(Fraction, L.tolist()), list(map(Fraction, omega.tolist()))
    rows = zip(fractions, ell, w, strict=True)
    exact = max(k * sum(a * v for a, v in zip(row, w, strict=True)) / mine for row, k, mine in rows)
    bound = Fraction(weighted_norm(A, L, omega))
    assert exact <= bound <= exact * (1 + Fraction(1, 10**13))


def test_the_map_contracts_in_the_certified_norm():
    A = random(0) / 8
    certificate = well_posedness(A, lipschitz(MIXED), positive(4, spread=0.2))
    x, y, c = (torch.randn(500, N, dtype=torch.float64) for _ in range(3))
    moved = (Stacked(MIXED)(x @ A.T + c) - Stacked(MIXED)(y @ A.T + c)) / certificate.weights
    apart = (x - y) / certificate.weights
    assert (moved.abs().amax(1) <= certificate.norm * apart.abs().amax(1) * (1 + 1e-12)).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("kappa", [0.99, 0.5])
def test_nilpotent_a_meets_kappa_whatever_its_size(size, kappa):
    A = size * strictly_upper(random(1), MIXED)
    certificate = well_posedness(A, lipschitz(MIXED), kappa=kappa)
    assert certificate.well_posed and certificate.method == "nilpotent"
    assert certificate.norm <= kappa * (1 + 1e-12)
    assert certificate.margin == 1 - certificate.norm


def test_weights_of_a_nilpotent_a_solve_their_equation():
    A, L = strictly_upper(random(2), MIXED), lipschitz(MIXED)
    omega = nilpotent_weights(A, L, 0.7)
    torch.testing.assert_close(omega - L * (A.abs() @ omega) / 0.7, ONE, rtol=1e-9, atol=1e-9)


def test_a_nilpotent_a_is_well_posed_even_where_its_weights_overflow():
    A = torch.diag(torch.full((199,), 1e4, dtype=torch.float64), 1)
    certificate = well_posedness(A, torch.ones(200, dtype=torch.float64))
    assert certificate.well_posed and certificate.norm == 0.99


def test_given_weights_come_first():
    A, omega = contraction(N, 0.8, 3, positive(5)), positive(5)
    certificate = well_posedness(A, ONE, omega)
    assert certificate.method == "weighted norm" and torch.equal(certificate.weights, omega)
    assert certificate.norm == pytest.approx(0.8, rel=1e-12)


def test_without_weights_the_papers_condition_is_used():
    certificate = well_posedness(contraction(N, 0.8, 3), ONE)
    assert certificate.method == "weighted norm" and torch.equal(certificate.weights, ONE)


@pytest.mark.parametrize("seed", range(10))
def test_perron_frobenius_finds_weights_where_the_given_ones_fail(seed):
    hidden = positive(seed + 50)
    A = contraction(N, 0.8, seed, hidden)
    certificate = well_posedness(A, ONE)
    assert weighted_norm(A, ONE, ONE) > 1
    assert certificate.well_posed and certificate.method == "Perron-Frobenius"
    radius = spectral_radius(A.abs())
    assert radius * (1 - 1e-9) <= certificate.norm <= radius * 1.001


def test_perron_weights_handle_a_reducible_matrix():
    A = torch.block_diag(torch.full((2, 2), 0.4), torch.full((3, 3), 0.01)).double()
    A[0, 2] = 50.0
    certificate = well_posedness(A, torch.ones(5, dtype=torch.float64))
    assert certificate.method == "Perron-Frobenius" and 0.8 <= certificate.norm < 0.81


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("radius", [1 + 1e-9, 1.1, 40.0])
def test_nothing_is_certified_above_one(seed, radius):
    A = random(seed)
    A = A * radius / spectral_radius(A.abs())
    certificate = well_posedness(A, ONE, positive(seed))
    assert not certificate.well_posed and certificate.method == "none"
    assert certificate.norm >= 1 and certificate.margin <= 0
    assert str(certificate).startswith("not certified")


@pytest.mark.parametrize("radius", [1 - 1e-6, 0.999])
def test_perron_frobenius_decides_close_to_one(radius):
    A = random(7)
    assert well_posedness(A * radius / spectral_radius(A.abs()), ONE, positive(8)).well_posed


@pytest.mark.parametrize(("phi", "limit"), [(Phi("sigmoid"), 4.0), (Phi("leaky_relu", 2.0), 0.5)])
def test_lipschitz_constants_enter(phi, limit):
    L = lipschitz(same(phi))
    below = well_posedness(contraction(N, 0.99 * limit, positive=True), L)
    above = well_posedness(contraction(N, 1.01 * limit, positive=True), L)
    assert below.well_posed and below.norm == pytest.approx(0.99) and not above.well_posed


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("triangular", [False, True])
def test_weights_that_are_not_finite_are_never_well_posed(bad, triangular):
    A = strictly_upper(contraction(N, 0.5), MIXED)
    A[0, 5 if triangular else 0] = bad
    certificate = well_posedness(A, ONE)
    assert not certificate.well_posed and not certificate.norm < 1
    assert not well_posedness(A, ONE, ONE).well_posed
    omega = ONE.clone()
    omega[0] = torch.nan
    assert not weighted_norm(A * 0, ONE, omega) < 1
    assert not weighted_norm(contraction(N, 0.5), ONE, -ONE) < 1


def test_perron_weights_are_positive_and_lower_the_norm():
    A = contraction(N, 0.8, 3, positive(53))
    omega = perron_weights(A, ONE)
    assert (omega >= 1).all() and weighted_norm(A, ONE, omega) < weighted_norm(A, ONE, ONE)


def test_a_certificate_reads_as_one_line():
    text = str(well_posedness(contraction(N, 0.75, 3), ONE))
    assert text == "well-posed: ‖A‖∞,ω = 0.75, margin 0.25 (weighted norm)"


@given(st.floats(allow_nan=False, allow_infinity=False, width=64, min_value=-1e30, max_value=1e30))
def test_rounding_toward_zero_is_the_nearest_float32_not_above(value):
    A = torch.tensor([[value]], dtype=torch.float64)
    cast = round_toward_zero(A, torch.float32)
    away = torch.tensor(torch.inf) * (1 if value >= 0 else -1)
    assert cast.dtype == torch.float32 and abs(cast.item()) <= abs(value)
    assert abs(cast.nextafter(away).item()) > abs(value) or value == 0
    assert cast.signbit().item() == A.signbit().item()


def test_rounding_toward_zero_keeps_kappa_and_rounding_to_nearest_does_not():
    omega = positive(6)
    A = contraction(N, 0.99, 6, omega)
    assert well_posedness(round_toward_zero(A, torch.float32), ONE, omega).norm <= 0.99 * (1 + 1e-9)
    assert well_posedness(A.float(), ONE, omega).norm > 0.99 * (1 + 1e-9)
