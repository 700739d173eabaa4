import pytest
import torch
from torch import Tensor

from random_models import contraction
from simplicit.errors import InputError
from simplicit.model.fixed_point import (
    MAX_STEPS,
    TOLERANCE,
    Equilibrium,
    NotConvergedError,
    Status,
    anderson,
    picard,
)

METHODS = [picard, anderson]


def system(A: Tensor, phi=torch.relu):
    return lambda x, c: phi(x @ A.T + c)


def constants(m: int, n: int, dtype=torch.float64) -> Tensor:
    return torch.randn(m, n, dtype=dtype, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("phi", [torch.relu, torch.tanh, torch.sigmoid])
def test_reported_residual_is_that_of_the_returned_states(method, phi):
    f, c = system(contraction(20, 0.95), phi), constants(50, 20)
    found = method(f, torch.zeros_like(c), c)
    x = found.states
    recomputed = (f(x, c) - x).abs().amax(1) / x.abs().amax(1).clamp(min=1)
    assert found.converged.all() and (recomputed <= 1.001e-10).all()
    torch.testing.assert_close(found.residual, recomputed, rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_identity_gives_the_linear_solve(method):
    A, c = contraction(15, 0.9), constants(40, 15)
    found = method(system(A, lambda z: z), torch.zeros_like(c), c, tol=1e-13)
    exact = torch.linalg.solve(torch.eye(15, dtype=A.dtype) - A, c.T).T
    torch.testing.assert_close(found.states, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kappa", [0.5, 0.9, 0.99])
def test_picard_contracts_at_rate_kappa(kappa):
    A, c = contraction(12, kappa, positive=True), 1e-3 * constants(30, 12)
    found = picard(system(A), torch.zeros_like(c), c, history=True)
    assert found.history is not None and (found.states.abs() < 1).all()  # nothing is divided
    before, after = found.history[:-1], found.history[1:]
    left = after.isnan()
    assert ((after <= kappa * before * (1 + 1e-9) + 1e-15) | left).all()


def test_anderson_needs_a_tenth_of_the_steps_where_picard_is_slow():
    A, c = contraction(112, 0.99, positive=True), constants(200, 112)
    slow = picard(system(A), torch.zeros_like(c), c)
    fast = anderson(system(A), torch.zeros_like(c), c)
    assert slow.converged.all() and fast.converged.all()
    assert fast.steps.double().mean() < 0.1 * slow.steps.double().mean()
    torch.testing.assert_close(fast.states, slow.states, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("phi", [torch.relu, torch.tanh])
def test_anderson_converges_for_badly_scaled_contractions(seed, phi):
    n = 40
    omega = 10 ** torch.linspace(0, 4, n, dtype=torch.float64)
    A, c = contraction(n, 0.99, seed, omega), constants(100, n)
    found = anderson(system(A, phi), torch.zeros_like(c), c)
    assert found.converged.all() and found.steps.max() < 200


@pytest.mark.parametrize("seed", range(6))
def test_anderson_converges_for_contractions_with_kinks(seed):
    # Without the safeguard some of these samples cycle for ever.
    A, c = contraction(3, 0.99, seed), constants(1000, 3)
    found = anderson(system(A, torch.abs), torch.zeros_like(c), c)
    assert found.converged.all() and found.steps.max() < MAX_STEPS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("positive", [False, True])
def test_float32_reaches_its_default_tolerance(method, positive):
    n = 400
    omega = 10 ** torch.linspace(0, 3, n, dtype=torch.float64)
    A, c = contraction(n, 0.99, 0, omega, positive=positive).float(), constants(30, n).float()
    found = method(system(A), torch.zeros_like(c), 30 * c)
    assert found.converged.all() and (found.residual <= TOLERANCE[torch.float32]).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_never_depends_on_its_batch(method):
    f, c = system(contraction(10, 0.97, positive=True)), constants(20, 10)
    c[::3] *= 1e4  # samples of very different size
    c[5, 2] = torch.nan
    together = method(f, torch.zeros_like(c), c)
    for i in range(len(c)):
        alone = method(f, torch.zeros_like(c[:1]), c[i : i + 1])
        assert alone.status[0] is together.status[i]
        assert alone.steps[0] == together.steps[i]
        torch.testing.assert_close(
            alone.states[0], together.states[i], rtol=1e-12, atol=1e-12, equal_nan=True
        )


@pytest.mark.parametrize("method", METHODS)
def test_each_sample_has_its_own_status(method):
    # x = a exp(x) + c in one dimension: a contraction for a = 0.1, without solution for a = 10.
    a = torch.tensor([[0.1], [10.0], [0.1], [0.1]], dtype=torch.float64)
    c = torch.tensor([[0.5], [0.5], [torch.nan], [torch.inf]], dtype=torch.float64)
    found = method(lambda x, c, a: a * x.exp() + c, torch.zeros_like(c), c, a)
    invalid = Status.INVALID_INPUT
    assert found.status == (Status.CONVERGED, Status.DIVERGED, invalid, invalid)
    assert found.converged.tolist() == [True, False, False, False]
    assert not found.residual[1].isfinite() and found.steps[1] < 100
    assert (found.steps[2:] == 0).all() and found.states[2:].isnan().all()


def test_max_steps_is_reported_with_an_honest_residual():
    c = torch.ones(2, 1, dtype=torch.float64)
    found = picard(lambda x, c: c - x, torch.zeros_like(c), c, max_steps=7)
    assert set(found.status) == {Status.MAX_STEPS} and found.steps.tolist() == [7, 7]
    assert (found.residual == 1).all()


def test_max_steps_is_enough_for_picard_at_the_usual_kappa():
    assert 0.99**MAX_STEPS < 1e-12


def test_history_ends_where_each_sample_leaves():
    f, c = system(contraction(10, 0.9)), constants(20, 10)
    c[0] = 0.0  # converged at once
    found = picard(f, torch.zeros_like(c), c, history=True)
    assert found.history is not None and len(found.history) == found.steps.max()
    recorded = (~found.history.isnan()).sum(0)
    assert (recorded == found.steps).all() and found.steps[0] == 1
    last = found.history.gather(0, (found.steps - 1).unsqueeze(0)).squeeze(0)
    assert (last == found.residual).all()
    assert picard(f, torch.zeros_like(c), c).history is None


def test_a_start_at_the_solution_stops_after_one_step():
    f, c = system(contraction(10, 0.9)), constants(5, 10)
    first = anderson(f, torch.zeros_like(c), c, tol=1e-12)
    again = anderson(f, first.states, c)
    assert (again.steps == 1).all() and torch.equal(again.states, first.states)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_is_no_special_case(method):
    found = method(system(contraction(4, 0.9)), torch.zeros(0, 4), torch.zeros(0, 4))
    assert found.states.shape == (0, 4) and found.status == ()
    found.require_converged()


def test_require_converged_says_how_many_how_bad_and_what_to_do():
    residual = torch.tensor([0.0, 0.25, torch.nan])
    status = (Status.CONVERGED, Status.MAX_STEPS, Status.INVALID_INPUT)
    found = Equilibrium(torch.zeros(3, 1), residual, torch.tensor([1, 9, 0]), status)
    with pytest.raises(NotConvergedError, match="2 of 3 samples") as caught:
        found.require_converged()
    message = str(caught.value)
    assert "sample 1: residual 2.5e-01 after 9 steps" in message
    assert "raise max_steps" in message and "\n" not in message


def test_half_precision_is_refused():
    with pytest.raises(InputError, match="accepted are float32 and float64"):
        anderson(lambda x: x, torch.zeros(1, 1, dtype=torch.float16))


@pytest.mark.parametrize("settings", [{"tol": 0.0}, {"tol": float("nan")}, {"max_steps": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match="accepted are tol > 0, max_steps >= 1"):
        picard(lambda x: x, torch.zeros(1, 1), **settings)
