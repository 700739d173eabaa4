"""The ball of a row holds the teacher as promised, and what is solved under it."""

import pytest
import torch
from torch import nn

import simplicit
from example_networks import Net
from simplicit.calibration.ball import RowConstraint
from simplicit.calibration.rows import rows_of
from simplicit.calibration.structure import structured
from simplicit.capture.read import capture
from simplicit.convex.penalty import Ball


def teacher(phi: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 5, bias=False), phi(), nn.Linear(5, 4, bias=False), phi(), nn.Linear(4, 3)
    ).double()


def samples(m: int = 200) -> torch.Tensor:
    return torch.randn(m, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("phi", [nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("kappa", [0.2, 0.9])
def test_the_teacher_is_inside_or_has_norm_one(phi, kappa):
    equations = capture(teacher(phi), samples(2))
    A, B, *_ = equations.dense()
    slopes = torch.tensor([e.phi.lipschitz for e in equations.hidden for _ in range(e.size)])
    slopes = slopes.flip(0).double()
    omega = RowConstraint(equations, "states", kappa).omega
    norms = slopes * (A.abs() @ omega)
    torch.testing.assert_close(norms, kappa * (omega - 1), rtol=1e-9, atol=0)
    omega = RowConstraint(equations, "row", kappa).omega
    norms = slopes * (A.abs() @ omega + B.abs().sum(1)) / omega
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-12, atol=0)


def test_a_row_without_weights_has_weight_one():
    net = teacher()
    with torch.no_grad():
        net[0].weight[2] = 0.0  # pyright: ignore[reportIndexIssue]
    omega = RowConstraint(capture(net, samples(2)), "row", 0.5).omega
    assert omega[4 + 2] == 1.0 and (omega > 0).all()


def norm(W: torch.Tensor, ball: Ball) -> torch.Tensor:
    assert ball.weights is not None
    return W[:, ball.features].abs() @ ball.weights


@pytest.mark.parametrize("kind", ["states", "row"])
@pytest.mark.parametrize("structure", ["full", "triangular", "layered"])
def test_the_ball_of_a_row_is_its_part_of_the_norm_and_has_no_bias(structure, kind):
    """Σ_j weights_j |w_j| over the ball is Σ_j ω_j |a_ij|, with the inputs where κ bounds them."""
    network = capture(teacher(), samples(2))
    equations = structured(network, structure)
    constraint = RowConstraint(network, kind, 0.5)
    omega = constraint.omega
    A, B, *_ = equations.dense()
    norms = A.abs() @ omega + (B.abs().sum(1) if kind == "row" else 0.0)
    found = []
    for rows in rows_of(equations):
        ball = constraint.ball(rows, equations, free=1)
        if rows.index == len(equations.hidden):
            assert ball is None
            continue
        assert ball is not None and isinstance(ball.features, torch.Tensor)
        W = rows.weights(equations.layers[rows.index])[0]
        W = torch.cat([W, torch.full_like(W[:, :1], 1e9)], 1)  # the bias
        found.append(torch.stack([norm(W, ball), torch.as_tensor(ball.radius)]))
        counted = [size for s, size in rows.sources(equations) if s >= 0 or kind == "row"]
        assert len(ball.features) == sum(counted)
    mine, radius = torch.cat(found[::-1], 1)
    torch.testing.assert_close(mine, norms)
    torch.testing.assert_close(radius, 0.5 * omega)  # ReLU: L = 1


@pytest.mark.parametrize("kind", ["states", "row"])
def test_what_comes_to_a_row_with_another_sign_or_size_is_in_its_ball(kind):
    net = Net(
        lambda s, x: s.layers[2](
            torch.tanh(s.layers[1](torch.cat([x, -(h := s.layers[0](x).relu()), 0.5 * h], 1)))
        ),
        *(nn.Linear(6, 5), nn.Linear(16, 4), nn.Linear(4, 3)),
    )
    equations = capture(net.double(), samples(2))
    constraint = RowConstraint(equations, kind, 0.5)
    (rows,) = (rows for rows in rows_of(equations) if rows.index == 1)
    ball = constraint.ball(rows, equations, free=1)
    assert ball is not None and isinstance(ball.features, torch.Tensor)
    W = rows.weights(equations.layers[1])[0]
    A, B, *_ = equations.dense()
    norms = A[:4].abs() @ constraint.omega + (B[:4].abs().sum(1) if kind == "row" else 0.0)
    # a state that is read twice counts twice
    assert (norm(W, ball) >= norms - 1e-9).all()
    assert len(ball.features) == (16 if kind == "row" else 10)


def test_the_successors_preset_bounds_whole_rows_and_fits_the_outputs():
    net, u = teacher(), samples()
    constraint = RowConstraint(capture(net, u), "row", 1.0)
    counts = []
    for kappa in (0.8, 0.2):
        model = simplicit.implicitize(net, u, preset="acml2025", kappa=kappa, tol=1e-8)
        A, B, C, D = (M.to_dense().detach() for M in (model.A, model.B, model.C, model.D))
        norms = A.abs() @ constraint.omega + B.abs().sum(1)
        assert (norms <= kappa * constraint.omega * (1 + 1e-9)).all()
        assert (norms > 0.99 * kappa * constraint.omega).all()  # a teacher of norm 1 needs it all
        assert model.certificate.well_posed and model.certificate.norm <= kappa * (1 + 1e-9)
        counts.append(int(A.count_nonzero() + B.count_nonzero()))
        # C and D are least squares on the teacher's own states
        states = [net[:2](u), net[:4](u)]  # pyright: ignore[reportIndexIssue]
        V = torch.cat([*states[::-1], u], 1)
        residual = net(u) - V @ torch.cat([C, D], 1).T
        assert (residual.T @ V).abs().max() < 1e-6 * len(u)
    assert counts[1] < counts[0]
