"""What people bring goes in, and comes out as what they brought."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import simplicit
from simplicit.capture.read import capture
from simplicit.model.implicit import ImplicitModel

from . import interfaces
from .interfaces import INTERFACES, called, leaves, network


def assert_same(found: Any, expected: Any, close: float = 1e-5) -> None:
    found, expected = leaves(found), leaves(expected)
    assert [y.shape for y in found] == [y.shape for y in expected]
    for y, z in zip(found, expected, strict=True):
        assert float((y - z).abs().max()) <= close * max(1.0, float(z.abs().max()))


@pytest.fixture(params=INTERFACES, scope="module")
def case(request):
    net, inputs = network(request.param), INTERFACES[request.param][1]()
    return net, inputs, ImplicitModel.from_equations(capture(net, inputs))


@torch.no_grad()
def test_the_model_is_called_and_returns_as_the_network(case):
    net, inputs, model = case
    for some in (slice(None), slice(1), slice(3, 10)):
        found, expected = called(model, inputs, some), called(net, inputs, some)
        assert_same(found, expected)
        assert isinstance(found, Tensor) == isinstance(expected, Tensor)


@torch.no_grad()
def test_all_weights_are_matched(case):
    net, inputs, model = case
    tables = [m.weight for m in net.modules() if isinstance(m, torch.nn.Embedding)]
    with torch.enable_grad():
        parts = [(y * torch.randn_like(y)).sum() for y in leaves(called(net, inputs))]
        torch.stack(parts).sum().backward()
    own = [p for p in net.parameters() if p.grad is not None and p.grad.any() and p.ndim > 1]
    tied = isinstance(net, interfaces.Tied)  # then the table is a weight, too
    own = [p for p in own if tied or not any(p is table for table in tables)]
    lengths = [p for name, p in net.named_parameters() if name.endswith("original0")]
    own = [p for p in own if not any(p is length for length in lengths)]  # of weight norm
    assert model.nonzeros == sum(int(p.count_nonzero()) for p in own)


@torch.no_grad()
def test_plain_modules_take_and_return_the_same(case):
    net, inputs, model = case
    explicit = model.to_explicit()
    for some in (slice(None), slice(1), slice(3, 10)):
        assert_same(called(explicit, inputs, some), called(net, inputs, some))


@torch.no_grad()
def test_a_file_has_all_of_it(case, tmp_path):
    net, inputs, model = case
    model.save(tmp_path)
    again = simplicit.load(tmp_path)
    found = called(again, inputs)
    assert_same(found, called(net, inputs))
    assert_same(called(again.to_explicit(), inputs), called(net, inputs))


def test_half_of_the_weights_do_and_go_back_into_the_network(case):
    net, inputs, whole = case
    own = copy.deepcopy(net)
    model = simplicit.implicitize(
        net, inputs, sparsity=0.5, structure="layered", sweeps=0, workers=1
    )
    assert model.nonzeros <= round(0.5 * whole.nonzeros)
    model.load_into(own)
    with torch.no_grad():
        assert_same(called(own, inputs), called(model, inputs), 1e-4)
        for y, z in zip(leaves(called(model, inputs)), leaves(called(net, inputs)), strict=True):
            assert y.shape == z.shape
            error, spread = (y - z).square().mean(), (z - z.mean(0)).square().mean()
            assert error < spread


@pytest.mark.parametrize(
    "name", ["ids", "ids and a mask", "a table with labels", "two inputs", "tuple of heads", "LSTM"]
)
def test_batches_with_labels_are_those_of_the_network(name):
    net, inputs = network(name), INTERFACES[name][1]()
    if isinstance(inputs, dict):
        batches: list[Any] = [
            {name: part[k : k + 10] for name, part in inputs.items()} for k in range(0, 40, 10)
        ]
    else:
        parts = inputs if isinstance(inputs, tuple) else (inputs,)
        batches = [
            (*(part[k : k + 10] for part in parts), torch.zeros(10)) for k in range(0, 40, 10)
        ]
    model = simplicit.implicitize(net, batches, sparsity=0.0, sweeps=0, workers=1)
    with torch.no_grad():
        assert_same(called(model, inputs), called(net, inputs), 2e-2)
