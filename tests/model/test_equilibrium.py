from dataclasses import replace

import pytest
import torch
from torch import Tensor

from random_models import MIXED, PHIS, contraction, lipschitz, same, strictly_upper
from shapes import unchecked
from simplicit.equations.matrices import from_matrices
from simplicit.equations.stacked import Stacked
from simplicit.errors import InputError
from simplicit.model.equilibrium import (
    Equilibrium,
    NotConvergedError,
    Status,
    exact,
    implicit_solve,
    picard,
)

N = sum(block.size for block in MIXED)
ALL = [*map(same, PHIS), MIXED]
IDS = [blocks[0].phi.name for blocks in ALL[:-1]] + ["mixed"]


def constants(m: int = 6, seed: int = 3) -> Tensor:
    return torch.randn(m, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def triangular(blocks) -> Tensor:
    return 20 * strictly_upper(contraction(N, 0.9), blocks)


def full(blocks) -> Tensor:
    return contraction(N, 0.9) / lipschitz(blocks).unsqueeze(1)


def solved_in_one_pass(A: Tensor, c: Tensor, blocks) -> Equilibrium:
    """x = φ(Ax + c): the inputs are c."""
    eye = torch.eye(N, dtype=A.dtype)
    equations = from_matrices(
        A, eye, eye, 0 * eye, None, None,
        blocks=blocks, structure="triangular", input_shape=(N,), nonzeros=1,
    )  # fmt: skip
    return exact(equations, c)


def test_each_block_has_its_own_phi():
    z = constants()
    x = Stacked(MIXED)(z)
    assert torch.equal(x[:, :3], z[:, :3].tanh())
    assert torch.equal(x[:, 3:7], z[:, 3:7].relu())
    assert torch.equal(x[:, 7:], z[:, 7:].sigmoid())


@pytest.mark.parametrize("blocks", ALL, ids=IDS)
def test_exact_pass_is_what_picard_reaches_after_one_step_per_block(blocks):
    A, c = triangular(blocks), constants()
    exact = solved_in_one_pass(A, c, blocks)
    assert exact.converged.all() and (exact.steps == len(blocks)).all()
    assert (exact.residual < 1e-12).all()
    iterated = picard(lambda x, c: Stacked(blocks)(x @ A.T + c), torch.zeros_like(c), c)
    torch.testing.assert_close(exact.states, iterated.states, rtol=1e-12, atol=1e-12)
    assert (iterated.steps <= len(blocks) + 1).all()  # the last step only finds residual 0


def test_exact_pass_solves_the_linear_system_for_identity():
    blocks = same(PHIS[-1])
    A, c = triangular(blocks), constants()
    solved = torch.linalg.solve(torch.eye(N, dtype=A.dtype) - A, c.T).T
    torch.testing.assert_close(
        solved_in_one_pass(A, c, blocks).states, solved, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("where", [(0, 0), (2, 1), (4, 0), (11, 11)])
def test_an_entry_outside_the_blocks_is_refused(where):
    A = triangular(MIXED)
    solved_in_one_pass(A, constants(), MIXED)
    A[where] = 1e-30
    with pytest.raises(InputError, match="uses itself or a later layer"):
        solved_in_one_pass(A, constants(), MIXED)


def test_exact_pass_reports_samples_that_cannot_be_solved():
    c = constants()
    c[1, 4], c[2, 0] = torch.nan, torch.inf
    c[3] = 1e308  # finite, but its states are not
    found = solved_in_one_pass(10 * triangular(same(PHIS[0])).abs(), c, same(PHIS[0]))
    good, bad, over = Status.CONVERGED, Status.INVALID_INPUT, Status.DIVERGED
    assert found.status == (good, bad, bad, over, good, good)


@pytest.mark.parametrize(
    ("blocks", "method"), [*((blocks, "anderson") for blocks in ALL), (MIXED, "picard")]
)
def test_gradients_through_the_fixed_point(blocks, method):
    small = tuple(replace(block, size=size) for block, size in zip(blocks, (1, 2, 2), strict=True))

    def states(A: Tensor, B: Tensor, b: Tensor, u: Tensor) -> Tensor:
        return implicit_solve(A, u @ B.T + b, Stacked(small), method=method, tol=1e-14).states

    A = contraction(5, 0.9) / lipschitz(small).unsqueeze(1)
    B, b, u = constants(2)[:, :5].T, constants(1, 4)[0, :5], constants(2, 5)[:, :2]
    leaves = tuple(t.clone().requires_grad_() for t in (A, B, b, u))
    with unchecked():
        assert torch.autograd.gradcheck(states, leaves)


@pytest.mark.parametrize("blocks", ALL, ids=IDS)
def test_gradients_through_the_exact_pass(blocks):
    upper = strictly_upper(torch.ones(N, N, dtype=torch.float64), blocks)
    leaves = (triangular(blocks).requires_grad_(), constants(2).requires_grad_())
    with unchecked():
        assert torch.autograd.gradcheck(
            lambda A, c: solved_in_one_pass(A * upper, c, blocks).states, leaves
        )


def test_implicit_gradient_equals_that_of_two_hundred_unrolled_steps():
    A, c, v = full(MIXED).requires_grad_(), constants().requires_grad_(), constants(seed=9)
    x = torch.zeros_like(c)
    for _ in range(200):
        x = Stacked(MIXED)(x @ A.T + c)
    unrolled = torch.autograd.grad((x * v).sum(), (A, c))
    found = implicit_solve(A, c, Stacked(MIXED), tol=1e-13).states
    torch.testing.assert_close(torch.autograd.grad((found * v).sum(), (A, c)), unrolled)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_precision_of_gradients_does_not_depend_on_the_size_of_the_loss(size):
    A, c = full(MIXED).requires_grad_(), constants().requires_grad_()
    loss = implicit_solve(A, c, Stacked(MIXED)).states.square().sum()
    reference = torch.autograd.grad(loss, (A, c), retain_graph=True)
    scaled = torch.autograd.grad(size * loss, (A, c))
    for one, other in zip(reference, scaled, strict=True):
        torch.testing.assert_close(other / size, one, rtol=1e-7, atol=1e-9)


def test_a_sample_without_influence_has_gradient_zero():
    A, c = full(MIXED).requires_grad_(), constants().requires_grad_()
    implicit_solve(A, c, Stacked(MIXED)).states[2].sum().backward()
    assert c.grad is not None and (c.grad[[0, 1, 3, 4, 5]] == 0).all() and (c.grad[2] != 0).any()


def test_a_backward_solve_that_does_not_converge_raises():
    # At c < 0 the forward solve ends at once; the backward one with φ' = slope does not.
    blocks = same(PHIS[1])
    A = contraction(N, 0.99, positive=True) / 0.2
    c = torch.zeros(2, N, dtype=torch.float64, requires_grad=True)
    found = implicit_solve(A, c, Stacked(blocks), max_steps=2)
    assert found.converged.all()
    with pytest.raises(NotConvergedError, match="2 of 2 samples"):
        found.states.sum().backward()


def test_second_derivatives_are_refused():
    A, c = full(MIXED).requires_grad_(), constants().requires_grad_()
    (first,) = torch.autograd.grad(
        implicit_solve(A, c, Stacked(MIXED)).states.square().sum(), c, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
