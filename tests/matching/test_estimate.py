"""What is expected grows with the work, is said before it, and refused where it cannot fit."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from example_networks import seeded
from kinds import CASES, NETWORKS, inputs, quick_fit, read
from simplicit.calibration.rows import rows_of
from simplicit.calibration.structure import structured
from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.matching.expected import before
from simplicit.matching.expected.estimate import LAYERS, Estimate, Work, largest
from simplicit.recipe import Recipe
from simplicit.system import memory, progress
from simplicit.system.rates import NOMINAL, measured
from simplicit.workers.executors import count

RECIPES = [
    Recipe(),
    Recipe(sparsity=0.5),
    Recipe(sparsity=0.5, sweeps=5),
    Recipe(sparsity=0.5, support="elimination"),
    Recipe(sparsity=0.5, support="relaxation"),
]


def work(equations: StateEquations, recipe: Recipe, priced: int = 0) -> Work:
    budget = None if recipe.sparsity is None else equations.nonzeros // 2
    sweeps = recipe.passes(True, "layered")
    return Work(equations, equations, rows_of(equations), recipe, sweeps, budget, 1, priced)


@cache
def dense(p: int, n: int, q: int) -> StateEquations:
    net = seeded(lambda: nn.Sequential(nn.Linear(p, n), nn.ReLU(), nn.Linear(n, q)))
    return capture(net, torch.rand(4, p))


def expected(recipe: Recipe, m: int, p: int, n: int, q: int) -> Estimate:
    return work(dense(p, n, q), recipe).estimate(m, NOMINAL)


def convolutions(size: int) -> Estimate:
    inside = 4 * (size - 2) ** 2
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(inside, 3)
        ).eval()
    )
    equations = capture(net, torch.rand(4, 2, size, size))
    return work(equations, Recipe(sparsity=0.5)).estimate(100, NOMINAL)


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_grows_with_samples_features_and_rows(recipe):
    small = expected(recipe, 1000, 40, 30, 5)
    for larger in (
        expected(recipe, 3000, 40, 30, 5),
        expected(recipe, 1000, 90, 30, 5),
        expected(recipe, 1000, 40, 80, 5),
    ):
        assert larger.seconds > small.seconds and larger.peak > small.peak
        assert larger.phases.keys() == small.phases.keys()
        assert all(larger.memory[phase] >= small.memory[phase] for phase in small.phases)


def test_it_grows_with_positions():
    assert convolutions(9).seconds > convolutions(5).seconds
    assert convolutions(9).peak > convolutions(5).peak


def test_what_does_more_takes_longer():
    sizes = (40, 30, 5)
    bare, swept, longer = (
        expected(Recipe(sparsity=0.5, sweeps=count), 1000, *sizes).seconds for count in (0, 4, 9)
    )
    assert expected(Recipe(), 1000, *sizes).seconds < bare < swept < longer
    recipe = Recipe(sparsity=0.5, sweeps=4)
    level, none = (work(dense(*sizes), recipe, n).estimate(20, NOMINAL) for n in (24, 0))
    assert level.seconds > none.seconds


def test_several_workers_take_less():
    asked = work(dense(40, 30, 5), Recipe(sparsity=0.5))
    one, two = (asked.estimate(1000, replace(NOMINAL, parallel=n)) for n in (1.0, 2.0))
    assert one.seconds / 2 <= two.seconds < one.seconds


def test_rates_are_those_of_some_machine():
    found = measured(2)
    assert min(vars(found).values()) > 0 and 0 < found.parallel <= 2


@pytest.mark.parametrize(("kind", "structure"), CASES)
@pytest.mark.parametrize("recipe", [{}, {"sparsity": 0.5}, {"sparsity": 0.5, "sweeps": 4}])
def test_every_task_is_expected_and_the_other_way_round(kind, structure, recipe, monkeypatch):
    if structure == "full":
        recipe = {name: value for name, value in recipe.items() if name != "sweeps"}
    seen: list[str] = []
    phases: list[str] = []
    task, whole = progress.task, progress.whole

    def watched(description, total, console=None):
        seen.append(description)
        return task(description, total, console)

    def told(description, parts, console=None):
        phases.extend(parts)
        return whole(description, parts, console)

    monkeypatch.setattr(progress, "task", watched)
    monkeypatch.setattr(progress, "whole", told)
    quick_fit(kind, Recipe(structure=structure, **recipe))
    assert seen == phases


@pytest.mark.parametrize(("kind", "sweeps"), [("matrices", 4), ("tokens", 0)])
def test_the_bar_of_a_call_never_goes_back_and_ends_once(
    kind, sweeps, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(progress, "LOG_EVERY", -1.0)
    recipe = Recipe(sparsity=0.5, sweeps=sweeps)

    def parts() -> list[int]:
        return [int(found) for found in re.findall(r"model: (\d+) %", capsys.readouterr().err)]

    with monkeypatch.context() as patch:
        stop = progress.task

        def stopped(description, total, console=None):
            if description == LAYERS:
                raise KeyboardInterrupt
            return stop(description, total, console)

        patch.setattr(progress, "task", stopped)
        with pytest.raises(KeyboardInterrupt):
            quick_fit(kind, recipe, checkpoint=tmp_path)
    assert (before := parts()) == sorted(before) and 100 not in before
    for least in (4, 1):  # the plan is there, then all of it
        quick_fit(kind, recipe, checkpoint=tmp_path)
        shown = parts()
        assert len(shown) >= least and shown == sorted(shown)
        assert shown.count(100) == 1 and shown[0] >= before[-1]


def test_it_is_said_before_any_work(monkeypatch, capsys):
    monkeypatch.setattr(before, "WORTH_SAYING", 0.0)
    monkeypatch.setattr(before, "LONG", 0.0)

    def working(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "task", working)
    with pytest.raises(KeyboardInterrupt):
        quick_fit("matrices", Recipe(sparsity=0.5))
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"expected: about [\d.]+ s, [\d.]+ GB", lines[0])
    assert re.match(r"most of it goes to \S+ \(.* s\), .*skip=.*time_limit=", lines[1])


def test_of_short_work_nothing_is_said(capsys):
    quick_fit("matrices", Recipe(sparsity=0.5))
    assert "expected" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_does_not_fit_is_refused_with_the_most_that_would(kind, monkeypatch):
    u, recipe = inputs(kind).repeat(500, *[1] * (inputs(kind).ndim - 1)), Recipe(sparsity=0.5)
    asked = work_of(kind, recipe)
    free = asked.estimate(len(u) // 3, NOMINAL).peak
    monkeypatch.setattr(memory, "available", lambda: free)
    with pytest.raises(InputError, match="calibration inputs: about .* GB are needed") as caught:
        quick_fit(kind, recipe, u, workers=asked.workers)
    assert "\n" not in str(caught.value)
    found = re.search(r"accepted are at most ([\d,]+) of them", str(caught.value))
    assert found is not None
    most = int(found[1].replace(",", ""))
    assert most == largest(asked, NOMINAL, len(u), free) >= len(u) // 3
    with pytest.raises(InputError, match="calibration inputs: about"):
        quick_fit(kind, recipe, u[: most + 1], workers=asked.workers)
    monkeypatch.setattr(memory, "available", lambda: 1e3)
    with pytest.raises(InputError, match="not even one would fit"):
        quick_fit(kind, recipe)


def work_of(kind: str, recipe: Recipe) -> Work:
    equations = read(kind)
    written = equations if equations.structured else structured(equations, "triangular")
    return Work(
        equations,
        written,
        rows_of(written),
        recipe,
        recipe.passes(not equations.structured, "auto"),
        round(0.5 * equations.nonzeros) - sum(equations.kept_weights.values()),
        count(None),
    )
