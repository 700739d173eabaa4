"""Every method is of one kind, and everything that shows or accepts methods knows it."""

import pytest
import torch
from torch import nn

from simplicit.explicit import training
from simplicit.lab import baselines
from simplicit.lab.config.config import Config
from simplicit.lab.methods import BASELINES, KINDS, MODELS, Kind
from simplicit.lab.plots.figures import curves
from simplicit.lab.report import findings


class Trained(Exception):
    """Raised in place of the first training."""


def rows(*models: str) -> list[dict]:
    return [
        {"model": m, "seed": 0, "target": 0.9, "sparsity": 0.9, "points": 0.0,
         "test_accuracy": 0.5, "seconds": 1.0}
        for m in models
    ]  # fmt: skip


@pytest.mark.parametrize("name", BASELINES)
def test_a_kind_says_whether_the_method_trains(name, monkeypatch):
    def train(*_: object, **__: object) -> None:
        raise Trained

    monkeypatch.setattr(training, "train", train)
    u = torch.rand(12, 4)
    scaled = [nn.BatchNorm1d(6)] * (name == "channels_bn")  # its score; ibp refuses them
    net = nn.Sequential(nn.Linear(4, 6), *scaled, nn.ReLU(), nn.Linear(6, 3))
    task = baselines.Task(net, u, u, torch.arange(12) % 3, epochs=1)
    try:
        baselines.METHODS[name](task, 0.5)
    except Trained:
        assert BASELINES[name].trains
    else:
        assert not BASELINES[name].trains


@pytest.mark.parametrize("name", KINDS)
def test_the_report_puts_every_model_under_its_kind(name):
    found = findings.kinds(rows(*KINDS))
    assert [kind for kind, models in found.items() if name in models] == [KINDS[name]]
    assert findings.kinds(rows(name)) == {KINDS[name]: [name]}


def test_only_methods_of_one_kind_compete():
    losses = rows(*KINDS)
    best = [m for (m, _), cell in findings.cells(losses, "points").items() if cell["best"]]
    assert sorted(KINDS[m] for m in best) == sorted(Kind)
    one_shot = sum(kind is Kind.ONE_SHOT for kind in KINDS.values())
    assert f"Of {one_shot} one-shot methods" in findings.compared(losses)


@pytest.mark.parametrize("name", KINDS)
def test_training_is_drawn_dashed(name):
    [line, *_] = curves.draw(rows(name)).figure.axes[0].lines
    assert (line.get_linestyle() == "--") == KINDS[name].trains


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_accepts_every_model_and_asks_for_a_sparsity_to_prune_to(name):
    wanted = {"evaluation": {"baselines": [name]}}
    config = Config.model_validate(wanted | {"implicit": {"sparsity": 0.9}})
    assert config.evaluation.baselines == (name,)
    if BASELINES.get(name, Kind.ROBUST) is Kind.ROBUST:
        Config.model_validate(wanted)
    else:
        with pytest.raises(ValueError, match="needs one to prune to"):
            Config.model_validate(wanted)
