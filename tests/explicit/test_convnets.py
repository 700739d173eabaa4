"""The convolutional networks: topology by hand, names as published, normalisation outside them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplicit.explicit.by_name import CONVOLUTIONAL, build, load_weights
from simplicit.explicit.convnets import LeNet, Normalise, ResNet20, StagewiseResNet20, Subsample
from simplicit.explicit.training import accuracy

DATA = Path(__file__).parents[3] / "shared" / "data"


def drawn(net: nn.Module) -> nn.Module:
    """In evaluation mode, with batch norm that is not the identity."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 2)  # pyright: ignore[reportArgumentType]
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)  # pyright: ignore[reportArgumentType]
    return net.eval()


def conv_norm(net: nn.Module, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
    """A convolution with batch norm, from the state dict alone."""
    state = net.state_dict()
    weight = state[f"{conv}.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{norm}.{name}"] for name in names))


def branch(net: nn.Module, x: Tensor, block: str, stride: int) -> Tensor:
    x = F.relu(conv_norm(net, x, f"{block}.conv1", f"{block}.bn1", stride))
    return conv_norm(net, x, f"{block}.conv2", f"{block}.bn2")


def stages() -> list[tuple[str, int]]:
    """Path of every block, and its stride."""
    return [(f"layer{i}.{j}", 2 if i > 1 and j == 0 else 1) for i in (1, 2, 3) for j in range(3)]


def test_the_network_of_cifar10_written_out() -> None:
    net, u = drawn(ResNet20(mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])), torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    x = (u - mean[:, None, None]) / std[:, None, None]
    x = F.relu(conv_norm(net, x, "conv1", "bn1"))
    for block, stride in stages():
        shortcut = x
        if stride == 2:  # A: no parameters
            shortcut = torch.zeros(2, 2 * x.shape[1], x.shape[2] // 2, x.shape[3] // 2)
            shortcut[:, x.shape[1] // 2 : -(x.shape[1] // 2)] = x[:, :, ::2, ::2]
        x = F.relu(branch(net, x, block, stride) + shortcut)
    state = net.state_dict()
    expected = F.linear(x.mean(dim=(2, 3)), state["linear.weight"], state["linear.bias"])
    torch.testing.assert_close(net(u), expected)


def test_the_network_of_cifar100_written_out() -> None:
    net, u = drawn(StagewiseResNet20()), torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.5071, 0.4867, 0.4408]), torch.tensor([0.2675, 0.2565, 0.2761])
    x = F.relu(conv_norm(net, (u - mean[:, None, None]) / std[:, None, None], "conv1", "bn1"))
    assert x.shape[1] == 64
    for block, stride in stages():
        shortcut = x
        if block.endswith(".0"):
            shortcut = conv_norm(net, x, f"{block}.shortcut.0", f"{block}.shortcut.1", stride)
        x = branch(net, x, block, stride) + shortcut
        if block.endswith(".2"):  # the only ReLU of a sum
            x = F.relu(x)
    state = net.state_dict()
    pooled = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(
        net(u), F.linear(pooled, state["linear.weight"], state["linear.bias"])
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    # He et al.'s table: 0.27 million; LeNet-5's, all of C3 and F6 connected
    [("lenet", 61_706), ("resnet20", 269_722), ("resnet20_stagewise", 306_884)],
)
def test_sizes_and_names(name: str, parameters: int) -> None:
    net = build(name, (), seed=3)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert not [key for key in net.state_dict() if "normalise" in key]
    assert isinstance(net, CONVOLUTIONAL[name])


def test_the_normalisation_follows_the_network_and_is_not_saved() -> None:
    net = LeNet(mean=[0.25], std=[0.5]).double()
    assert net.normalise.mean.dtype == torch.float64
    plain = LeNet(mean=[0.0], std=[1.0]).double()
    plain.load_state_dict(net.state_dict())
    u = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(net(u), plain((u - 0.25) / 0.5))
    for mean, std in (([0.1, 0.2], [1.0]), ([0.1], [0.0]), ([0.1], [float("nan")])):
        with pytest.raises(ValueError, match="std above 0"):
            Normalise(mean, std)


def test_a_shortcut_without_parameters_keeps_every_other_pixel() -> None:
    x = torch.rand(1, 2, 4, 6)
    y = Subsample(2)(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, 0].any() and not y[:, 3].any()


@pytest.mark.skipif(not DATA.is_dir(), reason="the trained weights are not in ../shared/data")
@pytest.mark.parametrize(
    ("name", "data", "published"),
    [("resnet20", "cifar10", 0.917), ("resnet20_stagewise", "cifar100", 0.70)],
)
def test_published_weights_give_the_published_accuracy(
    name: str, data: str, published: float
) -> None:
    net = build(name, ())
    load_weights(net, DATA / f"resnet20-{data}.safetensors")
    with np.load(DATA / f"{data}.npz") as file:
        images, labels = file["test_images"][:500], file["test_labels"][:500]
    inputs = torch.tensor(images).permute(0, 3, 1, 2) / 255
    # three standard deviations of 500 draws
    assert accuracy(net, inputs, torch.tensor(labels)) == pytest.approx(published, abs=0.06)
