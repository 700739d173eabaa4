import json
import re
import sys
from functools import cache

import pytest

from simplicit import cli
from simplicit.lab.plan import plan as planning
from simplicit.lab.plan.makespan import makespan
from simplicit.lab.plan.tables import REASONS

CLASS = "conv_networks:ResNet20"
COUNTS = (1, 2, 8, 512)


@cache
def planned() -> planning.Plan:
    return planning.plan(planning.asked_of(CLASS, [], "3,16,16", 200), COUNTS)


def call(monkeypatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["simplicit", "plan", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_one_worker_is_the_estimate_and_more_are_bounded_by_it():
    found = planned()
    one, *others = found.runs
    for name, phase in one.phases.items():
        assert phase.seconds == pytest.approx(sum(found.one.phases[name]))
        assert phase.sent == phase.returned == phase.worker == 0
        assert phase.caller == found.one.memory[name]
    assert [run.workers for run in found.runs] == [*COUNTS]
    for run in others:
        assert run.seconds >= found.one.seconds / run.workers
        for name, phase in run.phases.items():
            assert phase.caller >= one.phases[name].caller
            assert phase.worker_sent * run.workers == pytest.approx(phase.sent)


def test_enough_workers_are_the_fewest_that_leave_little_to_gain():
    found = planned()

    def time(workers: int) -> float:
        return sum(makespan(stage, workers, found.link) for stage in found.stages)

    enough, best = found.enough.workers, found.best.workers
    counts = [2**k for k in range(12)]
    assert min(map(time, counts)) >= time(best) * (1 - 1e-12)
    assert time(best) >= (1 - planning.LITTLE) * time(enough)
    assert enough == 1 or time(best) < (1 - planning.LITTLE) * time(enough // 2)


def test_what_decides_is_where_most_is_lost():
    found = planned()
    own = found.best.decides
    assert own is not None and own.reason in REASONS
    lost = found.best.seconds - found.one.seconds / found.best.workers
    assert 0 < own.seconds <= own.every * (1 + 1e-9) and own.every >= lost / 4
    stages = [s for s in found.stages if (s.phase, s.step) == (own.phase, own.step)]
    assert any(own.layer in (s.layer, *(piece.layer for piece in s.pieces)) for s in stages)


def test_a_slow_link_takes_more_time_and_fewer_workers():
    asked = planning.asked_of(CLASS, [], "3,16,16", 200)
    fast, slow = (planning.plan(asked, (8,), bandwidth, 0.0) for bandwidth in (1e6, 1.0))
    assert slow.runs[0].seconds > fast.runs[0].seconds
    assert slow.best.workers <= fast.best.workers
    assert slow.best.decides is None or slow.best.decides.reason == "moved"


def test_a_configuration_says_how_many_inputs(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text(
        "explicit: {architecture: [64, 8, 10]}\n"
        "implicit: {training_size: 0.1, sparsity: [0.5, 0.8]}\n"
        "evaluation: {dataset: digits, bs: 32}\n"
    )
    asked = planning.asked_of(str(file), ["implicit.sweeps=4"])
    assert asked.samples == 130 and asked.batch == 32 and asked.work.sweeps == 4
    assert planning.asked_of(str(file), [], samples=7).samples == 7
    assert planning.asked_of(CLASS, [], "3,8,8", sparsity=0.3).work.recipe.sparsity == 0.3


def test_the_command_prints_tables_or_json(monkeypatch, capsys):
    given = [CLASS, "--shape", "3,8,8", "--samples", "50", "--workers", "1", "--workers", "3"]
    assert not call(monkeypatch, *given)
    text = capsys.readouterr().out
    assert re.search(r"matching the layers +│ +[\d.]+ │ +[\d.]+ │ +[\d.]+ │", text)
    assert re.search(r"More than \d+ workers? .*gains? less than 10 %", text)
    assert re.search(r"efficiency +│ +[\d.]+ % │ +100 % │ +[\d.]+ %", text)
    assert not call(monkeypatch, *given, "--bandwidth", "100", "--latency", "0.001", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [run["workers"] for run in found["runs"]] == [1, 3] and found["samples"] == 50
    link = found["link"]
    assert (link["bandwidth"], link["latency"]) == (1e8, 0.001) and 0 < link["each"] < 0.1
    seconds = sum(stage["seconds"] for stage in found["stages"])
    assert found["runs"][0]["seconds"] == pytest.approx(seconds)
    assert found["enough"]["workers"] <= found["best"]["workers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CLASS], "--shape None: accepted is the shape"),
        ([CLASS, "--shape", "3,8,8", "a.b=1"], "accepted only with a configuration"),
        ([CLASS, "--shape", "3,8,8", "--workers", "0"], "--workers"),
        ([CLASS, "--shape", "3,8,8", "--samples", "0"], "--samples"),
        ([CLASS, "--shape", "3,8,8", "--sparsity", "1"], "--sparsity 1: accepted"),
        ([CLASS, "--shape", "3,8,8", "--bandwidth", "0"], "--bandwidth 0: accepted are MB/s"),
        ([CLASS, "--shape", "3,8,8", "--latency", "-1"], "--latency -1: accepted are seconds"),
        (["configs/digits.yaml", "--sparsity", "0.5"], "--sparsity: only with a class"),
        (["configs/digits.yaml", "--shape", "64"], "--shape: only with a class"),
        (["nothing.yaml"], "nothing.yaml"),
        (["configs/digits.yaml", "implicit.sparsty=1"], "sparsty: unknown key"),
    ],
)
def test_bad_input_is_one_line(arguments, message, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
