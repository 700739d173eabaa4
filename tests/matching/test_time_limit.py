"""A time limit gives a model at the budget, with true records; a large one changes no bit."""

import time

import pytest
import torch
from torch import nn

from example_networks import seeded
from kinds import CASES, NETWORKS, fitted, inputs, network, quick_fit, read, same
from shapes import unchecked
from simplicit import fit as library
from simplicit.errors import InputError
from simplicit.fit import Fit, fit, implicitize
from simplicit.matching import layers
from simplicit.matching.schedule import Timer
from simplicit.outputs.sweeps.sweeps import REFITS
from simplicit.recipe import Recipe
from simplicit.system import deadline
from simplicit.system.deadline import Deadline
from stopped import stopping

LARGE = 1e6


def over(monkeypatch, left: float = -1.0) -> None:
    """Let all time be over, or so much be left, whenever it is asked for."""
    monkeypatch.setattr(Deadline, "left", property(lambda _: left))


def true(result: Fit) -> bool:
    """Whether every row has a bound that holds, and a status that says how near it is."""
    for row in result.rows:
        assert row["status"] in ("solved", "time_limit")
        assert row["bound"] <= row["objective"] * (1 + 1e-9) + 1e-12
        assert row["gap"] >= 0 and (row["status"] == "time_limit" or row["relative_gap"] <= 1e-4)
    return True


@pytest.mark.parametrize(("kind", "structure"), CASES)
@pytest.mark.parametrize("options", [{}, {"sparsity": 0.5}])
def test_a_large_limit_changes_no_bit(kind, structure, options):
    if options and structure != "full":
        options = options | {"sweeps": 4}
    recipe = Recipe(structure=structure, **options)
    free, limited = fitted(kind, recipe), quick_fit(kind, recipe, time_limit=LARGE)
    assert same(limited.model, free.model)
    assert limited.rows == free.rows and limited.budgets == free.budgets


@pytest.mark.parametrize(("kind", "structure"), CASES)
@pytest.mark.parametrize("support", ["splitting", "elimination"])
def test_with_no_time_at_all_the_budget_is_met(kind, structure, support, monkeypatch):
    sweeps = None if structure == "full" else 4
    recipe = Recipe(sparsity=0.5, structure=structure, support=support, sweeps=sweeps)
    free = fitted(kind, recipe)
    over(monkeypatch)
    limited = quick_fit(kind, recipe, time_limit=LARGE)
    assert limited.model.nonzeros == free.model.nonzeros and true(limited)
    assert not any("sweep" in row["stage"] for row in limited.budgets)
    assert torch.isfinite(limited.model(inputs(kind))).all()


@pytest.mark.parametrize(
    ("kind", "sparsity"), [("matrices", 0.2), ("matrices", 0.8), ("tokens", 0.5)]
)
@pytest.mark.parametrize("after", [0, 1, 3, 7])
def test_sweeps_go_down_at_once_where_time_is_short(kind, sparsity, after, monkeypatch):
    recipe = Recipe(sparsity=sparsity, sweeps=9)
    free = fitted(kind, recipe)
    monkeypatch.setattr(Timer, "room", lambda timer: 9.0 if timer.laps < after else 0.0)
    limited = quick_fit(kind, recipe, time_limit=LARGE)
    assert limited.model.nonzeros == free.model.nonzeros
    stages = {row["stage"] for row in limited.budgets if "sweep" in row["stage"]}
    # the sweep before which time is short finds every price, the next one removes
    assert len(stages) == min(after + 2, 9 - REFITS)


@pytest.mark.parametrize(
    ("kind", "sparsity"), [("matrices", 0.3), *((kind, 0.5) for kind in NETWORKS)]
)
def test_sweeps_for_which_the_plan_leaves_no_time_are_left_out(
    kind, sparsity, monkeypatch, tmp_path
):
    recipe = Recipe(sparsity=sparsity, sweeps=4)
    planned = layers.plan_layers

    def slow(*arguments):
        over(monkeypatch)
        return planned(*arguments)

    monkeypatch.setattr(layers, "plan_layers", slow)
    for _ in range(2):  # the second takes the plan and the layers up
        limited = quick_fit(kind, recipe, time_limit=LARGE, checkpoint=tmp_path)
        budget = round((1 - sparsity) * read(kind).nonzeros)
        assert limited.model.nonzeros == budget and true(limited)
        assert not any("sweep" in row["stage"] for row in limited.budgets)
        over(monkeypatch, LARGE)


def test_a_stop_of_the_path_to_a_level_leaves_a_model(monkeypatch, capsys):
    recipe = Recipe(objective="robustness", sparsity=0.5, sweeps=4, robustness=0.2)
    over(monkeypatch)
    limited = quick_fit("matrices", recipe, time_limit=LARGE)
    assert limited.model.sparsity >= 0.5 and len(limited.levels) == 1
    assert "the path to a level of robustness" in capsys.readouterr().err


def test_what_was_cut_short_is_said(monkeypatch, capsys):
    over(monkeypatch)
    quick_fit("convolutions", Recipe(sparsity=0.5, sweeps=4), time_limit=LARGE)
    said = [line for line in capsys.readouterr().err.splitlines() if "time_limit=" in line]
    assert len(said) == 2 and "cut short were" in said[0] and "it took" in said[1]
    assert "the sweeps on the outputs" in said[0] and "choices of supports (3 layers)" in said[0]


def test_a_short_limit_is_kept():
    torch.manual_seed(0)
    net = seeded(lambda: nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)))
    u, recipe = torch.rand(1000, 64), Recipe(sparsity=0.75)
    quick = fit(net, u[:50], recipe)  # what a first call costs
    begin = time.monotonic()
    free = fit(net, u, recipe, workers=1)
    limit = (time.monotonic() - begin) / 2
    begin = time.monotonic()
    limited = fit(net, u, recipe, workers=1, time_limit=limit)
    assert time.monotonic() - begin <= 1.5 * limit + 0.5
    assert limited.model.nonzeros == free.model.nonzeros == quick.model.nonzeros
    assert true(limited)


def test_a_limit_below_the_least_is_refused_by_name(monkeypatch):
    with pytest.raises(InputError, match=r"time_limit=1e-06: the least .* takes about"):
        quick_fit("matrices", Recipe(sparsity=0.5), time_limit=1e-6)
    for bad in (0, -1.0, float("nan"), float("inf"), "5", True):
        wrong = pytest.raises(InputError, match="time_limit=.*: accepted is None, or a number")
        with unchecked(), wrong:
            quick_fit("matrices", Recipe(sparsity=0.5), time_limit=bad)
    with pytest.raises(InputError, match="time_limit=.* the path to a penalty"):
        quick_fit("matrices", Recipe(sparsity=0.5, support="relaxation"), time_limit=LARGE)


def test_implicitize_takes_one():
    u = inputs("matrices")
    free = implicitize(network("matrices"), u, sparsity=0.5)
    assert same(implicitize(network("matrices"), u, sparsity=0.5, time_limit=LARGE), free)


@pytest.mark.parametrize("first", [-1.0, LARGE])
@pytest.mark.parametrize("then", [-1.0, LARGE])
def test_a_run_that_is_taken_up_meets_the_budget_however_fast_it_goes(
    first, then, monkeypatch, tmp_path
):
    recipe = Recipe(sparsity=0.5, sweeps=4)
    free = fitted("matrices", recipe)
    with monkeypatch.context() as patch:
        over(patch, first)
        with stopping(patch, "matching the layers", 2), pytest.raises(KeyboardInterrupt):
            quick_fit("matrices", recipe, checkpoint=tmp_path, time_limit=LARGE)
    over(monkeypatch, then)
    again = quick_fit("matrices", recipe, checkpoint=tmp_path, time_limit=LARGE)
    assert again.model.nonzeros == free.model.nonzeros
    monkeypatch.undo()
    with pytest.raises(InputError, match="belongs to another"):
        quick_fit("matrices", recipe, checkpoint=tmp_path)


def test_seconds_before_a_stop_count(monkeypatch, tmp_path):
    kept: list[Deadline] = []

    def watched(limit: float | None) -> Deadline:
        kept.append(Deadline(limit))
        return kept[-1]

    monkeypatch.setattr(library, "Deadline", watched)
    first = quick_fit("tokens", Recipe(sparsity=0.5), checkpoint=tmp_path, time_limit=LARGE)
    quick_fit("tokens", Recipe(sparsity=0.5), checkpoint=tmp_path, time_limit=LARGE)
    assert kept[0].earlier == 0 < kept[1].earlier <= first.seconds["level"] + first.seconds["solve"]
    assert kept[1].used > kept[1].earlier


def test_the_pace_is_the_estimates_at_first_and_that_of_the_work_later():
    assert deadline.pace(0.0, 0.0, 10.0) == 1.0 == deadline.pace(5.0, 0.0, 0.0)
    assert 1 < deadline.pace(2.0, 1.0, 10.0) < deadline.pace(18.0, 9.0, 10.0) < 2
