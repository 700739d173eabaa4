import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conv_networks import images
from conv_networks import structured as convolutional
from example_networks import captured, example, seeded
from simplicit.calibration.batches import batches
from simplicit.calibration.rows import rows_of
from simplicit.calibration.structure import structured
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.outputs.distance import Distance
from simplicit.outputs.sensitivity import sensitivity


class Head(nn.Module):
    """A convolution whose outputs are summed up by position or kept apart."""

    def __init__(self, pool):
        super().__init__()
        self.first, self.pool = nn.Conv2d(3, 4, 1), pool
        self.last = nn.Linear(4 if pool else 4 * 36, 300)

    def forward(self, u):
        x = self.first(u)
        return self.last(x.mean((2, 3)) if self.pool else x.flatten(1))


def coherence(pool):
    u = images(60)
    equations = capture(seeded(lambda: Head(pool)).eval(), u)
    first, last = sensitivity(equations, equations, rows_of(equations), batches(u, 20))
    assert last.coherence == pytest.approx(0.0)  # one position
    return first


def test_before_an_average_only_the_sum_of_errors_counts():
    assert coherence(True).coherence == pytest.approx(1.0)


def test_positions_with_weights_of_their_own_do_not_add_up():
    found = coherence(False)
    assert found.coherence < 0.1
    assert found.coupling[0].diagonal().min() > 0


def in_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def exact(equations: StateEquations, u: Tensor) -> list[Tensor]:
    """F^½ ∂y/∂z for every layer, (m, r, size), by autograd; the outputs last."""
    Z, Y = equations.replay(u.clone().requires_grad_())
    distance, every = Distance(Y.detach()), [*Z, Y]
    slopes = [torch.autograd.grad(y.sum(), every, retain_graph=True) for y in Y.unbind(1)]
    return [
        distance.curvature(Y.detach()).root(torch.stack(parts, 1))
        for parts in zip(*slopes, strict=True)
    ]


@pytest.mark.parametrize("name", ["tanh, sigmoid", "residual", "tokens", "functional"])
def test_the_coupling_is_that_of_the_jacobian(name):
    """On average over the random directions; the sum over positions of Σ_r g g'."""
    matrices = name in ("tanh, sigmoid", "residual")
    equations, u = (captured(name), example(30)) if matrices else (convolutional(name), images(12))
    layers, jacobians = rows_of(equations), exact(equations, u)
    draws = [sensitivity(equations, equations, layers, batches(u, 7), seed) for seed in range(100)]
    for k, rows in enumerate(layers):
        found = torch.stack([torch.stack(draw[k].coupling) for draw in draws]).mean(0)
        equation, R = equations.layers[rows.index], jacobians[rows.index]
        g = torch.cat([rows.targets(equation, r) for r in R.unbind(1)], 1)
        expected = g.mT @ g / len(u)
        assert (found - expected).norm() < 0.15 * expected.norm()
        assert found.dtype == torch.float64


def test_full_and_triangular_rows_have_the_sensitivity_of_their_layers():
    network, u = captured("relu"), example(20)
    found = {}
    for structure in ("layered", "triangular", "full"):
        equations = structured(network, structure)
        found[structure] = sensitivity(network, equations, rows_of(equations), batches(u, 20))
    *layers, output = [s.coupling[0] for s in found["layered"]]
    for one, other in zip(found["layered"], found["triangular"], strict=True):
        assert torch.equal(one.coupling[0], other.coupling[0])
        assert one.coherence == other.coherence
    whole, last = (s.coupling[0] for s in found["full"])
    torch.testing.assert_close(last, output)
    # x begins with the last hidden layer
    for block, place in zip(layers, network.slices, strict=True):
        torch.testing.assert_close(whole[place, place], block)


@pytest.mark.parametrize("name", ["residual", "tokens", "functional"])
def test_the_numbers_do_not_depend_on_the_batches(monkeypatch, name):
    matrices = name == "residual"
    network, u = (captured(name), example(30)) if matrices else (convolutional(name), images(12))
    equations, u = network.changed(in_double), u.double()

    def found(size: int) -> list[Tensor]:
        every = sensitivity(equations, equations, rows_of(equations), batches(u, size))
        coherence = torch.tensor([one.coherence for one in every])
        return [coherence, *(S for one in every for S in one.coupling)]

    whole = found(1000)
    for size, room in ((5, 2.0**30), (1000, 1.0), (7, 10_000.0)):
        monkeypatch.setattr("simplicit.outputs.sensitivity.MEMORY", room)
        torch.testing.assert_close(found(size), whole)


def test_of_many_samples_some_are_looked_at_spread_evenly(monkeypatch):
    network, u = convolutional("functional"), images(30)
    layers = rows_of(network)
    some = sensitivity(network, network, layers, batches(u[::3], 30))
    monkeypatch.setattr("simplicit.outputs.sensitivity.ENOUGH", 10)
    for size in (30, 7, 2):
        for one, other in zip(
            sensitivity(network, network, layers, batches(u, size)), some, strict=True
        ):
            torch.testing.assert_close(one.coupling, other.coupling)
            assert one.coherence == pytest.approx(other.coherence, abs=1e-5)


class Live:
    """Bytes that autograd holds: now, and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __call__(self, tensor: Tensor) -> Callable[[], Tensor]:
        self.now += tensor.nbytes
        self.most = max(self.most, self.now)

        def held() -> Tensor:
            return tensor

        weakref.finalize(held, self._free, tensor.nbytes)
        return held

    def _free(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("name", ["functional", "tokens", "encoder layer"])
def test_a_batch_takes_the_memory_that_it_may_take(monkeypatch, name):
    equations, u = convolutional(name), images(3000)
    monkeypatch.setattr("simplicit.outputs.sensitivity.ENOUGH", len(u))
    weights = sum(term.weight.nbytes for e in equations.layers for term in e.terms)
    taken = []
    for room in (2.0**18, 2.0**20):
        monkeypatch.setattr("simplicit.outputs.sensitivity.MEMORY", room)
        live = Live()
        with torch.autograd.graph.saved_tensors_hooks(live, lambda held: held()):
            sensitivity(equations, equations, rows_of(equations), batches(u, 1000))
        assert live.most - weights <= room
        taken.append(live.most - weights)
    assert taken[1] > 2 * taken[0]  # what it may take it uses


def test_one_seed_gives_the_same_bits():
    equations, u = captured("tanh, sigmoid"), example(20)
    one = sensitivity(equations, equations, rows_of(equations), batches(u, 20))
    again = sensitivity(equations, equations, rows_of(equations), batches(u, 20))
    for first, second in zip(one, again, strict=True):
        assert torch.equal(first.coupling[0], second.coupling[0])
