"""How rows move the outputs: derivatives against autograd, moves against a recomputation."""

import pytest
import torch
from torch import Tensor

from moved_networks import KINDS, MANY, inputs, moved, network
from simplicit.calibration.rows import Rows, rows_of
from simplicit.equations.network import StateEquations
from simplicit.outputs.distance import Distance
from simplicit.outputs.downstream import PROBES, Downstream
from simplicit.outputs.expansion import Expansion

M = 6


def forward(equations: StateEquations, u: Tensor, index: int, dz: Tensor) -> Tensor:
    """Outputs when one layer's pre-activations are moved; the slow twin."""
    states: list[Tensor] = []
    for k, equation in enumerate(equations.layers):
        z = equation.preactivation([*states, u])
        z = z + dz if k == index else z
        states.append(equation.phi(z))
    return z


def in_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


class Problem:
    """A model of a kind beside its teacher, and everything about it by autograd."""

    def __init__(self, name: str) -> None:
        teacher = network(name).changed(in_double)
        self.equations = moved(teacher, 0.3)
        self.u = inputs(teacher, M)
        with torch.no_grad():
            self.T = teacher.replay(self.u)[1]
        self.distance = Distance(self.T)
        layers = list(self.equations.layers)
        self.down = Downstream(layers, self.u, self.T, self.distance, inactive=0.0)

    def expansion(self, rows: Rows, group: int, seed: int = 0) -> tuple[Tensor, Expansion]:
        V = self.down.features(rows, bias=True)[group]
        K = rows.weights(self.equations.layers[rows.index]).shape[1]
        generator = torch.Generator().manual_seed(seed)
        return V, self.down.expand(rows, group, slice(0, K), V, generator)

    def derivatives(self, index: int) -> tuple[Tensor, Tensor]:
        """−∇ℓ and R'J in a layer's pre-activations, R R' = F: (m, size) and (m, r, size)."""
        size = self.equations.layers[index].size
        dz = torch.zeros(M, size).double().requires_grad_()
        Y = forward(self.equations, self.u, index, dz)
        (slope,) = torch.autograd.grad(self.distance(Y, self.T).sum(), dz, retain_graph=True)
        J = [torch.autograd.grad(y.sum(), dz, retain_graph=True)[0] for y in Y.unbind(1)]
        return -slope, self.distance.curvature(Y.detach()).root(torch.stack(J, 1))


def gram(expansion: Expansion, k: int, S: Tensor) -> Tensor:
    return expansion.gram(k, S, expansion.curvatures(k))


def by_sample(V: Tensor) -> Tensor:
    """Features as (m, positions, d)."""
    return V.T[:, None] if V.ndim == 2 else V


@pytest.mark.parametrize("name", ["relu", "leaky relu", "tanh", "sigmoid", *KINDS])
def test_the_gradient_of_a_row_is_exact(name):
    problem = Problem(name)
    for rows in rows_of(problem.equations):
        equation = problem.equations.layers[rows.index]
        slope, _ = problem.derivatives(rows.index)
        g = rows.targets(equation, slope).unflatten(1, (M, -1))  # groups, m, P, K
        for group in range(len(g)):
            V, expansion = problem.expansion(rows, group)
            for k in range(g.shape[3]):
                found = expansion.gradient(k, torch.arange(by_sample(V).shape[2]))
                expected = torch.einsum("mpd,mp->d", by_sample(V), g[group, :, :, k])
                torch.testing.assert_close(found, expected)
                torch.testing.assert_close(expansion.gains()[0][k], found)


def curvatures(problem: Problem, rows: Rows, group: int, k: int, V: Tensor) -> Tensor:
    """Σ v J'FJ v' of a row, Gauss-Newton, from the written out J."""
    equation = problem.equations.layers[rows.index]
    _, R = problem.derivatives(rows.index)
    own = torch.stack([rows.targets(equation, r)[group][:, k].view(M, -1) for r in R.unbind(1)], 1)
    found = (own @ by_sample(V)).flatten(0, 1)
    return found.T @ found


@pytest.mark.parametrize("name", ["relu", "tanh", *(kind for kind in KINDS if kind != MANY)])
def test_the_curvature_of_a_row_is_that_of_gauss_and_newton(name):
    problem = Problem(name)
    for rows in rows_of(problem.equations):
        groups, K, _ = rows.weights(problem.equations.layers[rows.index]).shape
        for group in range(groups):
            V, expansion = problem.expansion(rows, group)
            k = K - 1
            H = gram(expansion, k, torch.arange(by_sample(V).shape[2]))
            expected = curvatures(problem, rows, group, k, V)
            torch.testing.assert_close(H, expected)
            torch.testing.assert_close(expansion.gains()[1][k], H.diagonal())


def test_of_many_outputs_the_curvature_is_right_on_average():
    problem = Problem(MANY)
    assert problem.T.shape[1] > PROBES
    for rows in rows_of(problem.equations):
        V, _ = problem.expansion(rows, 0)
        every = torch.arange(by_sample(V).shape[2])
        draws = torch.stack(
            [gram(problem.expansion(rows, 0, seed)[1], 0, every) for seed in range(300)]
        )
        expected = curvatures(problem, rows, 0, 0, V)
        error = (draws.mean(0) - expected).norm() / expected.norm()
        assert error < 0.1


@pytest.mark.parametrize("name", ["tanh", "residual", "tokens", MANY])
def test_the_curvature_of_output_rows_is_that_of_the_distance(name):
    problem = Problem(name)
    rows = rows_of(problem.equations)[-1]
    assert rows.index == len(problem.equations.hidden)
    V, expansion = problem.expansion(rows, 0)
    for k in (0, problem.T.shape[1] - 1):

        def total(w: Tensor, k: int = k) -> Tensor:
            dz = torch.zeros_like(problem.T)
            dz[:, k] = (by_sample(V) @ w)[:, 0]
            return problem.distance(problem.down.Y + dz, problem.T).sum()

        w = torch.zeros(by_sample(V).shape[2]).double()
        expected = torch.autograd.functional.hessian(total, w)
        assert isinstance(expected, Tensor)
        H = gram(expansion, k, torch.arange(len(w)))
        torch.testing.assert_close(H, expected)


@pytest.mark.parametrize("name", ["tanh", "tokens"])
def test_a_channel_knows_what_the_channels_before_it_have_done(name):
    """To first order in the change, its gradient is the one at the changed outputs."""
    problem, eps = Problem(name), 1e-4
    rows = rows_of(problem.equations)[-1]
    V, expansion = problem.expansion(rows, 0)
    S = torch.arange(by_sample(V).shape[2])
    w = eps * torch.randn(len(S), generator=torch.Generator().manual_seed(0)).to(V)
    before = expansion.gradient(1, S)
    expansion.change(0, S, w)
    after = expansion.gradient(1, S)
    Y = problem.down.Y.clone()
    Y[:, 0] += (by_sample(V) @ w)[:, 0]
    slope = problem.distance.slope(Y, problem.T)[:, 1]
    exact = torch.einsum("mpd,mp->d", by_sample(V), slope[:, None])
    torch.testing.assert_close((after - before) / eps, (exact - before) / eps, rtol=1e-2, atol=1e-3)
    assert ((after - before) / eps).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["relu", "sigmoid", *KINDS])
def test_a_move_is_followed_to_the_outputs(name):
    problem = Problem(name)
    for index, equation in enumerate(problem.equations.layers):
        dz = torch.randn(M, equation.size, generator=torch.Generator().manual_seed(index))
        dz = 0.5 * dz.to(problem.u)
        before = problem.down.Y.clone()
        move = problem.down.move(index, dz)
        expected = forward(problem.equations, problem.u, index, dz)
        torch.testing.assert_close(move.Y, expected)
        total = float(problem.distance(expected, problem.T).sum())
        assert move.distance == pytest.approx(total, rel=1e-9)
        assert torch.equal(problem.down.Y, before)  # nothing is taken over yet


@pytest.mark.parametrize("name", ["relu", "sigmoid", *KINDS])
def test_a_move_of_some_channels_is_the_move_with_zeros_for_the_others(name):
    problem = Problem(name)
    for rows in rows_of(problem.equations):
        equation = problem.equations.layers[rows.index]
        places = rows.places(equation, 0, slice(0, 2)).flatten()
        dz = torch.randn(M, len(places), generator=torch.Generator().manual_seed(1)).to(problem.u)
        whole = torch.zeros(M, equation.size).to(dz).index_add(1, places, dz)
        expected = problem.down.move(rows.index, whole)
        move = problem.down.move(rows.index, dz, places)
        torch.testing.assert_close(move.Y, expected.Y)
        problem.down.accept(move)
        for index, _, z, x in expected.states:
            torch.testing.assert_close(problem.down.Z[index], z)
            torch.testing.assert_close(problem.down.X[index], x)
        problem = Problem(name)
