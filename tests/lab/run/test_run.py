"""A run folder holds what the contract says, and a stopped run is taken up where it was."""

import csv
import json
import math
import re
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simplicit.data import datasets
from simplicit.errors import InputError
from simplicit.explicit import training as explicit
from simplicit.lab.config import config
from simplicit.lab.plots import FIGURES
from simplicit.lab.run import run as run_module
from simplicit.model.saved import load
from small_run import DIGITS, N0, NO_BUDGET, contents, hurry, settings, small_run

COMMON = {"model", "dataset", "seed", "nonzeros", "parameters", "sparsity", "test_accuracy"}
COMMON |= {"seconds", "inference_seconds", "bytes"}
IMPLICIT = COMMON | {"states", "structure", "objective", "kappa", "well_posed", "certificate_norm"}
IMPLICIT |= {"certificate_method", "converged", "max_residual", "max_steps", "peak_memory", "rows"}
IMPLICIT |= {"rows_solved", "max_relative_gap", "rows_l0_gap", "seconds_capture"}
IMPLICIT |= {"seconds_level", "seconds_solve", "seconds_sweeps"}

TABLES = {
    "layers": ["seed", "model", "layer", "nonzeros"],
    "rows": ["seed", "layer", "row", "status", "gap", "relative_gap", "objective", "bound"]
    + ["nonzeros", "iterations"],
    "trace": ["seed", "layer", "seconds", "iteration", "gap_median", "gap_max", "solved"],
    "budget": ["seed", "stage", "layer", "weights"],
    "convergence": ["seed", "model", "step", "residual_median", "residual_max"],
}
MODEL = {"explicit.safetensors", "model.safetensors", "model.json"}
TOP = {"config.yaml", "environment.json", "metrics.json", "metrics.csv", "report.html"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "metrics.json").read_text("utf-8"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def forbid(*arguments: object, **options: object) -> None:
    raise AssertionError("this was done already")


def stop(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def made(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without what depends on the clock or the process."""
    clock = ("seconds", "inference_seconds", "peak_memory")
    return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows]


def test_every_file_is_there_and_no_other(finished):
    plots = {f"plots/{name}.{kind}" for name in FIGURES for kind in ("png", "csv")}
    expected = TOP | {f"{name}.csv" for name in TABLES} | plots | {"plots/skipped.json"}
    expected |= MODEL | {f"seed-1/{name}" for name in MODEL}
    assert set(contents(finished)) == expected
    assert json.loads((finished / "plots" / "skipped.json").read_text()) == {}
    assert not (finished / "checkpoint").exists()


def test_metrics_have_every_column_and_true_numbers(finished):
    rows = metrics(finished)
    assert [(row["model"], row["seed"]) for row in rows] == [
        ("explicit", 0), ("implicit", 0), ("explicit", 1), ("implicit", 1)
    ]  # fmt: skip
    for row in rows:
        assert set(row) == (IMPLICIT if row["model"] == "implicit" else COMMON)
        assert row["dataset"] == "digits" and 0.2 < row["test_accuracy"] <= 1
        assert row["sparsity"] == 1 - row["nonzeros"] / N0
        assert 0 <= row["seconds"] < 600 and 0 < row["inference_seconds"] < 600
    for row in rows[1::2]:
        assert row["nonzeros"] == N0 // 4
        assert (row["structure"], row["certificate_method"]) == ("triangular", "nilpotent")
        assert row["well_posed"] is True and row["certificate_norm"] <= 0.99
        assert (row["converged"], row["max_steps"]) == (1.0, 2) and row["max_residual"] < 1e-6
        assert row["rows"] == row["rows_solved"] == 30 and row["max_relative_gap"] <= 1e-4
        assert 0 <= row["rows_l0_gap"] < 1
        phases = sum(row[f"seconds_{name}"] for name in ("capture", "level", "solve", "sweeps"))
        assert row["seconds"] == pytest.approx(phases)
    for row in rows[::2]:
        assert row["nonzeros"] == row["parameters"] == N0
    for row, cells in zip(rows, table(finished / "metrics.csv"), strict=True):
        assert {k: v for k, v in cells.items() if v} == {k: str(v) for k, v in row.items()}


def test_tables_have_every_column_and_both_seeds(finished):
    for name, columns in TABLES.items():
        rows = table(finished / f"{name}.csv")
        assert list(rows[0]) == columns
        assert list(dict.fromkeys(row["seed"] for row in rows)) == ["0", "1"]
        assert all(cell for row in rows for cell in row.values())
    rows = table(finished / "rows.csv")
    assert len(rows) == 60 and {row["layer"] for row in rows} == {"1", "3", "5"}
    assert sum(int(row["nonzeros"]) for row in rows) == 2 * (N0 // 4)
    for row in metrics(finished):
        same = {"model": row["model"], "seed": str(row["seed"])}
        own = [r for r in table(finished / "layers.csv") if same.items() <= r.items()]
        assert [r["layer"] for r in own] == ["1", "3", "5"]
        assert sum(int(r["nonzeros"]) for r in own) == row["nonzeros"]
    steps = [row for row in table(finished / "convergence.csv") if row["seed"] == "1"]
    assert [int(row["step"]) for row in steps] == list(range(1, len(steps) + 1))
    assert float(steps[-1]["residual_max"]) <= 5e-6 < float(steps[0]["residual_max"])


def test_configuration_and_environment(finished):
    assert config.load(finished / "config.yaml") == settings("seeds=[0,1]")
    environment = json.loads((finished / "environment.json").read_text())
    expected = {"simplicit", "python", "torch", "numpy", "platform", "machine", "processors"}
    assert set(environment) == expected | {"threads", "command", "code", "data", "networks"}
    assert set(environment["networks"]) == {"0", "1"}


def test_the_report_speaks_of_both_seeds(finished):
    text = re.sub(r"<[^>]*>|\s+", " ", (finished / "report.html").read_text("utf-8"))
    assert "means over 2 seeds" in " ".join(text.split())


def test_the_saved_models_are_those_of_the_metrics(finished):
    for row, folder in zip(metrics(finished)[1::2], (finished, finished / "seed-1"), strict=True):
        assert load(folder).nonzeros == row["nonzeros"]


@pytest.mark.usefixtures("quick")
def test_a_finished_run_is_not_done_again(copied, monkeypatch):
    before = contents(copied)
    monkeypatch.setattr(explicit, "train", forbid)
    monkeypatch.setattr("simplicit.lab.run.seed.fit", forbid)
    small_run(copied, "seeds=[0,1]")
    # the report is written again, and names its folder
    assert contents(copied) | {"report.html": b""} == before | {"report.html": b""}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("outputs.sweeps.sweeps.Sweeps.match",
         {"explicit.safetensors", "checkpoint/plan.safetensors"}
         | {f"checkpoint/layer-{i}.safetensors" for i in range(3)}),
        ("fit.without_dead_states", {"explicit.safetensors", "checkpoint/plan.safetensors"}
         | {"checkpoint/sweeps.safetensors"}),
        ("lab.run.measure.curve", {"model.safetensors", "checkpoint/sweeps.safetensors"}),
    ],
    ids=["at the end of the solve", "behind the sweeps", "in the evaluation"],
)  # fmt: skip
def test_a_stopped_run_is_taken_up(finished, tmp_path, monkeypatch, where, left):
    folder = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"simplicit.{where}", stop)
        small_run(folder)
    kept = contents(folder)
    assert left <= set(kept) and not [name for name in kept if "tmp" in name]
    monkeypatch.setattr(explicit, "train", forbid)
    monkeypatch.setattr("simplicit.matching.layer.row_records", forbid)
    small_run(folder)
    for name in MODEL:
        if name == "explicit.safetensors":  # its header has the seconds it took
            assert torch.equal(*(weights(f) for f in (folder, finished)))
        else:
            assert (folder / name).read_bytes() == (finished / name).read_bytes()
    assert made(metrics(folder)) == made(metrics(finished)[:2])
    assert table(folder / "rows.csv") == table(finished / "rows.csv")[:30]
    assert not (folder / "checkpoint").exists()


@pytest.mark.usefixtures("quick")
def test_the_size_of_a_network_does_not_depend_on_how_long_it_was_trained(tmp_path, monkeypatch):
    sizes = set()
    for tick in (0.25, 1 / 3, 1234.5678, 1e-7 / 3):  # seconds between two looks at the clock
        clock = SimpleNamespace(monotonic=map(tick.__mul__, count()).__next__)
        monkeypatch.setattr("simplicit.lab.run.seed.time", clock)
        folder = small_run(tmp_path / str(tick), "evaluation.baselines=[explicit]")
        sizes.add(metrics(folder)[0]["bytes"])
    assert len(sizes) == 1


def weights(folder: Path) -> torch.Tensor:
    net = explicit.build("fnn", (64, 12, 8, 10))
    explicit.load_weights(net, folder / "explicit.safetensors")
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.usefixtures("quick")
def test_rows_are_written_before_the_metrics_say_so(tmp_path, monkeypatch):
    write = run_module.files.write_csv

    def stop_at_rows(path: Path, rows: list) -> None:
        if path.name == "rows.csv":
            raise KeyboardInterrupt
        write(path, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.files, "write_csv", stop_at_rows)
        small_run(tmp_path / "out", *NO_BUDGET)
    assert [row["model"] for row in metrics(tmp_path / "out")] == ["explicit"]
    small_run(tmp_path / "out", *NO_BUDGET)
    assert len(table(tmp_path / "out" / "rows.csv")) == 30


@pytest.mark.usefixtures("quick")
def test_evaluate_loads_what_is_saved(copied, monkeypatch):
    before = contents(copied)
    old = metrics(copied)
    monkeypatch.setattr(explicit, "train", forbid)
    monkeypatch.setattr("simplicit.lab.run.seed.fit", forbid)
    small_run(copied, "seeds=[0,1]", "implicit.evaluate=true")
    after = contents(copied)
    assert {k for k in before if before[k] != after[k]} <= {
        "metrics.json",
        "metrics.csv",
        "report.html",
    }
    new = metrics(copied)
    assert made(new) == made(old)
    kept = [k for k in IMPLICIT if k.startswith("seconds")]
    assert [[row.get(k) for k in kept] for row in new] == [
        [row.get(k) for k in kept] for row in old
    ]


def test_evaluate_needs_a_saved_model(tmp_path, copied):
    with pytest.raises(InputError, match="holds no saved model; give the folder of a finished run"):
        small_run(tmp_path / "new", "implicit.evaluate=true")
    assert not (tmp_path / "new").exists()
    (copied / "model.json").unlink()
    with pytest.raises(InputError, match="no readable model.json and model.safetensors"):
        small_run(copied, "seeds=[0,1]", "implicit.evaluate=true")


@pytest.mark.usefixtures("quick")
def test_the_implicit_model_alone(tmp_path):
    alone = ("evaluation.baselines=[implicit]", *NO_BUDGET)
    folder = small_run(tmp_path / "out", *alone)
    assert [row["model"] for row in metrics(folder)] == ["implicit"]
    assert metrics(folder)[0]["sparsity"] < 0
    assert MODEL | TOP <= set(contents(folder))


@pytest.mark.usefixtures("quick")
def test_skipped_layers_are_named_in_every_table(tmp_path):
    alone = ("evaluation.baselines=[implicit]", "implicit.skip=['[!13]']")
    folder = small_run(tmp_path / "out", *alone)
    (row,) = metrics(folder)
    skipped = [r for r in table(folder / "rows.csv") if r["status"] == "skipped"]
    assert [(r["layer"], r["nonzeros"], r["gap"]) for r in skipped] == 10 * [("5", "8", "nan")]
    assert row["rows"] == len(table(folder / "rows.csv")) - 10 == 20
    assert math.isfinite(row["max_relative_gap"]) and math.isfinite(row["rows_l0_gap"])
    counts = {r["layer"]: int(r["nonzeros"]) for r in table(folder / "layers.csv")}
    assert [*counts] == ["1", "3", "5"] and counts["5"] == 80
    assert sum(counts.values()) == row["nonzeros"]
    assert {r["weights"] for r in table(folder / "budget.csv") if r["layer"] == "5"} == {"80"}
    assert "10 × skipped<" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("quick")
def test_a_pattern_that_skips_nothing_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(explicit, "train", forbid)
    with pytest.raises(InputError, match="skip: no layer is called 'fc': accepted are 1, 3, 5"):
        small_run(tmp_path / "out", "implicit.skip=[fc]")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick")
def test_the_explicit_network_alone_and_from_weights(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(explicit, "train", forbid)
    given = f"explicit.weights={finished / 'explicit.safetensors'}"
    folder = small_run(tmp_path / "out", "evaluation.baselines=[explicit]", given)
    (row,) = metrics(folder)
    same = ("test_accuracy", "nonzeros", "parameters", "sparsity")
    assert [row[name] for name in same] == [metrics(finished)[0][name] for name in same]
    assert math.isnan(row["seconds"])  # nobody knows
    assert "no implicit model yet" in (folder / "report.html").read_text("utf-8")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "overrides",
    [
        ["implicit.preset=paper", *NO_BUDGET, "implicit.alpha=0.01"],
        ["implicit.structure=full", "implicit.sweeps=null", "implicit.kappa=0.5"],
        ["implicit.structure=layered", "implicit.sparsity_ratio=50", *NO_BUDGET],
        ["implicit.objective=robustness", *NO_BUDGET, "implicit.lambda1=3"],
    ],
    ids=["paper", "full", "layered", "robustness"],
)
def test_other_recipes_converge_and_are_certified(tmp_path, overrides):
    row = metrics(small_run(tmp_path / "out", *overrides))[1]
    assert row["rows_solved"] == row["rows"] and row["converged"] == 1.0
    kappa = row["kappa"] if row["structure"] == "full" else 0.99
    assert row["well_posed"] and row["certificate_norm"] <= kappa * (1 + 1e-9)
    if "implicit.sparsity=null" not in overrides:
        assert row["sparsity"] == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["explicit.architecture=[63,10]"], "does not take samples of 8 x 8"),
        (["explicit.architecture=[64,5,9]"], r"expected are logits of shape \(1, 10\)"),
        (["device=cuda:99"], "device 'cuda:99' is not available here: cpu always is"),
        (["explicit.type=nowhere:Net"], "nowhere"),
        (["explicit.weights=nowhere.safetensors"], "nowhere.safetensors"),
        (["evaluation.dataset=MNIST"], "MNIST"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_written(
    tmp_path, monkeypatch, overrides, says
):
    monkeypatch.setattr(datasets, "MNIST", replace(datasets.MNIST, mirrors=()))
    with pytest.raises(InputError, match=says) as error:
        small_run(tmp_path / "out", f"data_dir={tmp_path / 'data'}", *overrides)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(finished, copied, tmp_path):
    before = contents(copied)
    with pytest.raises(InputError, match=r"configuration: seeds is \[0, 1\] there, \[0, 2\]"):
        small_run(copied, "seeds=[0,2]")
    assert contents(copied) == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="mine exists and holds something else"):
        small_run(mine)
    with pytest.raises(InputError, match="notes.txt is a file: give another folder"):
        small_run(mine / "notes.txt")
    assert contents(mine) == {"notes.txt": b"mine"}


def advice(*overrides: str, file: Path = DIGITS) -> list[str]:
    said: list[str] = []
    run_module.advise(config.load(file, overrides), said.append)
    return said


def test_advice_is_one_line_for_each_thing_that_is_not_done(monkeypatch):
    monkeypatch.setattr(run_module.threads, "available", lambda: 2)
    assert advice() == []
    assert advice("implicit.workers=32") == [
        "note: workers: 32 reduced to 2, the processors there are"
    ]
    assert "kappa: 0.9 does nothing for structure triangular" in advice("implicit.kappa=0.9")[0]
    assert advice("implicit.kappa=0.9", "implicit.structure=full") == []
    assert advice("implicit.kappa=0.9", "implicit.preset=paper") == []
    assert advice("implicit.alpha=1", "implicit.sparsity_ratio=30") == [
        "note: sparsity: 0.75 overrides alpha and sparsity_ratio"
    ]
    seed = advice(file=DIGITS.parent / "seed-sparsity.yaml")
    assert [line.split(":")[1] for line in seed] == [" workers", " kappa"]


def test_the_default_folder_is_named_after_the_file_and_the_time():
    assert re.fullmatch(r"runs/digits-\d{8}-\d{6}", run_module.default_folder("digits").as_posix())


@pytest.mark.usefixtures("quick")
def test_a_curve_carries_the_last_residual_of_samples_that_are_done(tmp_path):
    folder = small_run(tmp_path / "out", "implicit.preset=paper", "implicit.kappa=0.5", *NO_BUDGET)
    curve = [float(row["residual_max"]) for row in table(folder / "convergence.csv")]
    assert len(curve) <= 60 and all(math.isfinite(value) for value in curve)
    assert curve[-1] < 1e-2 * curve[0]
