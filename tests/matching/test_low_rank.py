"""Layers by factors: budgets, ranks, networks that are of low rank, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

import simplicit
from conv_networks import images
from example_networks import CAPTURED, example, seeded
from kinds import NETWORKS, fitted, inputs, network, quick_fit, read, same
from simplicit.errors import InputError
from simplicit.fit import fit
from simplicit.model.factored import CHANNELS
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe
from simplicit.refine.finetune import finetune
from stopped import stopping

RECIPES = {
    "ranks": Recipe(rank=1),
    "ranks to a budget": Recipe(rank="auto", sparsity=0.25),
    "ranks and single weights": Recipe(rank=1, sparsity=0.15),
}


def ranks(model: ImplicitModel) -> dict[str, int]:
    """Of the layers that are written by factors."""
    return {
        e.name.removesuffix(CHANNELS): len(e.terms[0].weight) // e.terms[0].map.groups
        for e in model.equations.hidden
        if e.name.endswith(CHANNELS)
    }


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", RECIPES)
def test_all_weights_are_counted_and_the_budget_is_kept(kind, name):
    recipe = RECIPES[name]
    found = fitted(kind, recipe)
    kept = sum(read(kind).kept_weights.values())
    assert sum(row["nonzeros"] for row in found.rows) + kept == found.model.nonzeros
    stages: dict[str, int] = {}
    for row in found.budgets:
        stages[row["stage"]] = stages.get(row["stage"], 0) + row["weights"]
    assert stages["match"] + kept == found.model.nonzeros
    if recipe.sparsity is None:
        assert set(ranks(found.model).values()) == {1}
        assert found.model.nonzeros < read(kind).nonzeros
    else:
        budget = round((1 - recipe.sparsity) * read(kind).nonzeros)
        assert budget - 14 < found.model.nonzeros <= budget  # a rank has up to 14 weights
    if recipe.both:
        assert found.model.nonzeros == budget
    solved = [row for row in found.rows if row["status"] != "channel"]
    assert all(row["status"] == "solved" and row["gap"] >= 0 for row in solved)
    channels = len(found.rows) - len(solved)
    groups = {e.name: e.terms[0].map.groups for e in read(kind).layers if e.terms}
    assert channels == sum(rank * groups[layer] for layer, rank in ranks(found.model).items())


def low(inside: int, outside: int, rank: int, single: int = 0) -> nn.Linear:
    """A layer of low rank, with some large single weights."""
    layer = nn.Linear(inside, outside)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outside, rank) @ torch.randn(rank, inside) / inside)
        places = torch.randperm(layer.weight.numel())[:single]
        layer.weight.view(-1)[places] += torch.randn(single).sign() * 0.7
    return layer


def of_low_rank(single: int = 0) -> nn.Module:
    return nn.Sequential(low(20, 16, 2, single), nn.ReLU(), low(16, 12, 2, single)).eval()


def error(model: nn.Module, net: nn.Module, u: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(u) - net(u)).norm() / (net(u) - net(u).mean(0)).norm())


def test_a_network_of_low_rank_is_reproduced():
    net, u = seeded(of_low_rank), images(400, (20,))
    model = simplicit.implicitize(net, u, rank=2)
    assert ranks(model) == {"0": 2, "2": 2}
    assert model.nonzeros == 2 * (20 + 16 + 16 + 12)
    assert error(model, net, images(50, (20,)) + 1) < 1e-4
    best = simplicit.implicitize(net, u, rank="auto", sparsity=0.75)
    assert ranks(best) == {"0": 2, "2": 2} and error(best, net, u) < 1e-4


def test_factors_and_single_weights_are_better_together():
    net, u = seeded(lambda: of_low_rank(12)), images(600, (20,))
    sparsity = 1 - (2 * (20 + 16 + 16 + 12) + 24 + 40) / (20 * 16 + 16 * 12)
    errors = {
        name: error(simplicit.implicitize(net, u, sparsity=sparsity, **options), net, u)
        for name, options in {
            "both": {"rank": 2},
            "ranks": {"rank": "auto"},
            "single weights": {"structure": "layered", "sweeps": 0},
        }.items()
    }
    assert errors["both"] < 0.9 * min(errors["ranks"], errors["single weights"])


def test_more_ranks_match_better():
    net = seeded(lambda: nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8))).eval()
    u = images(200, (12,))
    errors = [error(simplicit.implicitize(net, u, rank=rank), net, u) for rank in (1, 2, 3, 4)]
    assert all(b < a for a, b in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("name", RECIPES)
def test_a_matching_that_is_stopped_goes_on_with_the_same_bits(tmp_path, monkeypatch, name):
    whole = fitted("convolutions", RECIPES[name])
    for step in (1, 2):
        with stopping(monkeypatch, "matching the layers", step), pytest.raises(KeyboardInterrupt):
            quick_fit("convolutions", RECIPES[name], checkpoint=tmp_path)
    again = quick_fit("convolutions", RECIPES[name], checkpoint=tmp_path, workers=2)
    assert same(whole.model, again.model)
    assert [row["nonzeros"] for row in whole.rows] == [row["nonzeros"] for row in again.rows]


def test_shared_weights_and_skipped_layers_have_no_factors():
    net, u = seeded(CAPTURED["tied"]).eval(), example(60)
    found = fit(net, u, Recipe(rank=1), workers=1).model
    used = [t.parameter for e in found.equations.layers for t in e.terms if t.parameter]
    assert len(set(used)) < len(used)
    skipped = quick_fit("matrices", Recipe(rank=1, skip=("0",))).model
    assert "0" not in ranks(skipped) and ranks(skipped)


def test_zeros_of_a_pruned_layer_stay_where_its_weights_do():
    layer = seeded(lambda: nn.Linear(10, 2))
    net = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), layer).double().eval()
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    model = simplicit.implicitize(net, images(100, (12,)), rank=1)
    assert ranks(model) == {"0": 1}
    assert torch.equal(model.equations.output.terms[0].weight != 0, layer.weight != 0)


def test_fine_tuning_moves_the_factors():
    net, u = network("matrices"), inputs("matrices")
    model = fitted("matrices", RECIPES["ranks"]).model
    tuned = finetune(model, net, u, epochs=3)
    assert ranks(tuned) == ranks(model) and tuned.nonzeros == model.nonzeros
    assert error(tuned, net, u) < error(model, net, u)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "auto without a budget": ({"rank": "auto"}, "rank='auto': accepted is None or a whole number"),
    "no rank": ({"rank": 0}, "rank=0: accepted is None, auto, or a whole number, at least 1"),
    "truth": ({"rank": True}, "rank=True: accepted is None, auto, or a whole number"),
    "a ball": ({"rank": 1, "constraint": "row"}, "rank=1: accepted with objective sparsity"),
    "robustness": ({"rank": 1, "objective": "robustness"}, "rank=1: accepted with objective"),
    "relaxation": ({"rank": 1, "sparsity": 0.1, "support": "relaxation"}, "rank=1: accepted with"),
    "sweeps": ({"rank": 1, "sparsity": 0.1, "sweeps": 4}, "sweeps=4: sweeps follow a choice of"),
    "no supports": ({"rank": 1, "support": "splitting"}, "support='splitting': rank auto and"),
    "alpha": ({"rank": 1, "alpha": 1.0}, "alpha=1.0: it is the penalty's weight"),
    "pruning": ({"rank": 1, "sparsity_ratio": 30.0}, "sparsity_ratio=30.0: a sparsity or a rank"),
    "too large": ({"rank": 9}, "rank=9: factors of this rank have fewer weights in no layer; "),
    "too sparse": ({"rank": "auto", "sparsity": 0.9}, "sparsity=0.9: it leaves 3 weights, and"),
    "no room": ({"rank": 1, "sparsity": 0.5}, "rank=1: its factors have "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_rank_cannot_do_is_refused_by_name(case):
    options, line = REFUSED[case]
    with pytest.raises(InputError) as caught:
        quick_fit("matrices", Recipe(**options))
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_a_preset_takes_no_rank():
    with pytest.raises(InputError, match="^rank=1: accepted is None with preset 'paper'$"):
        Recipe(rank=1).with_preset("paper")
