from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from conv_networks import images
from example_networks import captured, example, seeded
from simplicit.calibration import moments as module
from simplicit.calibration.batches import batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.moments import Candidate, Readings
from simplicit.calibration.rows import rows_of
from simplicit.calibration.structure import structured
from simplicit.capture.read import capture


def pooled():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def problem(m=7):
    u = images(m)
    equations = capture(seeded(pooled).eval(), u)
    rows = rows_of(equations)[0]
    return u, equations.hidden[0], rows, Frontier(equations, batches(u, 3), own=True)


@pytest.mark.parametrize("coherence", [0.0, 0.3, 1.0])
def test_errors_of_the_positions_weigh_as_the_coherence_says(coherence):
    u, equation, rows, frontier = problem()
    (gram,) = Readings(rows, equation, frontier, True, coherence).moments()
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
    (whole,) = Readings(every[2], every[1], every[3], True, 0.5).moments()
    monkeypatch.setattr(module, "POSITIONS", 12)
    (part,) = Readings(every[2], every[1], every[3], True, 0.5).moments()
    assert float(part.G.trace()) == pytest.approx(float(whole.G.trace()), rel=0.05)


@pytest.mark.parametrize("coherence", [0.9, 0.999, 1.0])
def test_of_few_samples_the_gram_of_drawn_positions_has_full_rank(coherence, monkeypatch):
    monkeypatch.setattr(module, "POSITIONS", 8)
    _, equation, rows, frontier = problem(12)
    (gram,) = Readings(rows, equation, frontier, True, coherence).moments()
    sizes = torch.linalg.eigvalsh(gram.G)
    # 12 samples of 28 features; those of the images' noise are alike
    assert len(sizes) == 28 and sizes[0] > 1e-4 * sizes[-1]


def test_of_many_samples_each_contributes_fewer_positions(monkeypatch):
    _, equation, rows, frontier = problem(40)
    monkeypatch.setattr(module, "ENOUGH", 400)
    (fewer,) = Readings(rows, equation, frontier, True).moments()
    assert fewer.m == 40 * module.FEWEST == 640
    monkeypatch.setattr(module, "FEWEST", 1)
    (fewest,) = Readings(rows, equation, frontier, True).moments()
    assert fewest.m == 400


class Later(Future):
    """An answer that is found when it is asked for, after those that were asked for later."""

    def __init__(self, waiting, work):
        super().__init__()
        self.waiting, self.work = waiting, work

    def result(self, timeout=None):
        while self.waiting:
            other = self.waiting.pop()
            other.set_result(other.work())
        return super().result(timeout)


class Reversed(Executor):
    """Does what it is given last first."""

    def __init__(self):
        self.waiting = []

    def submit(self, fn, /, *args, **kwargs):
        self.waiting.append(Later(self.waiting, partial(fn, *args, **kwargs)))
        return self.waiting[-1]


@pytest.mark.parametrize("coherence", [0.0, 0.5])
def test_any_executor_gives_the_same_bits(coherence, processes):
    _, equation, rows, frontier = problem(40)
    candidate = Candidate(rows.weights(equation), torch.zeros(1, 4).double())
    one = Readings(rows, equation, frontier, True, coherence)
    expected = [*one.moments(), *one.retargeted(one.moments(), candidate)]
    with ThreadPoolExecutor(2) as threads:
        for executor in (None, threads, Reversed(), processes):
            # what is kept and what is read again are the same
            many = Readings(rows, equation, frontier, True, coherence, executor)
            grams = many.moments(keep=True)
            for one, other in zip(
                expected, [*grams, *many.retargeted(grams, candidate)], strict=True
            ):
                assert other.m == one.m
                for name in ("G", "R", "t2"):
                    assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_single_precision_costs_a_millionth_of_the_variance_wherever_features_are(far):
    u = (images(300) + far).float()
    net = seeded(pooled).eval().float()
    equations = capture(net, u)
    rows, own = rows_of(equations)[0], equations.hidden[0]
    (gram,) = Readings(rows, own, Frontier(equations, batches(u, 64), own=True), True).moments()
    V = rows.features(own, [u.double().flatten(1)])[0]
    V = torch.cat([V, torch.ones_like(V[:, :1])], 1)
    exact = V.T @ V / len(V)
    deviation = V.std(0)
    deviation[-1] = 1.0
    # as the rows see it: with the bias, features count from their means
    mean = gram.G[-1:]
    found, wanted = gram.G - mean.T @ mean, exact - exact[-1:].T @ exact[-1:]
    error = (found - wanted).abs() / (deviation[:, None] * deviation)
    assert float(error.max()) < 3e-6


@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_the_gram_of_few_samples_is_not_made_indefinite_by_rounding(far):
    u = (images(3, (1, 30)) + far).float().flatten(1)
    net = seeded(lambda: nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2)))
    equations = capture(net.eval().float(), u)
    rows, own = rows_of(equations)[0], equations.hidden[0]
    (gram,) = Readings(rows, own, Frontier(equations, batches(u, 64), own=True), True).moments()
    values = torch.linalg.eigvalsh(gram.G)
    assert int((values > 1e-9 * values[-1]).sum()) <= len(u)
    assert float(values[0]) > -1e-13 * float(values[-1])


@pytest.mark.parametrize("structure", ["layered", "triangular", "full"])
def test_moments_of_matrices_are_means_over_all_samples(structure):
    """One position: the Gram of what a layer reads with ones behind it, and its targets."""
    u = example(40)
    network = captured("relu")
    equations = structured(network, structure)
    frontier = Frontier(equations, batches(u, 16), own=False)
    Z, Y = network.replay(u)
    X = [e.phi(z) for e, z in zip(network.hidden, Z, strict=True)]
    if structure == "full":
        Z, X = [torch.cat(Z[::-1], 1)], [torch.cat(X[::-1], 1)]
    for index, (rows, equation) in enumerate(
        zip(rows_of(equations), equations.layers, strict=True)
    ):
        for bias in (True, False):
            (gram,) = Readings(rows, equation, frontier, bias, 0.5).moments()
            V = torch.cat([[*X, u][equation.terms[t].source] for t in rows.terms], 1)
            V = torch.cat([V, torch.ones(40, int(bias)).double()], 1)
            assert equation.bias is not None
            T = [*Z, Y][index] - equation.bias
            assert gram.m == 40 and gram.G.dtype == torch.float64
            torch.testing.assert_close(gram.G, V.T @ V / 40)
            torch.testing.assert_close(gram.R, T.T @ V / 40)
            torch.testing.assert_close(gram.t2, T.square().mean(0))
        if index < len(equations.hidden):
            frontier.advance(equation)


def test_where_the_teacher_is_off_the_target_is_what_the_rows_make_of_it():
    u, equation, rows, frontier = problem()
    (gram,) = Readings(rows, equation, frontier, True).moments()
    W = rows.weights(equation)
    lower = Candidate(W, torch.full_like(W[..., 0], -100.0))
    (aware,) = Readings(rows, equation, frontier, True).retargeted([gram], lower)
    z = rows.targets(equation, equation.preactivation([u.flatten(1)]))[0]
    # targets of the last feature, the bias: present weights and as far below as the shift says
    moved = aware.R[:, -1] - gram.R[:, -1]
    torch.testing.assert_close(moved, -100.0 * (z <= 0).double().mean(0))
