"""A matching that was stopped goes on with the same bits, from a checkpoint of its own."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from example_networks import CAPTURED, example, seeded
from kinds import CASES, NETWORKS, fitted, inputs, numbers, quick_fit, same
from simplicit.calibration.frontier import Frontier
from simplicit.errors import InputError
from simplicit.fit import fit
from simplicit.matching.checkpoint import Checkpoint
from simplicit.outputs.sweeps.sweeps import Sweeps
from simplicit.recipe import Recipe
from simplicit.system import lock
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


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_stop_after_any_sweep_changes_no_bit(tmp_path, monkeypatch, kind):
    recipe = Recipe(sparsity=0.5, structure="layered", sweeps=4)
    whole, keep, sweeps = fitted(kind, recipe), Checkpoint.keep, []

    def stop_behind(self, name, *args, **others):
        keep(self, name, *args, **others)
        if name == "sweeping":
            raise KeyboardInterrupt

    sweep = Sweeps.sweep
    monkeypatch.setattr(Sweeps, "sweep", lambda *a, **k: sweeps.append(sweep(*a, **k)))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "keep", stop_behind)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                quick_fit(kind, recipe, checkpoint=tmp_path)
    again = quick_fit(kind, recipe, checkpoint=tmp_path)
    assert len(sweeps) == 4  # none was done twice
    assert same(again.model, whole.model)
    assert again.rows == whole.rows and again.budgets == whole.budgets
    assert {path.stem for path in tmp_path.iterdir()} == {"plan", "sweeps"}


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


def test_events_behind_a_stop_are_later_than_those_before(tmp_path, monkeypatch):
    recipe, now = Recipe(sparsity=0.5, structure="layered", sweeps=0), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    original = Frontier.__init__

    def slow(self, *args, **kwargs):  # belongs to no stage
        now[0] += 60.0 * (not (tmp_path / "layer-0.safetensors").exists())
        original(self, *args, **kwargs)

    monkeypatch.setattr(Frontier, "__init__", slow)
    with stopping(monkeypatch, "matching the layers", 1), pytest.raises(KeyboardInterrupt):
        quick_fit("matrices", recipe, checkpoint=tmp_path)
    seconds = [e["seconds"] for e in quick_fit("matrices", recipe, checkpoint=tmp_path).trace]
    assert seconds == sorted(seconds) and seconds[0] > 0


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
    for name in ("plan.row_problem", "layer.row_problem"):
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


def test_a_checkpoint_of_something_else_is_refused(tmp_path, monkeypatch):
    quick_fit("matrices", Recipe(), checkpoint=tmp_path)
    quick_fit("matrices", Recipe(), checkpoint=tmp_path, workers=2, batch_size=7)
    u = inputs("matrices")
    other = nn.Sequential(
        *(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    )
    for different, named in (
        (lambda: quick_fit("matrices", Recipe(alpha=0.5), checkpoint=tmp_path), "recipe"),
        (lambda: quick_fit("matrices", Recipe(structure="layered"), checkpoint=tmp_path), "recipe"),
        (lambda: fit(other.double(), u, Recipe(), checkpoint=tmp_path), "network"),
        (lambda: quick_fit("matrices", Recipe(), u + 1, checkpoint=tmp_path), "calibration set"),
        (lambda: quick_fit("matrices", Recipe(), u[:-1], checkpoint=tmp_path), "calibration set"),
        (lambda: quick_fit("matrices", Recipe(), checkpoint=tmp_path, seed=1), "seed"),
        (lambda: quick_fit("matrices", Recipe(), checkpoint=tmp_path, time_limit=99), "time limit"),
        # the same shapes, other weights
        (lambda: fit(seeded(NETWORKS["matrices"], 3), u, Recipe(), checkpoint=tmp_path), "network"),
        (
            lambda: quick_fit("matrices", Recipe(alpha=0.5), u + 1, checkpoint=tmp_path, seed=1),
            "recipe and another calibration set and another seed",
        ),
    ):
        with pytest.raises(InputError, match=f"safetensors belongs to another {named}: give"):
            different()
    monkeypatch.setattr("simplicit.model.archive.sealed.code", lambda: "of another day")
    with pytest.raises(InputError, match="belongs to another version of simplicit: give"):
        quick_fit("matrices", Recipe(), checkpoint=tmp_path)


SWEPT = Recipe(sparsity=0.5, sweeps=4)


@pytest.fixture(scope="module")
def every_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a fit that drops none of its parts."""
    folder = tmp_path_factory.mktemp("parts") / "every"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "drop", lambda *_: None)
        quick_fit("matrices", SWEPT, checkpoint=folder)
    return folder


@pytest.mark.parametrize("part", ["plan", "layer-0", "layer-1", "sweeps"])
@pytest.mark.parametrize("how", ["cut short", "one bit", "emptied", "something else", "a number"])
def test_a_damaged_part_is_set_aside_and_computed_again(tmp_path, every_part, capsys, part, how):
    whole = fitted("matrices", SWEPT)
    shutil.copytree(every_part, tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"{part}.safetensors"
    if part != "sweeps":
        (tmp_path / "sweeps.safetensors").unlink()
    content = path.read_bytes()
    ruined = bytearray(content)
    ruined[-3] ^= 1  # in the weights
    header = content.replace(b'\\"seconds\\": ', b'\\"seconds\\": 1', 1)[: len(content)]
    path.write_bytes(
        {
            "cut short": content[: len(content) // 2],
            "one bit": bytes(ruined),
            "emptied": b"",
            "something else": b"mine",
            "a number": header,
        }[how]
    )
    again = quick_fit("matrices", SWEPT, checkpoint=tmp_path)
    assert same(again.model, whole.model)
    assert again.rows == whole.rows and again.budgets == whole.budgets
    said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(said) == 1 and f"{path} is damaged (" in said[0]
    assert said[0].endswith(f"it is kept as {path.name}.damaged, and computed again")
    assert (tmp_path / f"{path.name}.damaged").exists()


def test_two_calls_in_one_checkpoint_are_one_too_many(tmp_path):
    with lock.held(tmp_path), pytest.raises(InputError, match=f"in use by process {os.getpid()}:"):
        quick_fit("matrices", Recipe(), checkpoint=tmp_path)
    assert not [*tmp_path.iterdir()]
    quick_fit("matrices", Recipe(), checkpoint=tmp_path)
