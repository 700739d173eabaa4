import csv
import json
from functools import partial

import pytest
import torch
from torch import nn

import simplicit
from simplicit.capture.read import capture
from simplicit.cli import app
from simplicit.lab import plots
from simplicit.lab.evaluate import speed
from simplicit.lab.report.time_findings import faster
from simplicit.model.implicit import ImplicitModel
from small_run import settings, small_run

written = speed._onnx


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 1e-4)
    monkeypatch.setattr(speed, "_onnx", lambda *_: None)  # the exporter takes seconds


def thin(sparsity: float = 0.9) -> tuple[nn.Module, ImplicitModel, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10)).eval()
    u = torch.rand(5, 1, 8, 8)
    return net, speed._thinned(ImplicitModel.from_equations(capture(net, u)), sparsity), u


def test_every_way_computes_the_same():
    net, model, u = thin()
    x = speed._repeated(u, 8)
    with torch.no_grad():
        for way in speed.sparse(model, x).values():
            torch.testing.assert_close(torch.as_tensor(way(x)), model(x), rtol=1e-5, atol=1e-5)
        for way in speed.dense(net, x, written(net, x[:2])).values():
            found = way(x)
            found = torch.as_tensor(found[0] if isinstance(found, list) else found)
            torch.testing.assert_close(found, net(x), rtol=1e-5, atol=1e-5)


def test_a_measurement_has_a_row_for_every_way_batch_and_number_of_threads():
    net, model, u = thin()
    before = torch.get_num_threads()
    rows = speed.measure("thin", net, model, u, batches=(1, 7), threads=(1, 2), rounds=3)
    assert torch.get_num_threads() == before
    places = {(row["threads"], row["batch"]) for row in rows}
    assert places == {(1, 1), (1, 7), (2, 1), (2, 7)}
    for place in places:
        own = [row for row in rows if (row["threads"], row["batch"]) == place]
        ways = [(row["way"], row["dense"]) for row in own]
        assert len(set(ways)) == len(ways)
        assert {("torch", True), ("runtime", False), ("SciPy CSR", False)} <= set(ways)
    assert all(0 < row["low"] <= row["milliseconds"] <= row["high"] < 1e3 for row in rows)
    assert speed.summed_up(rows, net, model, u) == {}  # nothing of batches of 64


def row(way: str, dense: bool, milliseconds: float, threads: int = 1) -> speed.Row:
    return {"way": way, "dense": dense, "threads": threads, "batch": 64} | {
        "milliseconds": milliseconds
    }


def test_a_measurement_is_summed_up_by_the_fastest_ways(monkeypatch):
    net, model, u = thin()
    monkeypatch.setattr(speed, "pays_from", lambda *_: 0.95)
    dense = [row("torch", True, 4.0), row("ONNX Runtime", True, 2.0), row("torch", True, 0.1, 2)]
    fast = [row("torch modules", False, 9.0), row("runtime", False, 0.5)]
    expected = {"milliseconds": 0.5, "way": "runtime", "times_faster": 4.0}
    assert speed.summed_up([*dense, *fast], net, model, u) == expected
    slow = speed.summed_up([*dense, fast[0]], net, model, u)
    expected = {"milliseconds": 9.0, "way": "torch modules", "times_faster": 2 / 9}
    assert slow == expected | {"pays_from": 0.95}
    assert speed.summed_up(dense, net, None, u) == {"milliseconds": 2.0, "way": "ONNX Runtime"}


def test_networks_that_were_pruned_are_timed_as_models_are():
    net, _, u = thin()
    with torch.no_grad():
        net.get_submodule("1").weight.mul_(0.0)  # pyright: ignore[reportCallIssue]
    rows = speed.measure("pruned", net, net, u, batches=(2,), threads=(1,), rounds=2)
    assert "runtime" in {row["way"] for row in rows if not row["dense"]}


def test_where_sparse_is_slower_the_report_says_from_where_it_pays(monkeypatch):
    net, model, u = thin(0.0)
    times = iter([{"milliseconds": 5.0}, *({"milliseconds": t} for t in (9, 8, 7, 4, 3, 2))])
    monkeypatch.setattr(speed, "_timed", lambda ways, *_: dict(zip(ways, times, strict=True)))
    assert speed.pays_from(net, model, u, 4) == 0.9
    metrics = {"model": "implicit", "milliseconds": 0.5, "times_faster": 0.5, "way": "runtime"}
    assert "pays from a sparsity of 90.00 %" in faster([metrics | {"pays_from": 0.9}])[0]
    assert "at every sparsity that was tried" in faster([metrics | {"pays_from": None}])[0]
    assert faster([metrics])[0].endswith("; it is slower here.")
    assert faster([{"model": "explicit", "milliseconds": 1.0}]) == []


def test_nothing_to_time_is_refused():
    net, model, u = thin()
    with pytest.raises(simplicit.InputError, match="no samples to time"):
        speed.measure("thin", net, model, u[:0])


def test_metric_sparsity_is_timed_unless_it_is_not_asked_for():
    timed = {
        (metric, value): settings(
            f"evaluation.metric={metric}", f"evaluation.speed={value}"
        ).evaluation.timed
        for metric in ("sparsity", "robustness")
        for value in ("null", "true", "false")
    }
    on = {("sparsity", "null"), ("sparsity", "true"), ("robustness", "true")}
    assert {key for key, value in timed.items() if value} == on


def test_a_run_and_a_bench_of_it(tmp_path, capsys, monkeypatch):
    baselines = "evaluation.baselines=[explicit,implicit,magnitude]"
    monkeypatch.setattr(speed, "measure", partial(speed.measure, rounds=2))
    monkeypatch.setattr(plots, "FIGURES", {})  # other tests draw them
    folder = small_run(tmp_path / "run", "evaluation.speed=true", baselines)
    metrics = {row["model"]: row for row in json.loads((folder / "metrics.json").read_text())}
    assert all(row["milliseconds"] > 0 for row in metrics.values())
    assert {model for model, row in metrics.items() if row.get("times_faster", 0) > 0} == {
        "implicit",
        "magnitude",
    }
    assert "Time of a sample" in (folder / "report.html").read_text()
    for name in ("speed", "ways"):
        assert (folder / "plots" / f"{name}.png").exists()
    app(["bench", str(folder), "--batch", "4", "--threads", "1"], standalone_mode=False)
    assert "runtime" in capsys.readouterr().out
    with (folder / "speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["batch"] for row in rows if row["model"] == "implicit"} == {"4"}
    assert {row["batch"] for row in rows if row["model"] == "magnitude"} == {"1", "8", "64"}
    # `metrics.json` speaks of batches of 64
    after = {row["model"]: row for row in json.loads((folder / "metrics.json").read_text())}
    assert after == metrics
    app(["bench", str(folder), "--batch", "64", "--threads", "1"], standalone_mode=False)
    after = {row["model"]: row for row in json.loads((folder / "metrics.json").read_text())}
    assert after["implicit"]["milliseconds"] != metrics["implicit"]["milliseconds"]
    assert after["magnitude"] == metrics["magnitude"]
    with pytest.raises(simplicit.InputError, match="the processors there are"):
        app(["bench", str(folder), "--threads", "99"], standalone_mode=False)
