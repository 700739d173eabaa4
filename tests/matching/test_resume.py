"""A matching that was stopped goes on with the same bits, from a checkpoint of its own."""

import pytest
import torch
from torch import nn

from example_networks import CAPTURED, example, seeded
from kinds import CASES, NETWORKS, fitted, inputs, numbers, quick_fit, same
from simplicit.errors import InputError
from simplicit.fit import fit
from simplicit.outputs.sweeps import Sweeps
from simplicit.recipe import Recipe
from stopped import stopping

STOPS = [
    ("sensitivity of the outputs", 1),
    ("moments of the layers", 2),
    ("matching the layers", 1),
    ("matching the layers", 2),
    ("matching the outputs (rows)", 2),
]
"""After which step of which task; a layer that was restored steps, too."""


@pytest.mark.parametrize(("kind", "structure"), CASES)
def test_a_matching_that_is_stopped_anywhere_goes_on_with_the_same_bits(
    tmp_path, monkeypatch, kind, structure
):
    sweeps = None if structure == "full" else 4
    recipe = Recipe(sparsity=0.5, structure=structure, sweeps=sweeps)
    whole = fitted(kind, recipe)
    for task, step in STOPS:
        if structure == "full" and task == "matching the outputs (rows)":
            continue
        with (
            stopping(monkeypatch, task, step) as done,
            pytest.raises(KeyboardInterrupt),
        ):
            quick_fit(kind, recipe, checkpoint=tmp_path)
        assert done
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"]
    for _ in range(2):  # the second finds every part
        again = quick_fit(kind, recipe, checkpoint=tmp_path)
        assert same(again.model, whole.model)
        assert again.rows == whole.rows and again.budgets == whole.budgets
        seconds = [event["seconds"] for event in again.trace]
        assert seconds == sorted(seconds) and len(seconds) == len(whole.trace)


RELAXED = {"sparsity": 0.5, "support": "relaxation"}


@pytest.mark.parametrize(
    ("kind", "structure", "options"),
    [
        *((*case, {}) for case in CASES),
        *(("matrices", "full", RELAXED), ("convolutions", "layered", RELAXED)),
    ],
)
def test_so_does_one_without_elimination(tmp_path, monkeypatch, kind, structure, options):
    recipe = Recipe(structure=structure, **options)
    whole = fitted(kind, recipe)
    with (
        stopping(monkeypatch, "matching the layers", 1),
        pytest.raises(KeyboardInterrupt),
    ):
        quick_fit(kind, recipe, checkpoint=tmp_path)
    again = quick_fit(kind, recipe, checkpoint=tmp_path)
    assert same(again.model, whole.model)
    assert again.rows == whole.rows and again.budgets == whole.budgets


@pytest.mark.parametrize("name", ["shared", "tied"])
def test_weights_that_equations_share_are_taken_up_as_one(tmp_path, name):
    net, u, recipe = seeded(CAPTURED[name]), example(40), Recipe(sparsity=0.5, sweeps=4)
    first = fit(net, u, recipe, checkpoint=tmp_path)
    again = fit(net, u, recipe, checkpoint=tmp_path)
    assert again.model.nonzeros == first.model.nonzeros
    assert torch.equal(numbers(again.model), numbers(first.model))


def test_a_level_of_robustness_is_found_again_with_the_same_bits(tmp_path, monkeypatch):
    recipe = Recipe(objective="robustness", sparsity=0.5, sweeps=4, robustness=0.01)
    whole = quick_fit("matrices", recipe)
    with (
        stopping(monkeypatch, "finding the level of robustness", 1),
        pytest.raises(KeyboardInterrupt),
    ):
        quick_fit("matrices", recipe, checkpoint=tmp_path)
    again = quick_fit("matrices", recipe, checkpoint=tmp_path)
    assert same(again.model, whole.model)
    assert again.rows == whole.rows and again.levels == whole.levels


def test_time_before_a_stop_counts(tmp_path, monkeypatch):
    now = [0.0]

    def takes_a_minute(name: str):
        module, function = name.rsplit(".", 1)
        original = getattr(__import__(module, fromlist=[function]), function)

        def slow(*args, **kwargs):
            now[0] += 60.0
            return original(*args, **kwargs)

        monkeypatch.setattr(name, slow)

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for name in ("plan.row_problem", "layers.row_problem"):
        takes_a_minute(f"simplicit.matching.{name}")
    sweep = Sweeps.sweep

    def slow_sweep(self, *args, **kwargs):
        now[0] += 60.0
        return sweep(self, *args, **kwargs)

    monkeypatch.setattr(Sweeps, "sweep", slow_sweep)
    recipe = Recipe(sparsity=0.5, sweeps=4)
    first = quick_fit("matrices", recipe, checkpoint=tmp_path)
    again = quick_fit("matrices", recipe, checkpoint=tmp_path)
    for phase, minutes in (("level", 3), ("solve", 3), ("sweeps", 4)):
        assert again.seconds[phase] == first.seconds[phase] == 60 * minutes


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    quick_fit("matrices", Recipe(), checkpoint=tmp_path)
    quick_fit("matrices", Recipe(), checkpoint=tmp_path, workers=2, batch_size=7)
    u = inputs("matrices")
    other = nn.Sequential(
        *(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    )
    for different in (
        lambda: quick_fit("matrices", Recipe(alpha=0.5), checkpoint=tmp_path),
        lambda: quick_fit("matrices", Recipe(structure="layered"), checkpoint=tmp_path),
        lambda: fit(other.double(), u, Recipe(), checkpoint=tmp_path),
        lambda: quick_fit("matrices", Recipe(), u + 1, checkpoint=tmp_path),
        lambda: quick_fit("matrices", Recipe(), u[:-1], checkpoint=tmp_path),
        lambda: quick_fit("matrices", Recipe(), checkpoint=tmp_path, seed=1),
        # the same shapes, other weights
        lambda: fit(seeded(NETWORKS["matrices"], 3), u, Recipe(), checkpoint=tmp_path),
    ):
        with pytest.raises(InputError, match="belongs to another network, recipe or calibration"):
            different()
