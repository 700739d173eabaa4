"""Weights that the data leave open: few samples, or features that depend on each other."""

import pytest
import torch
from torch import Tensor, nn

from shapes import unchecked
from simplicit import implicitize


class Uneven(nn.Module):
    """A network whose last channel of features is a few times as large as the others."""

    def __init__(self, times: float, phi: nn.Module) -> None:
        super().__init__()
        scale = torch.ones(8)
        scale[-1] = times
        self.conv, self.phi = nn.Conv2d(1, 8, 3, padding=1), phi
        self.one, self.two = nn.Linear(512, 40), nn.Linear(40, 5)
        with torch.no_grad():
            for part in self.conv.parameters():
                part.mul_(scale.view(-1, *[1] * (part.ndim - 1)))
            self.one.weight.view(40, 8, 64).div_(scale.view(1, -1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs."""
        return self.two(self.one(self.phi(self.conv(x)).flatten(1)).relu())


def missed(model: nn.Module, net: nn.Module, u: Tensor) -> float:
    """Part of the variance of the network's outputs that the model misses."""
    y = net(u)
    return float((model(u) - y).square().sum() / (y - y.mean(0)).square().sum())


def check(net: nn.Module, seen: Tensor, unseen: Tensor, most: float) -> None:
    """The outputs are matched where they are seen, and bounded where they are not."""
    with unchecked(), torch.no_grad():
        model = implicitize(net, seen, sparsity=0.5, workers=1)
        largest = max(float(p.abs().max()) for p in model.learned)
        assert largest <= 10 * max(float(p.abs().max()) for p in net.parameters())
        assert missed(model, net, seen) < 1e-4
        assert missed(model, net, unseen) < most


@pytest.mark.parametrize("times", [1.0, 30.0])
@pytest.mark.parametrize("few", [10, 40])
def test_fewer_samples_than_features(few, times):
    torch.manual_seed(0)
    u = torch.rand(few + 100, 1, 8, 8)
    check(Uneven(times, nn.ReLU()).eval(), u[:few], u[few:], 1.0)


@pytest.mark.parametrize("times", [1.0, 30.0])
@pytest.mark.parametrize("slope", [0.0, 0.999])
def test_features_that_depend_on_each_other(times, slope):
    torch.manual_seed(0)
    u = (torch.rand(1200, 12) @ torch.rand(12, 64)).view(-1, 1, 8, 8)
    check(Uneven(times, nn.LeakyReLU(slope)).eval(), u[:1100], u[1100:], 1e-3)
