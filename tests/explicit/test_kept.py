"""A training that is stopped after any epoch goes on with the bits of one that is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simplicit.explicit import kept as kept_module
from simplicit.explicit.kept import State, Trainings
from simplicit.explicit.training import OPTIMIZERS, train


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "EVERY", 0.0)
    monkeypatch.setattr(kept_module, "AT_THE_END", 0.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout()
    return nn.Sequential(*first, nn.Linear(6, 3))


U, Y = torch.randn(41, 4, generator=torch.Generator().manual_seed(1)), torch.arange(41) % 3


def numbers(net: nn.Module) -> Tensor:
    return torch.cat([value.double().flatten() for value in net.state_dict().values()])


def trained(folder: Path | None, monkeypatch, stop: int | None = None, **options) -> Trainings:
    """Train; with `stop`, until that many epochs are kept."""
    keep = State.keep

    def stopping(self: State, epoch: int, last: bool) -> None:
        keep(self, epoch, last)
        if epoch == stop:
            raise KeyboardInterrupt

    trainings, net = Trainings(folder), network()
    with monkeypatch.context() as patch:
        patch.setattr(State, "keep", stopping)
        train(net, U, Y, epochs=4, batch_size=16, decay=True, kept=trainings, **options)
    NETS.append(net)
    return trainings


NETS: list[nn.Module] = []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_goes_on_with_the_same_bits(tmp_path, monkeypatch, optimizer):
    trained(None, monkeypatch, optimizer=optimizer)
    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, monkeypatch, stop, optimizer=optimizer)
    steps: list[Tensor] = []
    after: Callable[[], None] = lambda: steps.append(torch.zeros(0))  # noqa: E731
    trainings = trained(tmp_path, monkeypatch, optimizer=optimizer, after_step=after)
    assert len(steps) == 3  # one epoch was left
    assert torch.equal(numbers(NETS[-1]), numbers(NETS[-2]))
    assert trainings.earlier > 0
    # one that is done is found again
    trained(tmp_path, monkeypatch, optimizer=optimizer, after_step=after)
    assert len(steps) == 3 and torch.equal(numbers(NETS[-1]), numbers(NETS[-2]))


def test_what_a_loss_changes_is_part_of_the_state(tmp_path, monkeypatch):
    count = torch.zeros(())
    options = {"after_step": lambda: count.add_(1), "also": {"count": count}}
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, monkeypatch, 2, **options)
    assert count == 6
    count.zero_()
    trained(tmp_path, monkeypatch, **options)
    assert count == 12


@pytest.mark.parametrize("other", [{"lr": 0.5}, {"seed": 1}, {"optimizer": "SGD"}])
def test_the_state_of_another_training_is_not_used(tmp_path, monkeypatch, other):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, monkeypatch, 2)
    trained(tmp_path, monkeypatch, **other)
    trained(None, monkeypatch, **other)
    assert torch.equal(numbers(NETS[-1]), numbers(NETS[-2]))


def test_a_damaged_state_is_set_aside(tmp_path, monkeypatch, capsys):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, monkeypatch, 2)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    trained(tmp_path, monkeypatch)
    trained(None, monkeypatch)
    assert torch.equal(numbers(NETS[-1]), numbers(NETS[-2]))
    assert "is damaged (" in capsys.readouterr().err
    assert (tmp_path / "training-1.safetensors.damaged").exists()


def test_trainings_of_a_second_write_nothing(tmp_path, monkeypatch):
    monkeypatch.undo()
    trained(tmp_path, monkeypatch)
    assert [*tmp_path.iterdir()] == []
