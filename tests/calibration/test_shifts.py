"""Shifts of a convolution's image are its patches, whatever the kernel."""

from itertools import product

import pytest
import torch
from torch import nn

from conv_networks import images
from example_networks import seeded
from simplicit.calibration import moments, shifts
from simplicit.calibration.batches import batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.moments import Candidate, Readings
from simplicit.calibration.rows import rows_of
from simplicit.calibration.shifts import Shifts
from simplicit.capture.read import capture

CONVOLUTIONS = {
    "one axis": (lambda: nn.Conv1d(3, 5, 7, padding=3), (3, 20)),
    "no padding": (lambda: nn.Conv1d(2, 4, 6), (2, 15)),
    "uneven padding": (lambda: nn.Conv1d(2, 4, 6, padding="same"), (2, 15)),
    "holes": (lambda: nn.Conv1d(3, 5, 4, dilation=3, padding=4), (3, 20)),
    "longer than its places": (lambda: nn.Conv1d(2, 3, 9, padding=2), (2, 8)),
    "other steps along the other axis": (
        lambda: nn.Conv2d(3, 5, (5, 3), padding=(2, 1), stride=(1, 2)),
        (3, 8, 9),
    ),
    "the last axis": (lambda: nn.Conv2d(2, 4, (2, 6), padding=(1, 0)), (2, 4, 12)),
    "three axes": (lambda: nn.Conv3d(2, 3, (2, 5, 2), padding=(0, 2, 1)), (2, 3, 7, 3)),
}


def problem(name: str, dtype: torch.dtype, far: float = 2.0):
    make, shape = CONVOLUTIONS[name]
    u = (images(9, shape) + far).to(dtype)
    with torch.no_grad():
        size = seeded(make).to(dtype)(u[:1]).numel()
    net = seeded(lambda: nn.Sequential(make(), nn.ReLU(), nn.Flatten(), nn.Linear(size, 2)))
    return capture(net.eval().to(dtype), u), u


def read(equations, u, coherence=0.0, bias=True):
    rows, equation = rows_of(equations)[0], equations.hidden[0]
    frontier = Frontier(equations, batches(u, 4), own=True)
    readings = Readings(rows, equation, frontier, bias, coherence)
    grams = readings.moments(keep=True)
    W = rows.weights(equation)
    candidate = Candidate(0.5 * W, torch.full_like(W[..., 0], 0.3))
    return grams[0], readings.retargeted(grams, candidate)[0]


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shifts_have_the_moments_of_written_patches(name, dtype, monkeypatch):
    equations, u = problem(name, dtype)
    tol = 1e-12 if dtype is torch.float64 else 1e-6
    for coherence, bias in product((0.0, 0.4), (True, False)):
        monkeypatch.setattr(shifts, "WORTH", 0.0)
        written = read(equations, u, coherence, bias)
        monkeypatch.setattr(shifts, "WORTH", 100.0)
        shifted = read(equations, u, coherence, bias)
        for one, other in zip(written, shifted, strict=True):
            assert one.m == other.m
            for part in ("G", "R", "t2"):
                expected, found = getattr(one, part), getattr(other, part)
                assert float((found - expected).abs().max()) <= tol * float(expected.abs().max())


def test_channels_that_are_far_from_zero_and_hardly_move_keep_their_digits(monkeypatch):
    """As the rows see it, which have a bias; around the input are zeros, which are far from it."""
    equations, u = problem("one axis", torch.float32, far=0.0)
    u = 1e-3 * u + 1
    rows, equation = rows_of(equations)[0], equations.hidden[0]
    V = rows.features(equation, [u.double().flatten(1)])[0]
    V = V - V.mean(0)
    exact = V.T @ V / len(V)
    size = exact.diagonal().sqrt()
    monkeypatch.setattr(shifts, "WORTH", 100.0)
    G = read(equations, u)[0].G
    found = (G - G[-1:].T @ G[-1:])[:-1, :-1]
    assert float(((found - exact).abs() / (size[:, None] * size)).max()) < 1e-7


@pytest.mark.parametrize("name", ["one axis", "no padding"])
def test_a_feature_that_is_constant_has_no_variance(name, monkeypatch):
    equations, u = problem(name, torch.float32)
    u[:, 1] = 1.2345
    monkeypatch.setattr(shifts, "WORTH", 100.0)
    rows, equation = rows_of(equations)[0], equations.hidden[0]
    constant = rows.features(equation, [u.flatten(1)])[0].var(0) == 0
    assert constant.any() and not constant.all()
    for coherence in (0.0, 0.4):
        G = read(equations, u, coherence)[0].G
        variance = (G - G[-1:].T @ G[-1:] / G[-1, -1]).diagonal()[:-1]
        assert (variance[constant].abs() <= 1e-15 * G.diagonal()[:-1][constant]).all()
        assert (variance[~constant] > 1e-3).all()


def test_all_positions_count_where_shifts_cost_no_more(monkeypatch):
    equations, u = problem("one axis", torch.float64)
    monkeypatch.setattr(moments, "POSITIONS", 4)
    assert read(equations, u)[0].m == 9 * 4
    monkeypatch.setattr(shifts, "WORTH", 100.0)
    assert read(equations, u)[0].m == 9 * 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv1d(4, 4, 16, groups=2),
        lambda: nn.Conv1d(4, 4, 16, stride=2),
        lambda: nn.Linear(40, 4),
    ],
    ids=["groups", "strides", "dense"],
)
def test_what_is_no_shift_is_written_out(make):
    shape = (40,) if isinstance(make(), nn.Linear) else (4, 40)
    with torch.no_grad():
        size = make()(images(1, shape).float()).numel()
    net = nn.Sequential(make(), nn.ReLU(), nn.Flatten(), nn.Linear(size, 2)).double()
    equations = capture(net.eval(), images(4, shape))
    assert Shifts.of(rows_of(equations)[0], equations.hidden[0], 1000) is None
    long = nn.Sequential(nn.Conv1d(4, 4, 16), nn.ReLU(), nn.Flatten(), nn.Linear(100, 2)).double()
    equations = capture(long.eval(), images(4, (4, 40)))
    found = Shifts.of(rows_of(equations)[0], equations.hidden[0], 25)
    assert found is not None and found.cost < shifts.WORTH


def test_what_only_reads_zeros_is_zero(monkeypatch):
    """Entries that are always around the input, and places where the input is always zero."""
    monkeypatch.setitem(CONVOLUTIONS, "around", (lambda: nn.Conv1d(2, 3, 15, padding=7), (2, 5)))
    equations, u = problem("around", torch.float32)
    u[:, 0, :2] = 0.0
    rows, equation = rows_of(equations)[0], equations.hidden[0]
    zero = (rows.features(equation, [u.flatten(1)])[0] == 0).all(0)
    assert zero.any() and not zero.all()
    monkeypatch.setattr(shifts, "WORTH", 100.0)
    for coherence in (0.0, 0.4):
        gram = read(equations, u, coherence)[0]
        assert not gram.G[:-1][zero].any() and not gram.G[:, :-1][:, zero].any()
        assert not gram.R[:, :-1][:, zero].any()
