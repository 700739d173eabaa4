"""What people bring goes in, and comes out as what they brought."""

import copy
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import interfaces
import simplicit
from interfaces import INTERFACES, called, leaves, network
from shapes import unchecked
from simplicit import fit
from simplicit.calibration.batches import batches
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.model.implicit import ImplicitModel


def assert_same(found: Any, expected: Any, close: float = 1e-5) -> None:
    found, expected = leaves(found), leaves(expected)
    assert [y.shape for y in found] == [y.shape for y in expected]
    for y, z in zip(found, expected, strict=True):
        assert float((y - z).abs().max()) <= close * max(1.0, float(z.abs().max()))


SLICES = (slice(None), slice(1), slice(3, 10))

ALIKE = {
    "a table with labels", "two inputs by name", "named tuple", "dataclass", "dataclass of one",
    "nested heads", "logits and probabilities", "image of probabilities", "log softmax", "tanh",
    "relu", "RNN cells", "GRU cells", "LSTM cells", "words out",
}  # fmt: skip
"""Networks whose rows are those of others; they differ in how they are called."""


@cache
def read(name: str) -> StateEquations:
    """The equations of a network, from its inputs as they are or, where it is fitted, as packed."""
    net, inputs = network(name), INTERFACES[name][1]()
    if name in ALIKE:
        return capture(net, inputs)
    stream = batches(inputs, 1000, net)
    return capture(net, stream.example, stream.inputs)


@torch.no_grad()
@pytest.mark.parametrize("name", INTERFACES)
def test_what_goes_in_comes_out(name, tmp_path):
    net, inputs = network(name), INTERFACES[name][1]()
    model = ImplicitModel.from_equations(read(name))
    assert model.nonzeros == sum(int(p.count_nonzero()) for p in matrices(net, inputs))
    model.save(tmp_path)
    again, explicit = simplicit.load(tmp_path), model.to_explicit()
    for some in SLICES:
        found, expected = called(model, inputs, some), called(net, inputs, some)
        assert isinstance(found, Tensor) == isinstance(expected, Tensor)
        for other in (found, called(again, inputs, some), called(explicit, inputs, some)):
            assert_same(other, expected)
    assert_same(called(again.to_explicit(), inputs), called(net, inputs))


@pytest.mark.parametrize("name", ["two inputs", "image of events", "gathered"])
def test_slopes_reach_the_inputs(name):
    net, inputs = network(name), INTERFACES[name][1]()
    model = ImplicitModel.from_equations(capture(net, inputs))
    every = inputs if isinstance(inputs, tuple) else (inputs,)
    given = [x.clone().requires_grad_(x.is_floating_point()) for x in every]
    moving = [x for x in given if x.requires_grad]
    found, expected = (torch.autograd.grad(f(*given).square().sum(), moving) for f in (model, net))
    assert_same(found, expected)


@torch.no_grad()
def test_no_samples_give_no_outputs():
    for name in ("two inputs", "sigmoid", "image out"):
        net, inputs = network(name), INTERFACES[name][1]()
        model = ImplicitModel.from_equations(capture(net, inputs))
        assert called(model, inputs, slice(0)).shape == called(net, inputs, slice(0)).shape


def test_a_network_of_tables_alone_has_nothing_to_match():
    net = interfaces.Tied()
    net.body = nn.Sequential(nn.ReLU())
    with pytest.raises(simplicit.InputError, match="every weight is a table of an embedding"):
        simplicit.implicitize(net, INTERFACES["tied embedding"][1](), sparsity=0.2)


def matrices(net: nn.Module, inputs: Any) -> list[nn.Parameter]:
    """The weights that outputs feel; tables of embeddings are weights where they are tied."""
    tables = [m.weight for m in net.modules() if isinstance(m, nn.Embedding)]
    with torch.enable_grad():
        parts = [(y * torch.randn_like(y)).sum() for y in leaves(called(net, inputs))]
        torch.stack(parts).sum().backward()
    lengths = [p for name, p in net.named_parameters() if name.endswith("original0")]
    left = lengths if isinstance(net, interfaces.Tied) else [*lengths, *tables]
    felt = [p for p in net.parameters() if p.grad is not None and p.grad.any() and p.ndim > 1]
    return [p for p in felt if not any(p is other for other in left)]


@pytest.mark.parametrize("name", [name for name in INTERFACES if name not in ALIKE])
def test_half_of_the_weights_do_and_go_back_into_the_network(name):
    net, inputs = network(name), INTERFACES[name][1]()
    own = copy.deepcopy(net)
    with patch.object(fit, "capture", lambda *_: read(name)), unchecked():
        model = simplicit.implicitize(
            net, inputs, sparsity=0.5, structure="layered", sweeps=0, workers=1
        )
    assert model.nonzeros <= round(0.5 * model.reference_nonzeros)
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
    with unchecked():
        model = simplicit.implicitize(net, batches, sparsity=0.0, sweeps=0, workers=1)
    with torch.no_grad():
        assert_same(called(model, inputs), called(net, inputs), 2e-2)
