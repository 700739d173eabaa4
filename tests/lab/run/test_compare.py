"""A comparison is its runs, put together; it trains each network once and can be taken up."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from simplicit.errors import InputError
from simplicit.explicit import training as explicit
from simplicit.lab.config import config
from simplicit.lab.report import findings
from simplicit.lab.run.compare import compare, runs
from simplicit.lab.run.verify import verify
from small_run import DIGITS, N0, SMALL, contents, hurry, settings

MODELS = ("explicit", "implicit", "magnitude", "gmp")


def wanted(*sparsities: float) -> tuple[config.Config, ...]:
    models = ",".join(MODELS)
    lists = [f"implicit.sparsity={list(sparsities)}", f"evaluation.baselines=[{models}]"]
    return config.load_each(DIGITS, [*SMALL, *lists, "evaluation.epoch=1", "seeds=[0,1]"])


def stop(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison at two sparsities, to be read only."""
    out = tmp_path_factory.mktemp("compare") / "out"
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        compare(wanted(0.5, 0.75), out)
    return out


def metrics(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "metrics.json").read_text("utf-8"))


def test_the_rows_are_those_of_the_runs(folder):
    rows = metrics(folder)
    assert [(r["model"], r["seed"]) for r in rows if "target" not in r] == [
        ("explicit", 0), ("explicit", 1)
    ]  # fmt: skip
    for target in (0.5, 0.75):
        own = [dict(row) for row in rows if row.get("target") == target]
        assert [row.pop("target") for row in own] == [target] * 6
        part = metrics(folder / f"sparsity-{target}")
        assert own == [row for row in part if row["model"] != "explicit"]
        assert {row["nonzeros"] for row in own} == {round((1 - target) * N0)}
    assert runs(folder) == [folder / "sparsity-0.5", folder / "sparsity-0.75"]
    assert runs(runs(folder)[0]) == runs(folder)[:1]
    assert all(row["same"] for part in runs(folder) for row in verify(part))


def test_all_runs_prune_the_same_networks(folder):
    for name in ("explicit.safetensors", "seed-1/explicit.safetensors"):
        first, second = (load_file(part / name) for part in runs(folder))
        assert all(bool((first[key] == second[key]).all()) for key in first)


def test_its_configuration_gives_the_same_comparison(folder):
    assert config.load_each(folder / "config.yaml") == wanted(0.5, 0.75)


def test_the_page_has_every_method_at_every_sparsity(folder):
    text = (folder / "report.html").read_text("utf-8")
    rows = metrics(folder)
    for model in MODELS[1:]:
        assert f">{model}</th>" in text
        for target in (0.5, 0.75):
            values = [
                100 * r["test_accuracy"]
                for r in rows
                if r["model"] == model and r.get("target") == target
            ]
            assert f"{sum(values) / 2:.2f} ±" in text
    assert "50.00 %" in text and "75.00 %" in text


def test_a_stopped_comparison_is_taken_up_and_a_finished_one_extended(
    folder, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("simplicit.fit.without_dead_states", stop)
        compare(wanted(0.5), out)
    compare(wanted(0.5), out)
    monkeypatch.setattr(explicit, "train", stop)  # networks are trained, and gmp has run
    before = contents(out / "sparsity-0.5")
    with pytest.raises(KeyboardInterrupt):  # by gmp at the new sparsity
        compare(wanted(0.5, 0.75), out)
    monkeypatch.undo()
    hurry(monkeypatch)
    compare(wanted(0.5, 0.75), out)
    assert contents(out / "sparsity-0.5") | {"report.html": b""} == before | {"report.html": b""}
    accuracies = [[(r["model"], r["seed"], r.get("target"), r["test_accuracy"]) for r in metrics(f)]
                  for f in (out, folder)]  # fmt: skip
    assert accuracies[0] == accuracies[1]


def test_what_is_no_comparison_is_refused(finished, tmp_path):
    with pytest.raises(InputError, match="holds something else"):
        compare(wanted(0.5), finished)
    with pytest.raises(InputError, match="a number to compare at"):
        compare([settings("implicit.sparsity=null")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cells_are_means_and_spreads_and_the_best_of_a_kind():
    rows = [
        {"model": model, "target": 0.9, "sparsity": 0.9, "seed": seed, "points": points}
        for model, values in {"implicit": (-1, -3), "obs": (-4, -4), "gmp": (1, 0)}.items()
        for seed, points in enumerate(values)
    ]
    cells = findings.cells(rows, "points")
    assert cells["implicit", 0.9]["mean"] == -2
    assert cells["implicit", 0.9]["spread"] == pytest.approx(2**0.5)
    assert [cells[m, 0.9]["best"] for m in ("implicit", "obs", "gmp")] == [True, False, True]
    assert findings.kinds(rows) == {
        "one-shot, no labels, no training": ["implicit", "obs"], "trained on labels": ["gmp"]
    }  # fmt: skip
    assert "\N{MINUS SIGN}2.00 points at 90.00 %" in findings.compared(rows)
    dense = {"model": "sss", "target": 0.9, "sparsity": 0.2, "seed": 0, "points": 5}
    cells = findings.cells([*rows, dense], "points")
    assert cells["sss", 0.9]["sparsity"] == 0.2 and not cells["sss", 0.9]["best"]
    assert cells["gmp", 0.9]["sparsity"] is None and cells["gmp", 0.9]["best"]
    alone = findings.cells(rows[:1], "points")["implicit", 0.9]
    assert alone["spread"] is None and alone["best"]
