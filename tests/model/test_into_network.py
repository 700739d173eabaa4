"""Weights go back into the network's own class, or are refused with the layer's name."""

import copy

import pytest
import torch
from torch import nn

from random_models import implicit_model
from simplicit.calibration.structure import structured
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.equations.operators import with_weights
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh())
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(4, 3)).double().eval()


def halved(equations: StateEquations) -> StateEquations:
    weights = [[term.weight / 2 for term in e.terms] for e in equations.layers]
    return with_weights(equations, weights, [None] * len(weights))


@pytest.mark.parametrize("structure", ["layered", "triangular"])
def test_matrices_go_back_into_the_network(structure):
    net, u = network(), torch.randn(7, 2, 3).double()
    equations = halved(structured(capture(net, u), structure))
    model = ImplicitModel.from_equations(equations, structure=structure)
    other = copy.deepcopy(net)
    model.load_into(other)
    torch.testing.assert_close(other(u), model(u), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(other(u), net(u), atol=1e-3)
    assert torch.equal(other.get_parameter("4.weight"), net.get_parameter("4.weight") / 2)


@pytest.mark.parametrize(("reads", "source"), [(-1, "the input"), (0, "1")])
def test_connections_that_the_network_has_not_are_named(reads, source):
    net = network()
    equations = structured(capture(net, torch.randn(7, 2, 3).double()), "triangular")
    for term in equations.output.terms:
        if term.source == reads:
            term.weight[0, 0] = 1.0
    model = ImplicitModel.from_equations(equations, structure="triangular")
    before = copy.deepcopy(net.state_dict())
    line = f"layer 6 has skip connections from {source}, .* structure='layered'"
    with pytest.raises(InputError, match=line):
        model.load_into(net)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("structure", ["full", "triangular", "layered"])
def test_matrices_without_a_network_are_refused(structure):
    with pytest.raises(InputError, match="no names of a network's parameters"):
        implicit_model(structure).load_into(network())
