"""A level of robustness: less path norm, for no more accuracy than is allowed."""

from functools import cache

import pytest
from torch import Tensor

from kinds import inputs, quick_fit, read, same
from simplicit.bounds.certify import certify
from simplicit.data import datasets as data
from simplicit.errors import InputError
from simplicit.explicit import training as explicit
from simplicit.fit import Fit, fit, implicitize
from simplicit.recipe import Recipe
from small_run import settings


@pytest.fixture(scope="module")
def taught():
    digits = data.load("digits")
    net = explicit.build("fnn", [64, 12, 10, 10])
    explicit.train(net, digits.train_inputs, digits.train_labels, lr=0.01, epochs=8)
    return digits, net


def calibration(digits: data.Dataset) -> Tensor:
    return digits.train_inputs[:500]


@pytest.fixture(scope="module")
def fits(taught):
    """Fits by the accuracy that they may cost, made when they are first asked for."""
    digits, net = taught

    @cache
    def made(allowed: float | None) -> Fit:
        objective = "sparsity" if allowed is None else "robustness"
        recipe = Recipe(objective=objective, sparsity=0.5, sweeps=4, robustness=allowed)
        return fit(net, calibration(digits), recipe, workers=1)

    return made


def test_the_more_accuracy_may_cost_the_larger_the_radii(taught, fits):
    digits, _ = taught
    x, y = digits.test_inputs[:80], digits.test_labels[:80]
    radius = [
        float(certify(fits(a).model, x, y, 0.02, methods=["interval"]).radius.mean())
        for a in (None, 0.01, 0.05)
    ]
    assert radius[0] < radius[1] <= radius[2] and radius[2] > 1.3 * radius[0]


@pytest.mark.parametrize("allowed", [0.01, 0.05])
def test_the_level_taken_is_the_strongest_that_is_allowed(fits, allowed):
    levels = fits(allowed).levels
    fine = [level for level in levels if level["loss"] <= allowed]
    assert levels[0]["price"] == 0 and len(levels) > 2
    assert fits(allowed).model.sparsity >= 0.5 - 1e-9
    assert sum(row["nonzeros"] for row in fits(allowed).rows) == fits(allowed).model.nonzeros
    # what was tried above it costs more
    strongest = max(level["price"] for level in fine)
    assert all(level["loss"] > allowed for level in levels if level["price"] > strongest)
    assert levels[-1]["norm"] < levels[0]["norm"]


def test_the_structure_and_the_same_bits(taught, fits):
    digits, net = taught
    recipe = Recipe(objective="robustness", sparsity=0.5, sweeps=4, robustness=0.01)
    again = fit(net, calibration(digits), recipe, workers=1).model
    assert same(again, fits(0.01).model)
    assert again.certificate.well_posed and again.structure == "triangular"


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "sparsity"},
        {"sparsity": None},
        {"structure": "full"},
        {"support": "relaxation"},
        {"robustness": 1.0},
    ],
)
def test_a_level_needs_a_budget_met_by_elimination(change):
    given = {"objective": "robustness", "sparsity": 0.5, "robustness": 0.01} | change
    with pytest.raises(InputError, match="robustness"):
        Recipe(**given)
    overrides = [f"implicit.{key}={'null' if v is None else v}" for key, v in given.items()]
    with pytest.raises(InputError, match=r"implicit\.robustness"):
        settings(*overrides)


def test_too_few_inputs_are_refused(taught):
    digits, net = taught
    with pytest.raises(InputError, match="at least 20"):
        implicitize(
            net, digits.train_inputs[:15], objective="robustness", sparsity=0.5, robustness=0.01
        )


@pytest.mark.parametrize("kind", ["tokens", "kept operations"])
def test_operations_without_a_known_slope_are_refused_before_any_work(kind, monkeypatch):
    def work(*_):
        raise AssertionError("work has begun")

    monkeypatch.setattr("simplicit.matching.layers.Matching.plan", work)
    recipe = Recipe(objective="robustness", sparsity=0.5, robustness=0.01)
    with pytest.raises(InputError, match=r"^robustness: .* is kept as it is"):
        quick_fit(kind, recipe)


def test_how_much_inactive_states_count_is_heard():
    from simplicit.calibration.rows import rows_of
    from simplicit.equations.operators import nonzeros
    from simplicit.refine.robustify import robustify

    equations, u = read("matrices"), inputs("matrices")
    _, y = equations.replay(u)
    found = [
        robustify(equations, rows_of(equations), u, y.detach(), 0.5, inactive=inactive)[1]
        for inactive in (0.1, 1.0)
    ]
    assert nonzeros(equations) and found[0] != found[1]
