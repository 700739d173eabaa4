"""The table of a model's robustness, its figures and its section of the report."""

import csv

import pytest
import torch
from torch import nn

from random_models import implicit_model, inputs
from simplicit.errors import InputError
from simplicit.lab import plots
from simplicit.lab.baselines import ROBUST, Task, decay, ibp
from simplicit.lab.baselines.robust import worst_logits
from simplicit.lab.evaluate import robustness
from simplicit.lab.evaluate.robustness import ATTACKS, Attack, evaluate, share, shown
from simplicit.lab.plots.figures.robustness import INSIDE, worst_and_certified
from simplicit.lab.report.robust_findings import robust_cells, robust_checks
from simplicit.lab.results.shown import FILE
from small_run import small_run

OURS: tuple[Attack, ...] = ATTACKS[:-2]
"""All but those of other packages."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def images(m: int = 30) -> torch.Tensor:
    return torch.rand(m, 4, 4, generator=torch.Generator().manual_seed(1))


def test_the_table_is_consistent():
    net, u = network(), images()
    y = net(u).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    radii = (0.0, 0.02, 0.3)
    rows = evaluate(net, u, y, radii, OURS)
    assert next(net.parameters()).dtype == torch.float32
    at = {(row["attack"], row["eps"]): row for row in rows}
    for eps in radii:
        clean, certified = at["clean", eps]["accuracy"], at["certified", eps]["accuracy"]
        assert clean == pytest.approx(24 / 30)
        best = max(at[bound, eps]["accuracy"] for bound in robustness.bounds_of(net))
        assert certified >= best
        for attack in OURS:
            found = at[attack, eps]
            assert found["low"] <= found["accuracy"] <= found["high"] and found["samples"] == 30
            assert found["violations"] == 0 and found["accuracy"] <= clean
            if attack in INSIDE:
                assert certified <= found["accuracy"]
    assert at["pgd", 0.3]["accuracy"] < at["pgd", 0.02]["accuracy"] <= at["pgd", 0.0]["accuracy"]
    assert at["pgd", 0.3]["accuracy"] <= at["corners", 0.3]["accuracy"]


def test_an_attack_that_beats_a_certificate_is_counted(monkeypatch):
    net, u = network(), images()
    y = net(u).argmax(1)
    far = torch.full((30,), 9.0, dtype=torch.float64)
    monkeypatch.setattr(robustness, "certify", lambda *_, **__: type("C", (), {"radius": far})())
    rows = evaluate(net, u, y, (0.5,), ("pgd",))
    (row,) = [row for row in rows if row["attack"] == "pgd"]
    assert row["violations"] == round((1 - row["accuracy"]) * 30) > 0


def test_models_with_feedback_are_attacked_both_ways_and_their_residuals_noted():
    model = implicit_model("full", input_shape=(4, 4))
    u = images(10)
    y = model(u).argmax(1)
    rows = evaluate(model, u, y, (0.05,), ("fgsm", "pgd"))
    pgd_row = rows[-1]
    assert 0 < pgd_row["residual"] < 1e-9 and pgd_row["violations"] == 0
    assert {row["attack"] for row in rows} >= {"interval", "mixed-monotone", "linear", "lipschitz"}


def test_wilson_intervals():
    found = share(0, 50)
    assert found["low"] == 0 and 0.05 < found["high"] < 0.1
    assert share(50, 50)["low"] == pytest.approx(1 - found["high"])


def test_what_figures_show_fits_together():
    net, u = network(), images()
    found = shown(net, u, net(u).argmax(1), (0.0, 0.1))
    assert found["attacked"].shape == (1, 6, 4, 4) and found["predicted"].shape == (1, 6)
    assert found["sensitivity"].shape == (3, 16)
    assert float((found["attacked"] - found["inputs"]).abs().max()) <= 0.1 + 1e-12


def test_a_run_with_metric_robustness(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES", {})  # other tests draw them
    settings = (
        "evaluation.metric=robustness",
        "evaluation.samples=20",
        "evaluation.eps=[0,0.02,0.5]",
        "evaluation.attacks=[pgd,pgd-100,transfer]",
        "evaluation.baselines=[explicit,implicit]",
    )
    folder = small_run(tmp_path / "run", *settings)
    rows = list(csv.DictReader((folder / "robustness.csv").read_text("utf-8").splitlines()))
    assert {row["model"] for row in rows} == {"explicit", "implicit"}
    assert (folder / FILE).exists()
    for name in plots.ROBUSTNESS:
        assert (folder / "plots" / f"{name}.png").exists()
    page = (folder / "report.html").read_text("utf-8")
    assert "Robustness" in page and "0 violations of a certificate in 240 attacked samples" in page
    checks = robust_checks(rows)
    assert len(checks) == 3 and "transfer" in checks[2]
    curves = worst_and_certified(rows)
    assert [row["eps"] for row in curves] == [0.0, 0.02, 0.5] * 2
    assert all(row["certified"] <= row["attacked"] <= row["clean"] for row in curves)
    assert robust_cells(rows)["radii"] == [0.0, 0.02, 0.5] and robust_checks([]) == []


def task(epochs: int = 3) -> Task:
    u = images(200)
    y = (u.mean((1, 2)) > 0.5).long() + (u[:, 0, 0] > 0.8).long()
    return Task(network(), u, u, y, epochs=epochs, batch_size=20, lr=0.01)


@pytest.mark.parametrize("name", ROBUST)
def test_robust_baselines_keep_to_their_sparsity_and_leave_the_network(name):
    given = task()
    before = [p.clone() for p in given.net.parameters()]
    for sparsity in (0.0, 0.5):
        net = ROBUST[name](given, sparsity)
        layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
        weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
        assert int(torch.count_nonzero(weights)) == round((1 - sparsity) * weights.numel())
        assert not torch.equal(layers[0].weight, before[0])
    assert all(torch.equal(p, q) for p, q in zip(given.net.parameters(), before, strict=True))


def test_robust_training_is_more_robust_than_none():
    given = task(8)
    u, y, worst = given.train_inputs, given.train_labels, {}
    for name, method in {"plain": decay, **ROBUST}.items():
        net = method(given, 0.0)
        assert isinstance(net, nn.Sequential)
        worst[name] = float((worst_logits(net, u, y, 0.05).argmax(1) == y).double().mean())
    assert worst["ibp"] > worst["plain"] and worst["adversarial"] >= worst["plain"]


def test_worst_logits_bound_every_corner():
    net, u = network(), images(15)
    y = net(u).argmax(1)
    bound = worst_logits(net, u, y, 0.1)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        sign = torch.randint(0, 2, u.shape, generator=generator) * 2 - 1
        out = net((u + 0.1 * sign).clamp(0, 1))
        assert (out - out.gather(1, y[:, None]) <= bound + 1e-5).all()


def test_interval_training_refuses_what_is_no_chain():
    given = task()
    with pytest.raises(InputError, match="fnn"):
        ibp(Task(nn.Linear(2, 2), images(2), images(2), torch.zeros(2).long()), 0.0)
    assert given and inputs
