"""Whole units: budgets, networks whose units are spare, and what is refused."""

from collections.abc import Callable
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

import simplicit
from conv_networks import images
from kinds import network as kind_of
from kinds import quick_fit, same
from simplicit import fit as fits
from simplicit.capture.read import capture
from simplicit.errors import InputError
from simplicit.fit import fit
from simplicit.matching.layers import Matching
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe
from simplicit.units.found import units_of
from simplicit.units.narrow import narrow
from stopped import stopping

KINDS = ("matrices", "convolutions")


def products(net, u):
    """Multiply-adds of a sample in a module's layers."""
    found = []

    def count(module, given, result):
        each = module.weight[0].numel() if isinstance(module, nn.Linear) else 0
        if isinstance(module, nn.Conv2d):
            each = module.weight[0].numel()
        found.append(each * result[0].numel())

    handles = [m.register_forward_hook(count) for m in net.modules() if type(m) in LAYERS]
    net(u[:1])
    for handle in handles:
        handle.remove()
    return sum(found)


LAYERS = (nn.Linear, nn.Conv2d)


class Steps(nn.Module):
    """A recurrence of four steps with eight states."""

    def __init__(self):
        super().__init__()
        self.read, self.step = nn.Linear(3, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        h = self.read(x[:, 0]).relu()
        for k in range(1, 4):
            h = (self.read(x[:, k]) + self.step(h)).relu()
        return self.last(h)


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.LazyLinear(10), nn.Tanh(), nn.Linear(10, 4),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def case():
    net, u = small(), images(60, (3, 9, 9)).float()
    with torch.no_grad():
        net(u)
    return net, u


@pytest.fixture(scope="module")
def without(case) -> Callable[..., ImplicitModel]:
    """A model of that network without some of its channels, by options; each is made once."""
    net, u = case
    equations = capture(net, u)

    @cache
    def made(**options: Any) -> ImplicitModel:
        with patch.object(fits, "capture", lambda *_: equations):
            return simplicit.implicitize(net, u, pattern="channels", **options)

    return made


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_multiply_adds_are_saved_and_no_more_units_than_that_takes(case, without, part):
    net, u = case
    model = without(flops=part)
    explicit = model.to_explicit()
    whole = products(net, u)
    assert products(explicit, u) <= (1 - part) * whole
    assert products(explicit, u) > (1 - part) * whole - 0.25 * whole  # one unit's at most
    torch.testing.assert_close(explicit(u), model(u), rtol=1e-4, atol=1e-5)
    assert all(bool((p != 0).any()) for p in explicit.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_of_weights_is_kept(kind):
    found = quick_fit(kind, Recipe(pattern="channels", sparsity=0.3))
    assert found.model.sparsity >= 0.3
    stored = sum(t.weight.numel() for e in found.model.equations.layers for t in e.terms)
    assert stored <= 0.7 * found.model.reference_nonzeros
    assert {row["status"] for row in found.rows} == {"solved"}


def test_units_that_say_the_same_twice_cost_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for p in [*net[0].parameters(), *net[2].parameters()]:
            p[len(p) // 2 :] = p[: len(p) // 2]  # the second half of the neurons is the first again
    u = torch.randn(200, 6)
    model = simplicit.implicitize(net, u, pattern="channels", flops=0.6)
    assert [e.size for e in model.equations.hidden] == [5, 4]
    torch.testing.assert_close(model(u), net(u), rtol=1e-3, atol=1e-3)


def test_what_is_left_is_matched_better_than_by_leaving_units_out(case, without):
    net, u = case
    model = without(flops=0.5)
    equations = capture(net, u[:2])
    units = units_of(equations)
    # as many units of each layer as the model has, the first ones, with the network's own weights
    wanted = {e.name: len(e.terms[0].weight) for e in model.equations.layers if e.terms}
    stay = torch.zeros(units.count, dtype=torch.bool)
    for e, channels in zip(equations.layers, units.channels, strict=True):
        for own in channels:
            stay[own[own >= 0][: wanted[e.name]]] = True
    left = narrow(equations, units, stay).equations
    target = net(u)
    off, bare = (((y - target) ** 2).mean() for y in (model(u), left.replay(u)[1]))
    assert off < 0.5 * bare


def test_what_cannot_be_met_is_refused_before_any_pass_over_the_data(without, monkeypatch):
    monkeypatch.setattr(Matching, "plan", lambda _: pytest.fail("work has begun"))
    for options in ({"flops": 0.9999}, {"sparsity": 0.9999}, {"speedup": 1e6}):
        with pytest.raises(InputError, match="one unit of each layer left"):
            without(**options)


def test_weights_of_a_recurrence_count_once_against_a_sparsity():
    torch.manual_seed(0)
    net = Steps().eval()
    u = torch.randn(80, 4, 3)
    model = simplicit.implicitize(net, u, pattern="channels", sparsity=0.4)
    stored = {id(t.weight): t.weight.numel() for e in model.equations.layers for t in e.terms}
    whole = 8 * 3 + 8 * 8 + 8 * 2
    one = 3 + 2 * 8 + 2  # of a unit, at most
    assert 0.6 * whole - one <= sum(stored.values()) <= 0.6 * whole


def test_a_model_is_saved_and_read_again(case, without, tmp_path):
    _, u = case
    model = without(sparsity=0.5)
    model.save(tmp_path / "model")
    again = simplicit.load(tmp_path / "model")
    assert torch.equal(again(u), model(u))
    assert again.certificate.well_posed


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_stopped_goes_on_with_the_same_bits(tmp_path, monkeypatch, kind):
    recipe = Recipe(pattern="channels", sparsity=0.3, sweeps=4)
    whole = quick_fit(kind, recipe)
    for task in ("moments of the layers", "matching the layers"):
        with stopping(monkeypatch, task, 1), pytest.raises(KeyboardInterrupt):
            quick_fit(kind, recipe, checkpoint=tmp_path)
    again = quick_fit(kind, recipe, checkpoint=tmp_path)
    assert same(again.model, whole.model) and again.rows == whole.rows


def test_layers_that_are_skipped_keep_what_they_read(case, without):
    net, _ = case
    model = without(flops=0.3, skip=("9",))
    kept = {e.name: e.terms[0].weight for e in model.equations.layers if e.terms}
    assert torch.equal(kept["9"], net[9].weight)


def test_it_is_as_fast_as_was_asked_for():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
                        nn.Linear(256, 4)).eval()  # fmt: skip
    recipe = Recipe(pattern="channels", speedup=1.5, sweeps=0, relu_aware=False)
    model = fit(net, torch.randn(64, 64), recipe, workers=1).model
    left, whole = (sum(p.numel() for p in m.parameters()) for m in (model.to_explicit(), net))
    assert left < 0.7 * whole


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"flops": 0.9999}, "one unit of each layer left"),
        ({"speedup": 1e6}, "speedup=1e"),
        ({}, "one of sparsity, flops and speedup"),
        ({"flops": 0.5, "sparsity": 0.5}, "one of sparsity, flops and speedup"),
        ({"flops": 0.5, "structure": "triangular"}, "auto or layered"),
        ({"flops": 0.5, "support": "elimination"}, "choose no single weights"),
        ({"flops": 0.5, "blocks": (4, 1)}, "blocks"),
        ({"flops": 0.5, "rank": 2}, "rank"),
        ({"flops": 0.5, "objective": "robustness"}, "pattern"),
        ({"flops": 0.5, "skip": ("0", "3", "5", "9", "11")}, "skip"),
    ],
)
def test_what_cannot_be_is_refused(without, options, line):
    with pytest.raises(InputError, match=line):
        without(**options)


def test_budgets_of_units_need_the_pattern(case):
    net, u = case
    for name in ("flops", "speedup"):
        with pytest.raises(InputError, match="pattern is channels"):
            value: Any = {name: 2.0 if name == "speedup" else 0.5}
            simplicit.implicitize(net, u, **value)


def test_a_network_without_units_is_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)).eval()
    with pytest.raises(InputError, match="no units that can go"):
        simplicit.implicitize(net, torch.randn(20, 4), pattern="channels", flops=0.5)


def test_the_network_is_left_as_it_was():
    net = kind_of("convolutions")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    quick_fit("convolutions", Recipe(pattern="channels", sparsity=0.3))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_heads_and_inner_neurons_of_a_transformer_go():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 16, dropout=0.0, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)).eval()
    u = torch.randn(80, 5, 8)
    model = simplicit.implicitize(net, u, pattern="channels", flops=0.3)
    explicit = model.to_explicit()
    torch.testing.assert_close(explicit(u), model(u), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in explicit.parameters()) < sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("option", ["sensitivity", "relu_aware", "closed_loop"])
def test_options_of_the_matching_are_heard(case, without, option):
    _, u = case
    whole, other = without(flops=0.5), without(flops=0.5, **{option: False})
    assert not torch.equal(whole(u), other(u))
