from dataclasses import replace

import pytest
import torch
from torch import nn

from conv_networks import CONVOLUTIONAL, images, structured
from example_networks import captured, example, seeded
from simplicit.capture.read import capture
from simplicit.model.implicit import ImplicitModel
from simplicit.units.found import units_of
from simplicit.units.narrow import narrow

NAMES = [
    *CONVOLUTIONAL, "relu", "tanh, sigmoid", "concatenation", "residual", "batch norm", "shared",
]  # fmt: skip


def network(name):
    return (structured(name), images(4)) if name in CONVOLUTIONAL else (captured(name), example(4))


def some(equations, units, seed=0):
    """Half of the units, at least one of each layer."""
    stay = torch.rand(units.count, generator=torch.Generator().manual_seed(seed)) < 0.5
    for channels in (c for own in units.channels for c in own):
        stay[channels[:1].clamp_min(0)[channels[:1] >= 0]] = True
    return stay


def silenced(equations, u, left):
    """States where those of units that are gone are zero, and constants that are read there."""
    states, alive = [], [*(kept[None].to(u) for kept in left), torch.ones_like(u[:1])]

    def preactivation(e):
        terms = []
        for term in e.terms:
            plain = replace(term, offset=None)
            every = plain.reads(torch.ones_like(alive[term.source]))
            gone = ((plain.reads(alive[term.source]) == 0) & (every != 0))[0]
            offset = None if term.offset is None else term.offset.masked_fill(gone, 0.0)
            terms.append(replace(term, offset=offset))
        return replace(e, terms=tuple(terms)).preactivation([*states, u])

    for e, kept in zip(equations.hidden, left, strict=True):
        states.append(e.phi(preactivation(e)) * kept)
    return states, preactivation(equations.output)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_the_network_would_without_the_units(name, seed):
    equations, u = network(name)
    units = units_of(equations)
    found = narrow(equations, units, some(equations, units, seed))
    states, y = silenced(equations, u.flatten(1), found.states)
    own = []
    for e in found.equations.hidden:
        own.append(e.phi(e.preactivation([*own, u.flatten(1)])))
    torch.testing.assert_close(found.equations.replay(u)[1], y)
    for x, whole, kept in zip(own, states, found.states, strict=True):
        torch.testing.assert_close(x, whole[:, kept])


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_smaller_module_of_torch(name):
    equations, u = network(name)
    units = units_of(equations)
    stay = some(equations, units)
    fewer = narrow(equations, units, stay).equations
    net = ImplicitModel.from_equations(fewer, equations.nonzeros, "layered", None).to_explicit()
    torch.testing.assert_close(net(u).flatten(1), fewer.replay(u)[1])
    if not stay.all():
        numbers = [
            sum(t.weight.numel() for e in q.layers for t in e.terms) for q in (fewer, equations)
        ]
        assert numbers[0] < numbers[1]


class Gated(nn.Module):
    """Products of states, and an attention in matrices, with a mask."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        h = self.down(self.gate(x).sigmoid() * self.up(x)).unflatten(-1, (4, 2)).transpose(1, 2)
        mask = torch.full((5, 5), -torch.inf).triu(1).to(x)
        weights = (h @ h.transpose(-1, -2) + mask).softmax(-1)
        return self.last((weights @ h).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("seed", range(3))
def test_heads_and_products_go_too(seed):
    net = seeded(Gated).eval()
    u = torch.randn(3, 5, 4, dtype=torch.float64)
    equations = capture(net, u)
    units = units_of(equations)
    assert units.count == 6 + 4
    found = narrow(equations, units, some(equations, units, seed))
    y = silenced(equations, u.flatten(1), found.states)[1]
    torch.testing.assert_close(found.equations.replay(u)[1], y)
    model = ImplicitModel.from_equations(found.equations, equations.nonzeros, "layered", None)
    torch.testing.assert_close(model.to_explicit()(u).flatten(1), y)
    assert model.sparsity > 0


@pytest.mark.parametrize("name", NAMES)
def test_with_all_units_it_is_the_network(name):
    equations, u = network(name)
    units = units_of(equations)
    whole = narrow(equations, units, torch.ones(units.count, dtype=torch.bool)).equations
    assert torch.equal(whole.replay(u)[1], equations.replay(u)[1])
