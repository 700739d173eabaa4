"""A full A of low rank: of that rank, well-posed, certified and saved; and what is refused."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import simplicit
from conv_networks import images
from example_networks import seeded
from simplicit.errors import InputError
from simplicit.fit import Fit, fit
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe
from stopped import stopping


def network() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)
        )
    ).eval()


INPUTS = images(400, (12,))


def fitted(net: nn.Module, rank: int, **options: Any) -> Fit:
    return fit(net, INPUTS, Recipe(structure="full", rank=rank, **options), workers=1)


@cache
def matched(rank: int, **options: Any) -> Fit:
    """A fit of `network`, kept: tests do not change it."""
    return fitted(network(), rank, **options)


def rank(model: ImplicitModel) -> int:
    return int(torch.linalg.matrix_rank(model.A.to_dense()))


def error(model: nn.Module, net: nn.Module) -> float:
    u = images(100, (12,)) + 1
    with torch.no_grad():
        return float((model(u) - net(u)).norm() / (net(u) - net(u).mean(0)).norm())


# each option with one of the ranks, and none with both: no option looks at the rank
@pytest.mark.parametrize(
    ("wanted", "options"),
    [
        *((1, {}), (3, {}), (1, {"kappa": 0.05})),
        *((3, {"bias": False}), (1, {"sensitivity": False})),
    ],
    ids=str,
)
def test_a_model_is_of_the_rank_well_posed_and_certified(wanted, options):
    found = matched(wanted, **options)
    model = found.model
    assert rank(model) <= wanted and model.A.nnz > 0
    certificate = model.certificate
    assert certificate.well_posed and certificate.norm <= options.get("kappa", 0.99) * (1 + 1e-9)
    assert certificate.method == "weighted norm"
    states = [row for row in found.rows if row["layer"] == "states"]
    assert [row["row"] for row in states] == list(range(18 + 2))
    for row in states:
        assert row["status"] == "solved" and 0 <= row["relative_gap"] <= 1e-4
    assert all(row["iterations"] > 0 for row in states[18:])
    assert sum(row["nonzeros"] for row in found.rows) == model.nonzeros


def test_a_saved_model_is_the_same(tmp_path):
    model = matched(2).model
    model.save(tmp_path / "model")
    again = simplicit.load(tmp_path / "model")
    assert rank(again) == rank(model) == 2
    assert torch.equal(again.A.to_dense(), model.A.to_dense())
    assert again.certificate.norm == model.certificate.norm and again.certificate.well_posed
    assert torch.equal(again(INPUTS), model(INPUTS))


def test_more_ranks_match_better_and_those_of_the_network_match_exactly():
    net = network()
    errors = [error(matched(r).model, net) for r in (1, 3, 5, 8)]
    assert all(b < a for a, b in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 1e-3  # the network's own A is of rank 8


def test_a_network_of_lower_rank_is_reproduced():
    net = network()
    _, _, layer, *_ = net.children()
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        P, s, Q = torch.linalg.svd(layer.weight, full_matrices=False)
        layer.weight.copy_((P[:, :2] * s[:2]) @ Q[:2])
    model = fitted(net, 2, tol=1e-6).model
    assert rank(model) == 2 and error(model, net) < 1e-3


def test_dead_states_and_pixels_that_are_always_zero():
    net, u = network(), INPUTS.clone()
    u[:, :3] = 0
    first, _, second, *_ = net.children()
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    with torch.no_grad():
        first.weight[:2], first.bias[:2] = 0, -1  # never on
        second.bias[:2] = -100
    found = fit(net, u, Recipe(structure="full", rank=2), workers=1)
    model = found.model
    assert rank(model) <= 2 and model.certificate.well_posed
    assert all(t.isfinite().all() for t in (model.A.to_dense(), model.B.to_dense()))
    assert all(row["status"] == "solved" for row in found.rows)
    with torch.no_grad():
        assert (model(u) - net(u)).norm() < 0.5 * (net(u) - net(u).mean(0)).norm()


def test_a_matching_that_is_stopped_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    whole, recipe = matched(2), Recipe(structure="full", rank=2)
    with stopping(monkeypatch, "matching the layers", 1), pytest.raises(KeyboardInterrupt):
        fit(network(), INPUTS, recipe, workers=1, checkpoint=tmp_path)
    again = fit(network(), INPUTS, recipe, workers=1, checkpoint=tmp_path)
    assert torch.equal(again.model.A.to_dense(), whole.model.A.to_dense())
    assert again.rows == whole.rows


FULL = {"structure": "full", "rank": 1}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "auto": ({"rank": "auto", "sparsity": 0.5}, "rank='auto': accepted with objective sparsity"),
    "a budget": ({"sparsity": 0.5}, "rank=1: accepted with objective sparsity"),
    "inputs in the ball": ({"constraint": "row"}, "rank=1: accepted with objective sparsity"),
    "robustness": ({"objective": "robustness"}, "rank=1: accepted with objective sparsity"),
    "relaxation": ({"support": "relaxation"}, "support='relaxation': "),
    "sweeps": ({"sweeps": 4}, "sweeps=4: "),
    "skip": ({"skip": ("0",)}, "skip=('0',): "),
    "alpha": ({"alpha": 1.0}, "alpha=1.0: "),
    "pruning": ({"sparsity_ratio": 30.0}, "sparsity_ratio=30.0: "),
    "blocks": ({"blocks": (2, 1)}, "rank=1: accepted is None with a pattern or blocks"),
    "pattern": ({"pattern": "2:4"}, "rank=1: accepted is None with a pattern or blocks"),
    "too large": ({"rank": 18}, "rank=18: A has 18 rows; accepted with structure full is at most"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_full_rank_cannot_do_is_refused_by_name(case):
    options, line = REFUSED[case]
    with pytest.raises(InputError) as caught:
        fit(network(), INPUTS, Recipe(**{**FULL, **options}), workers=1)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
