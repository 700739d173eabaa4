import math

import pytest
import torch
from torch import nn

import simplicit
from conv_networks import CONVOLUTIONAL, ResNet20, Stages, images, network, structured
from example_networks import seeded
from simplicit.calibration.batches import batches
from simplicit.capture.read import capture
from simplicit.errors import InputError
from simplicit.fit import fit
from simplicit.matching import layers as layerwise
from simplicit.matching.dense_elimination import AWARE
from simplicit.matching.layers import LayerwiseMatching
from simplicit.recipe import Recipe


def predictions(model, u):
    with torch.no_grad():
        return model(u)


def distance(net, model, u):
    return float((predictions(net, u) - predictions(model, u)).square().mean())


@pytest.mark.parametrize("name", sorted(set(CONVOLUTIONAL) - {"recurrent"}))
def test_without_sparsity_the_network_is_reproduced(name):
    net, u = network(name), images(30)
    model = simplicit.implicitize(net, u, sparsity=0.0)
    for v in (u, images(4) + 0.1):
        y = predictions(net, v)
        torch.testing.assert_close(predictions(model, v), y, rtol=1e-5, atol=1e-5 * float(y.std()))
    assert model.sparsity == 0


@pytest.mark.parametrize("name", sorted(set(CONVOLUTIONAL) - {"recurrent"}))
def test_the_budget_is_met_exactly_whatever_the_layers(name):
    sparsity = 0.7
    result = fit(network(name), images(12), Recipe(sparsity=sparsity), batch_size=5)
    N0 = structured(name).nonzeros
    kept = sum(getattr(e.phi, "nnz", 0) for e in structured(name).hidden)
    assert result.model.nonzeros == max(round((1 - sparsity) * N0), kept)
    assert sum(row["nonzeros"] for row in result.rows) == result.model.nonzeros - kept
    for row in result.rows:
        # few samples: the last digits of a bound may be out of reach, it is one all the same
        assert row["status"] in ("solved", "solved_inaccurate")
        assert row["bound"] <= row["objective"] * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("make", [lambda: ResNet20(4, 1, 5), lambda: Stages(4, 1, 6, 5)])
def test_a_closed_loop_brings_the_outputs_nearer(make):
    net, u = seeded(make).eval(), images(40)
    closed, opened = (  # at 60 % these networks lose nothing but roundings
        distance(net, fit(net, u, Recipe(sparsity=0.75, closed_loop=loop)).model, u)
        for loop in (True, False)
    )
    assert closed < opened


def test_supports_chosen_again_with_moved_targets_bring_the_outputs_nearer(monkeypatch):
    # on average: elimination is greedy, and a single network may go either way
    nets, u = [seeded(lambda: ResNet20(4, 1, 5), seed).eval() for seed in range(3)], images(60)

    def distances():
        return [distance(net, fit(net, u, Recipe(sparsity=0.8)).model, u) for net in nets]

    again = distances()
    monkeypatch.setattr(layerwise, "CHOICES", (1.0,))
    assert math.prod(again) < math.prod(distances())


def test_the_last_convolution_of_a_block_makes_up_for_its_shortcut():
    class Block(nn.Module):
        """Its shortcut and its convolution read the same; either can do the other's work."""

        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.last = nn.Linear(4, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(torch.relu(self.inner(x) + x).mean((2, 3)))

    net, u = seeded(Block).eval(), images(60)
    equations = capture(net, u)
    matching = LayerwiseMatching(equations, batches(u, 20), Recipe(sparsity=0.0), 1, None)
    matching.plan()
    first = equations.layers[matching.layers[0].index]
    W = matching.layers[0].weights(first)
    # the first layer is given away: its outputs are a mixture of what they were
    M = torch.eye(4, dtype=W.dtype) + 0.3 * torch.ones(4, 4, dtype=W.dtype)
    bias = first.channel_bias
    assert bias is not None
    broken = matching.layers[0].put(first, M @ W, (M @ bias - bias)[None])
    matching._solve_layer, solve = (
        lambda k, rows, equation, frontier: (
            broken if k == 0 else solve(k, rows, equation, frontier)
        ),
        matching._solve_layer,
    )
    matching.solve()
    _, Y = matching.matched.replay(u)
    torch.testing.assert_close(Y, predictions(net, u), rtol=1e-4, atol=1e-4)


def test_a_matching_that_was_stopped_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    net, u = seeded(lambda: ResNet20(4, 1, 5)).eval(), images(20)
    recipe = Recipe(sparsity=0.7)
    whole = fit(net, u, recipe)
    solve_layer, calls = LayerwiseMatching._solve_layer, []

    def stopped(self, k, *rest):
        calls.append(k)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return solve_layer(self, k, *rest)

    monkeypatch.setattr(LayerwiseMatching, "_solve_layer", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(net, u, recipe, checkpoint=tmp_path)
    monkeypatch.undo()
    resumed = fit(net, u, recipe, checkpoint=tmp_path)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    drop = ("iterations", "status")
    for a, b in zip(whole.rows, resumed.rows, strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {
            k: v for k, v in b.items() if k not in drop
        }
    with pytest.raises(InputError, match="another network, recipe or calibration set"):
        fit(net, u + 1, recipe, checkpoint=tmp_path)


def test_a_network_of_convolutions_on_one_place_is_matched_as_its_matrices_are(monkeypatch):
    # supports are chosen once, as those of matrices are, then refitted as often
    monkeypatch.setattr(layerwise, "CHOICES", (1.0,))
    monkeypatch.setattr(layerwise, "REFITS", AWARE)
    convolutions = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(6, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 5, 1, bias=False)),
            *(nn.ReLU(), nn.Conv2d(5, 3, 1, bias=False), nn.Flatten()),
        )
    )
    matrices = nn.Sequential(
        *(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.ReLU()),
        nn.Linear(5, 3, bias=False),
    ).double()
    matrices.load_state_dict({k: v.flatten(1) for k, v in convolutions.state_dict().items()})
    u = images(80, (6, 1, 1))
    recipe = Recipe(sparsity=0.5, structure="layered", sweeps=0, sensitivity=False)
    one = fit(convolutions.eval(), u, recipe)
    other = fit(matrices.eval(), u.flatten(1), recipe)
    torch.testing.assert_close(
        predictions(one.model, u), predictions(other.model, u.flatten(1)), rtol=1e-3, atol=1e-3
    )
    assert [r["nonzeros"] for r in one.rows] == [r["nonzeros"] for r in other.rows]


def test_dead_channels_and_single_samples_are_no_obstacle():
    net = seeded(lambda: ResNet20(4, 1, 5)).eval()
    with torch.no_grad():
        net.get_parameter("bn1.bias")[:2] = -100.0  # two channels of the first layer are never on
        for name in ("weight", "bias"):  # a block that is only its shortcut
            net.get_parameter(f"layer1.0.bn2.{name}").zero_()
    for u in (images(20), images(1)):
        result = fit(net, u, Recipe(sparsity=0.5), batch_size=1)
        assert predictions(result.model, u).isfinite().all()
        assert result.model.nonzeros <= round(0.5 * capture(net, u).nonzeros) + 1


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(alpha=1e-4),
        Recipe(objective="robustness"),
        Recipe(sparsity=0.5, support="relaxation"),
        Recipe(sparsity=0.5, bias=False, relu_aware=False),
    ],
)
def test_other_recipes_reach_convolutions_too(recipe):
    net, u = network("in place, reused"), images(30)
    result = fit(net, u, recipe)
    assert {row["status"] for row in result.rows} == {"solved"}
    if recipe.sparsity:
        # the relaxation gives no weight to what is never on
        assert recipe.sparsity - 1e-2 <= result.model.sparsity <= recipe.sparsity + 0.05


@pytest.mark.parametrize("structure", ["full", "triangular"])
def test_structures_that_would_write_A_out_are_refused(structure):
    with pytest.raises(InputError, match="accepted are layered and auto"):
        simplicit.implicitize(network("lenet"), images(4), sparsity=0.5, structure=structure)
