import pytest
import torch
from torch import nn

from conv_networks import images
from example_networks import seeded
from simplicit.calibration import moments as module
from simplicit.calibration.batches import batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.moments import Candidate, moments
from simplicit.calibration.rows import channels
from simplicit.capture.read import capture


def pooled():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def problem(m=7):
    u = images(m)
    equations = capture(seeded(pooled).eval(), u)
    rows = channels(equations)[0]
    return u, equations.hidden[0], rows, Frontier(equations, batches(u, 3), own=True)


@pytest.mark.parametrize("coherence", [0.0, 0.3, 1.0])
def test_errors_of_the_positions_weigh_as_the_coherence_says(coherence):
    u, equation, rows, frontier = problem()
    (gram,) = moments(rows, equation, frontier, True, coherence)
    W = torch.randn(gram.R.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = 0.5 * ((W @ gram.G * W).sum(1) - 2 * (W * gram.R).sum(1) + gram.t2)
    V = rows.features(equation, [u.flatten(1)])[0]
    V = torch.cat([V, torch.ones_like(V[:, :1])], 1)
    z = rows.targets(equation, equation.preactivation([u.flatten(1)]))[0]
    bias = equation.channel_bias
    assert bias is not None
    # rows add a correction to the bias that is there
    e = (V @ W.T - (z - bias)).unflatten(0, (len(u), -1))
    P = e.shape[1]
    alone, together = e.square().sum(1), e.sum(1).square()
    expected = ((1 - coherence) * alone + coherence * together).mean(0) / (2 * P)
    torch.testing.assert_close(found, expected)


def test_the_sum_over_positions_is_estimated_from_some_of_them(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 1)
    every = problem(200)
    (whole,) = moments(every[2], every[1], every[3], True, 0.5)
    monkeypatch.setattr(module, "POSITIONS", 12)
    (part,) = moments(every[2], every[1], every[3], True, 0.5)
    assert float(part.G.trace()) == pytest.approx(float(whole.G.trace()), rel=0.05)


def test_of_many_samples_each_contributes_fewer_positions(monkeypatch):
    _, equation, rows, frontier = problem(40)
    monkeypatch.setattr(module, "ENOUGH", 400)
    (fewer,) = moments(rows, equation, frontier, True)
    assert fewer.m == 40 * module.FEWEST == 640
    monkeypatch.setattr(module, "FEWEST", 1)
    (fewest,) = moments(rows, equation, frontier, True)
    assert fewest.m == 400


def test_the_number_of_workers_changes_no_bit():
    _, equation, rows, frontier = problem(40)
    (one,) = moments(rows, equation, frontier, True, 0.5)
    (two,) = moments(rows, equation, frontier, True, 0.5, workers=2)
    assert torch.equal(one.G, two.G)
    assert torch.equal(one.R, two.R)
    assert torch.equal(one.t2, two.t2)


def test_where_the_teacher_is_off_the_target_is_what_the_rows_make_of_it():
    u, equation, rows, frontier = problem()
    (gram,) = moments(rows, equation, frontier, True)
    W = rows.weights(equation)
    lower = Candidate(W, torch.full_like(W[..., 0], -100.0))
    (aware,) = moments(rows, equation, frontier, True, 0.0, lower, [gram])
    z = rows.targets(equation, equation.preactivation([u.flatten(1)]))[0]
    # targets of the last feature, the bias: present weights and as far below as the shift says
    moved = aware.R[:, -1] - gram.R[:, -1]
    torch.testing.assert_close(moved, -100.0 * (z <= 0).double().mean(0))
