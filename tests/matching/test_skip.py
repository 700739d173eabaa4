"""Skipped layers are the network's own, bit for bit; the others make the budget."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

import simplicit
from conv_networks import images
from example_networks import seeded
from kinds import NETWORKS, inputs, network, quick_fit, read, same
from shapes import unchecked
from simplicit.capture.read import capture
from simplicit.errors import InputError
from simplicit.fit import fit
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe
from simplicit.refine.finetune import finetune

OPTIONS: dict[str, dict[str, Any]] = {
    "ridge": {},
    "a budget": {"sparsity": 0.4},
    "swept": {"sparsity": 0.4, "sweeps": 4},
    "relaxed": {"sparsity": 0.4, "support": "relaxation"},
    "no bias": {"sparsity": 0.4, "bias": False},
    "a ball": {"sparsity": 0.4, "constraint": "row", "sweeps": 0},
    "a level": {"objective": "robustness", "sparsity": 0.4, "sweeps": 4, "robustness": 0.1},
}

HALVES = {"first": ("a budget", "swept", "no bias", "a level"), "last": ("ridge", "relaxed")}
CASES = [
    (kind, name, which)
    for kind in NETWORKS
    for name in OPTIONS
    for which in ("first", "last")
    if (kind == "matrices" or name != "a ball")
    and (kind in ("matrices", "convolutions") or name != "a level")
    and (kind == "matrices" or name in HALVES[which])
]
"""A ball is for matrices, a level for networks without kept operations; for matrices all else."""


def last(kind: str) -> str:
    return read(kind).output.name


def untouched(kind: str, model: ImplicitModel, name: str) -> bool:
    """Whether a layer has the network's weights and biases, and no weight besides."""
    (index,) = (k for k, e in enumerate(read(kind).layers) if e.name == name)
    one, other = read(kind).layers[index], model.equations.layers[index]
    assert one.full_bias is not None
    return (
        other.full_bias is not None
        and all(
            torch.equal(s.weight, t.weight) for s, t in zip(one.terms, other.terms, strict=False)
        )
        and not any(t.weight.any() for t in other.terms[len(one.terms) :])
        and torch.equal(one.full_bias, other.full_bias)
    )


@pytest.mark.parametrize(("kind", "options", "which"), CASES)
def test_skipped_layers_stay_as_they_are_and_the_budget_is_met(kind, options, which):
    skip, other = ("0", last(kind)) if which == "first" else (last(kind), "0")
    chosen: dict[str, Any] = OPTIONS[options]
    if kind == "kept operations" and "sparsity" in chosen:  # they keep 8 of 40 weights anyway
        chosen = {**chosen, "sparsity": 0.15}
    found = quick_fit(kind, Recipe(**chosen, skip=(skip,)))
    assert untouched(kind, found.model, skip)
    assert not untouched(kind, found.model, other)
    budget = round((1 - chosen.get("sparsity", 0.0)) * read(kind).nonzeros)
    if options in ("swept", "a level"):  # what dead states had, and levels, may be less
        assert found.model.nonzeros <= budget
    elif options != "ridge":
        assert found.model.nonzeros == budget
    kept = sum(read(kind).kept_weights.values())
    assert sum(row["nonzeros"] for row in found.rows) + kept == found.model.nonzeros
    stages: dict[str, int] = {}
    for row in found.budgets:
        stages[row["stage"]] = stages.get(row["stage"], 0) + row["weights"]
    assert [*stages.values()][-1] + kept == found.model.nonzeros
    named = {row["layer"] for row in found.rows if row["status"] == "skipped"}
    assert named == {skip}


def test_patterns_are_globs_and_every_layer_that_matches_is_skipped():
    net, u = network("matrices"), inputs("matrices")
    whole = quick_fit("matrices", Recipe(sparsity=0.1, skip=("[02]",)))
    assert untouched("matrices", whole.model, "0") and untouched("matrices", whole.model, "2")
    assert same(whole.model, simplicit.implicitize(net, u, sparsity=0.1, skip=["2", "0"]))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such layer": (
        {"skip": ("0", "fc*")},
        "skip: no layer is called 'fc*': accepted are 0, 2, 4",
    ),
    "every layer": ({"skip": ("*",)}, "skip=('*',): accepted are patterns that leave a layer"),
    "too many weights": (
        {"sparsity": 0.9, "skip": ("0",)},
        "sparsity=0.9: the budget is 3 of 34 weights, but 16 are in skipped layers: 0 (16); "
        "accepted is at most 0.5294",
    ),
    "feedback": (
        {"structure": "full", "skip": ("0",)},
        "skip=('0',): in structure full all hidden layers are one equation; accepted with "
        "structure triangular or layered",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_skipped_is_refused_by_name(case):
    options, line = REFUSED[case]
    with pytest.raises(InputError) as error:
        quick_fit("matrices", Recipe(**options))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_kept_operations_and_skipped_layers_are_counted_together():
    with pytest.raises(InputError) as error:
        quick_fit("kept operations", Recipe(sparsity=0.9, skip=("0",)))
    assert str(error.value) == (
        "sparsity=0.9: the budget is 4 of 40 weights, but 8 are in operations that are kept as "
        "they are: 2: matmul (8) and 24 are in skipped layers: 0 (24); accepted is at most 0.2"
    )


@pytest.mark.parametrize("skip", ["fc", ("fc", 3), 3])
def test_skip_is_a_list_of_patterns(skip):
    with (
        unchecked(),
        pytest.raises(InputError, match="skip=.*: accepted is a list of patterns"),
    ):
        simplicit.implicitize(network("matrices"), inputs("matrices"), skip=skip)


class Tied(nn.Module):
    """A convolution that is used twice, with a batch norm of its own each time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.add, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        x = y = self.first(u).relu()
        for norm in self.norms:
            x = norm(self.conv(x)).relu()
        return self.fc((self.add(y) + self.conv(x)).relu().mean((2, 3)))


def moved_norms(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for norm in net.modules():
            if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
                continue
            norm.running_var.copy_(torch.rand(4) + 0.3)
            norm.weight.copy_(torch.rand(4) + 0.3)
    return net


@pytest.mark.parametrize("skip", ["conv", "add", "first"])
def test_a_shared_weight_is_skipped_wherever_it_is_used(skip):
    net, u = moved_norms(seeded(Tied)).eval(), images(30)
    found = fit(net, u, Recipe(skip=(skip,)), workers=1)
    before, after = (
        [term for e in equations.layers for term in e.terms]
        for equations in (capture(net, u), found.model.equations)
    )
    for s, t in zip(before, after, strict=True):
        assert torch.equal(s.weight, t.weight) == (s.parameter == f"{skip}.weight")
    back = deepcopy(net)
    found.model.load_into(back)
    for layer in ("first", "conv", "add", "fc"):
        one, other = (n.get_parameter(f"{layer}.weight") for n in (net, back))
        assert torch.allclose(one, other) == (layer == skip)
    named = {row["layer"] for row in found.rows if row["status"] == "skipped"}
    assert skip in {name.split("@")[0] for name in named}


def test_fine_tuning_changes_only_non_zeros_of_a_skipped_layer():
    model = quick_fit("matrices", Recipe(sparsity=0.4, skip=("0",))).model
    tuned = finetune(model, network("matrices"), inputs("matrices"), epochs=1)
    for before, after in zip(model.learned, tuned.learned, strict=True):
        assert torch.equal(before != 0, (after != 0) | (before != 0))


def test_a_checkpoint_of_another_skip_is_refused(tmp_path):
    quick_fit("matrices", Recipe(sparsity=0.4, skip=("0",)), checkpoint=tmp_path)
    with pytest.raises(InputError, match="belongs to another recipe: give"):
        quick_fit("matrices", Recipe(sparsity=0.4, skip=("2",)), checkpoint=tmp_path)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_run_that_is_taken_up_keeps_its_bits(kind, tmp_path):
    recipe = Recipe(sparsity=0.15, sweeps=4, skip=("0",))
    whole = quick_fit(kind, recipe, checkpoint=tmp_path)
    again = quick_fit(kind, recipe, checkpoint=tmp_path)
    assert same(whole.model, again.model) and untouched(kind, again.model, "0")
    assert [row["nonzeros"] for row in whole.rows] == [row["nonzeros"] for row in again.rows]
