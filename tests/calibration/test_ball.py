"""The ball of a row holds the teacher as promised, and what is solved under it."""

import pytest
import torch
from torch import nn

import simplicit
from simplicit.calibration.ball import Constraint, RowConstraint
from simplicit.calibration.structure import row_blocks
from simplicit.capture.read import capture


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


@pytest.mark.parametrize("structure", ["full", "triangular", "layered"])
def test_the_ball_has_the_blocks_own_columns_and_no_bias(structure):
    equations = capture(teacher(), samples(2))
    kinds: list[tuple[Constraint, int]] = [("states", 0), ("row", 6)]
    for kind, inputs in kinds:
        constraint = RowConstraint(equations, kind, 0.5)
        for block in row_blocks(equations, structure, bias=True)[:-1]:
            ball = constraint.ball(block)
            assert isinstance(ball.features, torch.Tensor)
            columns = block.columns[ball.features]
            states = columns[columns < 9]
            assert states.tolist() == block.columns[block.columns < 9].tolist()
            assert len(columns) - len(states) in (0, inputs) and not (columns == 15).any()


def test_the_successors_preset_bounds_whole_rows_and_fits_the_outputs():
    net, u = teacher(), samples()
    constraint = RowConstraint(capture(net, u), "row", 1.0)
    counts = []
    for kappa in (0.8, 0.2):
        model = simplicit.implicitize(net, u, preset="acml2025", kappa=kappa, tol=1e-8)
        norms = model.A.abs() @ constraint.omega + model.B.abs().sum(1)
        assert (norms <= kappa * constraint.omega * (1 + 1e-9)).all()
        assert (norms > 0.99 * kappa * constraint.omega).all()  # a teacher of norm 1 needs it all
        assert model.certificate.well_posed and model.certificate.norm <= kappa * (1 + 1e-9)
        counts.append(int(model.A.count_nonzero() + model.B.count_nonzero()))
        # C and D are least squares on the teacher's own states
        states = [net[:2](u), net[:4](u)]  # pyright: ignore[reportIndexIssue]
        V = torch.cat([*states[::-1], u], 1)
        residual = net(u) - V @ torch.cat([model.C, model.D], 1).T
        assert (residual.T @ V).abs().max() < 1e-6 * len(u)
    assert counts[1] < counts[0]
