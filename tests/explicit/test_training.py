from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from simplicit.data import datasets as data
from simplicit.errors import InputError
from simplicit.explicit.training import (
    OPTIMIZERS,
    accuracy,
    build,
    check,
    evaluating,
    suited,
    train,
)


@pytest.fixture
def blobs() -> tuple[Tensor, Tensor]:
    """Three well separated classes in the unit square."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = torch.tensor([[0.2, 0.2], [0.8, 0.2], [0.5, 0.9]])
    return centres[labels] + 0.05 * torch.randn(300, 2, generator=generator), labels


def parameters(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "AdamW"])
def test_training_learns(blobs: tuple[Tensor, Tensor], optimizer: str) -> None:
    net = build("fnn", [2, 16, 3], bias=True)
    rate = 0.2 if optimizer == "SGD" else 0.01
    train(net, *blobs, optimizer=optimizer, lr=rate, epochs=30, batch_size=16)
    assert accuracy(net, *blobs) > 0.97


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_named_optimizer_makes_a_step(blobs: tuple[Tensor, Tensor], optimizer: str) -> None:
    net = build("fnn", [2, 4, 3], bias=True)
    before = parameters(net)
    train(net, *blobs, optimizer=optimizer, epochs=1, batch_size=64)
    assert not torch.equal(parameters(net), before)
    assert parameters(net).isfinite().all()


def with_dropout() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def test_the_same_seed_gives_the_same_bits(blobs: tuple[Tensor, Tensor]) -> None:
    nets = [with_dropout() for _ in range(3)]
    for net, seed in zip(nets, (5, 5, 6), strict=True):
        torch.rand(seed)  # the global random state must not matter
        train(net, *blobs, epochs=2, batch_size=16, seed=seed)
    assert torch.equal(parameters(nets[0]), parameters(nets[1]))
    assert not torch.equal(parameters(nets[0]), parameters(nets[2]))


def test_training_leaves_no_trace_outside(blobs: tuple[Tensor, Tensor]) -> None:
    net = with_dropout()
    net[2].eval()  # pyright: ignore[reportIndexIssue]
    modes = [module.training for module in net.modules()]
    threads = torch.get_num_threads()
    state = torch.random.get_rng_state()
    train(net, *blobs, epochs=1, batch_size=64)
    assert [module.training for module in net.modules()] == modes
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_loss_is_on_logits() -> None:
    """One full-batch SGD step against the cross-entropy written out."""
    u, labels = torch.rand(8, 4), torch.arange(8) % 3
    net = build("fnn", [4, 3])
    weight = net.get_parameter("1.weight").detach().clone()
    probabilities = torch.softmax(u @ weight.T, dim=1)
    gradient = (probabilities - nn.functional.one_hot(labels, 3)).T @ u / 8
    train(net, u, labels, optimizer="SGD", lr=0.5, epochs=1, batch_size=8)
    torch.testing.assert_close(net.get_parameter("1.weight").detach(), weight - 0.5 * gradient)


def test_divergence_is_one_line(blobs: tuple[Tensor, Tensor]) -> None:
    net = build("fnn", [2, 16, 16, 3])
    with pytest.raises(InputError, match="^training diverged in epoch [^\n]+$"):
        train(net, *blobs, optimizer="SGD", lr=1e20, epochs=5, batch_size=16)


def test_bad_input_is_one_line(blobs: tuple[Tensor, Tensor]) -> None:
    inputs, labels = blobs
    net = build("fnn", [2, 3])
    with pytest.raises(InputError, match="'adam': did you mean Adam?"):
        train(net, inputs, labels, optimizer="adam")
    with pytest.raises(InputError, match="empty"):
        train(net, inputs[:0], labels[:0])
    with pytest.raises(InputError, match="NaN or infinity"):
        train(net, inputs * float("nan"), labels)


def test_progress_comes_at_most_every_log_interval(
    blobs: tuple[Tensor, Tensor],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simplicit.system.progress.LOG_EVERY", 0.0)
    train(build("fnn", [2, 3]), *blobs, epochs=2, batch_size=10, log_interval=100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].split("/")[0] for line in lines] == [
        " 100", " 200", " 300", " 300", " 400", " 500", " 600"
    ]  # fmt: skip
    assert "epoch 2 of 2, loss" in lines[-1]


def test_accuracy_counts_and_keeps_the_modes() -> None:
    net = nn.Sequential(nn.Dropout(0.9), nn.Identity())
    net[1].eval()
    logits = torch.eye(5) + 0.1
    labels = torch.tensor([0, 1, 2, 3, 0])
    assert accuracy(net, logits, labels, batch_size=2) == 0.8
    assert [module.training for module in net.modules()] == [True, True, False]


def test_evaluating_puts_the_modes_back_after_an_error() -> None:
    net = nn.Sequential(nn.Dropout())
    with pytest.raises(RuntimeError), evaluating(net):
        assert not net[0].training
        raise RuntimeError
    assert net[0].training


def test_a_network_that_does_not_fit_the_data_is_told_early() -> None:
    images = torch.zeros(5, 8, 8)
    check(build("fnn", [64, 10]), images, 10)
    with pytest.raises(InputError, match=r"^[^\n]*samples of 8 x 8 \(64 values\)[^\n]*$"):
        check(build("fnn", [784, 10]), images, 10)
    with pytest.raises(InputError, match=r"returns \(1, 9\) for one sample"):
        check(build("fnn", [64, 9]), images, 10)
    with pytest.raises(InputError, match=r"returns tuple for one sample"):
        check(nn.MaxPool1d(2, return_indices=True), images, 10)


def test_grey_images_get_a_channel_where_the_network_wants_one() -> None:
    digits = data.load("digits")
    assert suited(build("fnn", [64, 10]), digits) is digits
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    assert suited(convolution, digits).train_inputs.shape == (1297, 1, 8, 8)
    with pytest.raises(InputError, match="does not take samples of 8 x 8"):
        suited(build("fnn", [63, 10]), digits)
    grey = replace(
        digits, train_inputs=torch.rand(1297, 28, 28), test_inputs=torch.rand(500, 28, 28)
    )
    assert suited(build("lenet", ()), grey).test_inputs.shape == (500, 1, 28, 28)
    with pytest.raises(InputError, match="does not take samples of 1 x 8 x 8"):
        suited(build("fnn", [63, 10]), digits.with_channel())


@pytest.mark.parametrize("total", [1, 31, 32, 33, 64, 65])
def test_batch_norm_never_sees_one_sample_alone(total: int) -> None:
    seen: list[int] = []
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    net[0].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    inputs, labels = torch.rand(total, 2), torch.arange(total) % 3
    if total == 1:
        with pytest.raises(InputError, match="batches of 2 at least"):
            train(net, inputs, labels, epochs=1)
        return
    train(net, inputs, labels, epochs=1, batch_size=32)
    assert sum(seen) == total and min(seen) > 1 and max(seen) <= 33
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm1d) and int(norm.num_batches_tracked or 0) == len(seen)


def test_a_convolutional_network_learns() -> None:
    digits = data.load("digits").with_channel()
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 10),
    )  # fmt: skip
    train(net, digits.train_inputs, digits.train_labels, lr=0.01, epochs=3)
    assert accuracy(net, digits.test_inputs, digits.test_labels) > 0.9
