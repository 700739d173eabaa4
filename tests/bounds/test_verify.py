"""Verdicts against what is known of small networks, and branches against points on their side."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from conv_networks import images
from random_models import MIXED, implicit_model, inputs
from simplicit import verify
from simplicit.bounds.branches import search
from simplicit.bounds.branches.falsify import counterexample, relaxed
from simplicit.bounds.branches.leaves import Leaves
from simplicit.bounds.branches.reduced import reduced
from simplicit.bounds.branches.slopes import Ascent
from simplicit.bounds.certify import as_model, certify, proved
from simplicit.bounds.exact import equations_of
from simplicit.bounds.intervals import around
from simplicit.bounds.layer_boxes import prepared
from simplicit.bounds.linear_bounds import Substitution, refined
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel

EPS = 0.3


def perceptron(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3),
    ).double()  # fmt: skip


def ball(model: ImplicitModel, u: Tensor, eps: float) -> Substitution:
    """Boxes of one sample."""
    with torch.no_grad():
        box = around(u[:1].flatten(1), torch.full((1,), eps, dtype=torch.float64))
        return refined(prepared(equations_of(model)), box)


NETWORKS = {
    "perceptron": lambda: (perceptron(2, 12, 12, 3), torch.rand(1, 2).double(), EPS),
    "convolutional": lambda: (convolutional(), images()[:1, :, :6, :6].double(), 0.05),
}


@pytest.mark.parametrize("seed", range(5))
def test_verdicts_are_those_of_a_fine_grid(seed):
    net = perceptron(2, 12, 12, 3, seed=seed)
    u = torch.rand(6, 2).double()
    y = net(u).argmax(1)
    steps = torch.linspace(-EPS, EPS, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(steps, steps)
    kept = [(net(one + grid).argmax(1) == c).all() for one, c in zip(u, y, strict=True)]
    found = verify(net, u, y, EPS)
    assert {v.status for v in found} <= {"proved", "counterexample"}
    for verdict, one, label, stays in zip(found, u, y, kept, strict=True):
        if verdict.status == "proved":
            assert stays
        else:
            assert verdict.input is not None
            assert float((verdict.input - one).abs().max()) <= EPS * (1 + 1e-12)
            assert int(net(verdict.input[None]).argmax()) != int(label)


def test_more_is_decided_than_by_one_substitution():
    net, u = perceptron(6, 24, 24, 4), torch.rand(12, 6)[6:].double()
    y = net(u).argmax(1)
    eps = 0.3
    once, found = proved(net, u, y, eps), verify(net, u, y, eps)
    assert all(v.status == "proved" for v, certain in zip(found, once, strict=True) if certain)
    assert sum(v.status != "open" for v in found) == 6 > int(once.sum())
    assert max(v.nodes for v in found) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_branches_bound_what_is_on_their_side(name):
    net, u, eps = NETWORKS[name]()
    model = as_model(net, u)
    network = ball(model, u, eps)
    ascent, mu = Ascent(network), torch.eye(3, dtype=torch.float64)
    leaves = Leaves(ascent, mu)
    for _ in range(4):
        leaves.cut(leaves.loosest(8))
    assert len(leaves) > 8
    some = leaves.branches
    bound = ascent.bound(some)
    generator = torch.Generator().manual_seed(0)
    part = 2 * torch.rand(4000, network.u.low.shape[1], generator=generator).double() - 1
    points = u.flatten(1) + eps * part
    pre, y = equations_of(model).replay(points)
    columns = reduced(network)[1]
    met = torch.zeros(3, len(points), dtype=torch.long)
    for k, owner in enumerate(leaves.owner):
        inside = torch.ones(len(points), dtype=torch.bool)
        for z, sign, column in zip(pre, some.signs, columns, strict=True):
            inside &= (sign[k] * z[:, column] >= 0).all(1)
        met[owner] += inside
        assert (y[inside, owner] >= bound[k]).all()
    assert (met >= 1).all()  # the parts of a function are the whole ball


@pytest.mark.parametrize("name", NETWORKS)
def test_a_part_is_no_looser_than_the_whole_and_chosen_slopes_no_looser_than_others(name):
    net, u, eps = NETWORKS[name]()
    network, mu = ball(as_model(net, u), u, eps), torch.eye(3, dtype=torch.float64)
    ascent = Ascent(network)
    begun = ascent.begun(mu)
    before = ascent.bound(begun)
    leaves = Leaves(ascent, mu)
    slack = 1e-4 * (1 + before.abs())
    last = before
    for _ in range(3):
        bound = leaves.bounds()
        assert (bound >= last - slack).all()
        last = bound
        leaves.cut(leaves.loosest(8))
    assert (last > before + slack).any()


def test_multiplied_out_networks_have_the_same_bounds():
    net, u = perceptron(5, 16, 16, 16, 3), torch.rand(1, 5).double()
    network, mu = ball(as_model(net, u), u, 0.1), torch.eye(3, dtype=torch.float64)
    small, columns = reduced(network)
    assert sum(map(len, columns)) < 48
    whole = network.lowest(mu)
    part = small.lowest(mu.float())
    assert torch.allclose(part.double(), whole, atol=1e-4)


def test_the_search_begins_where_a_relaxation_is_least():
    net, u = perceptron(6, 24, 24, 4), torch.rand(12, 6).double()[2:3]  # whose class changes
    model = as_model(net, u)
    layers, label = prepared(equations_of(model)), int(net(u).argmax())
    box = around(u[:1], torch.tensor([0.4], dtype=torch.float64))
    starts = relaxed(layers, box, label)
    assert starts.shape == (3, 6)
    ends = torch.minimum((starts - box.low).abs(), (starts - box.high).abs())
    assert float(ends.max()) < 1e-6
    point = counterexample(model.outputs, box, label, starts)
    assert point is not None and int(net(point[None]).argmax()) != label


@pytest.mark.parametrize("structure", ["layered", "triangular", "full"])
def test_every_structure_gets_a_verdict_that_no_point_contradicts(structure):
    model = implicit_model(structure, MIXED)
    u = inputs(model, 3)
    y = model(u).argmax(1)
    for eps in (1e-6, 5.0):
        for verdict, label in zip(verify(model, u, y, eps, seconds=2), y, strict=True):
            assert verdict.status != "counterexample" or eps > 1e-6
            assert verdict.status != "open" or eps > 1e-6
            if verdict.input is not None:
                assert int(model(verdict.input[None]).argmax()) != int(label)


def test_what_a_verdict_says():
    net, u = perceptron(2, 12, 12, 3), torch.rand(1, 2).double()
    y = net(u).argmax(1)
    (wrong,) = verify(net, u, (y + 1) % 3, 0.0)
    assert wrong.status == "counterexample" and wrong.input is not None
    assert torch.equal(wrong.input, u[0])
    assert "another class" in str(wrong)
    deep, u = perceptron(6, 24, 24, 4), torch.rand(12, 6).double()[1:2]
    y = deep(u).argmax(1)
    (long,), (short,) = (verify(deep, u, y, 0.4, nodes=most) for most in (10_000, 1))
    assert long.status == "proved" and short.status == "open" and "open" in str(short)
    assert 0 < short.nodes < long.nodes


@pytest.mark.parametrize("budget", [{"seconds": 0}, {"nodes": -1}, {"seconds": True}])
def test_a_budget_that_is_none_is_refused(budget):
    net, u = perceptron(2, 12, 3), torch.rand(1, 2).double()
    with pytest.raises(InputError, match="accepted are numbers above 0"):
        verify(net, u, net(u).argmax(1), 0.1, **budget)


def test_radii_on_branches_are_larger_and_no_attack_reaches_into_them(monkeypatch):
    monkeypatch.setattr(search, "FINE", (2, 4))  # fewer parts take less time
    net, u = perceptron(4, 12, 12, 3), torch.rand(2, 4).double()
    y = net(u).argmax(1)
    linear = certify(net, u, y, 0.1, methods=["linear"]).radius
    radius = certify(net, u, y, 0.1, methods=["branches"]).radius
    assert (radius >= linear * 0.99).all() and float((radius / linear).mean()) > 1.05
    model = as_model(net, u)
    for one, label, r in zip(u, y, radius, strict=True):
        assert counterexample(model.outputs, around(one[None], r[None]), int(label)) is None


def test_branches_with_feedback_are_refused():
    model = implicit_model("full", MIXED)
    u = inputs(model, 2)
    with pytest.raises(InputError, match="method branches of a model with feedback"):
        certify(model, u, model(u).argmax(1), 0.1, methods=["branches"])


def test_where_all_signs_are_known_nothing_is_chosen():
    net, u = perceptron(5, 16, 16, 3), torch.rand(1, 5).double()
    network, mu = ball(as_model(net, u), u, 1e-9), torch.eye(3, dtype=torch.float64)
    assert not sum(map(len, reduced(network)[1]))
    leaves = Leaves(Ascent(network), mu)
    assert not len(leaves.loosest(8)) and not len(leaves.loosest_of_each())
    y = net(u)[0]
    assert ((leaves.bounds() <= y) & (leaves.bounds() >= y - 1e-6)).all()
