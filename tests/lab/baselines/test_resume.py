"""Methods that train, stopped on the way, give the same bits as ones that are not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simplicit.explicit import kept
from simplicit.lab import baselines
from simplicit.recipe import Recipe
from simplicit.refine.finetune import finetune
from teachers import quick_fit, samples, teacher

TRAINS = [*baselines.TRAINED, *baselines.ROBUST]


def numbers(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def task(folder: Path | None) -> baselines.Task:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    u = torch.rand(60, 4)
    given = {"epochs": 5, "batch_size": 16, "lr": 0.01, "kept": kept.Trainings(folder)}
    return baselines.Task(net, u, u, torch.arange(60) % 3, **given)


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Stop when that many states are kept."""
    monkeypatch.setattr(kept, "EVERY", 0.0)
    monkeypatch.setattr(kept, "AT_THE_END", 0.0)
    keep, left = kept.State.keep, [count]

    def stopping(self: kept.State, epoch: int, last: bool) -> None:
        keep(self, epoch, last)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(kept.State, "keep", stopping)


@pytest.mark.parametrize("name", TRAINS)
def test_a_method_goes_on_with_the_same_bits(tmp_path, monkeypatch, name):
    whole = baselines.METHODS[name](task(None), 0.5)
    for count in (2, 1, 5):  # each from where the one before has come
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, count)
            baselines.METHODS[name](task(tmp_path), 0.5)
            raise KeyboardInterrupt  # it was done before
    again = baselines.METHODS[name](task(tmp_path), 0.5)
    assert torch.equal(numbers(again), numbers(whole))


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_fine_tuning_goes_on_with_the_same_bits(tmp_path, monkeypatch, eps):
    model, given = quick_fit(Recipe(sparsity=0.6)).model, {"epochs": 4, "eps": eps}
    whole = finetune(model, teacher(), samples(), **given)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        finetune(model, teacher(), samples(), **given, kept=kept.Trainings(tmp_path))
    again = finetune(model, teacher(), samples(), **given, kept=kept.Trainings(tmp_path))
    assert torch.equal(numbers(again), numbers(whole))
